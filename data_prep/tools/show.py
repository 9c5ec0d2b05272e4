"""Look at a prepared data set before training: one page with pictures, sizes, and what is suspicious.

python -m data_prep show DATA [--family qwen2_5_vl] [--max-pixels 1003520] [--out DATA.html]
"""

import argparse
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from boxtune.common.drawing import draw_boxes, thumbnail, to_data_uri
from boxtune.common.errors import UserError
from boxtune.common.files import path_argument, write_whole
from boxtune.common.templates import page_template
from boxtune.data.boxes import box_area
from boxtune.data.images import load_image
from boxtune.data.records import Record, image_path, read_info, read_splits
from boxtune.families import FAMILIES
from data_prep.reading.names import fraction_of
from data_prep.tools.findings import (
    alike_names,
    duplicate_boxes,
    image_tokens,
    keeping_budget,
    scale_at,
    shorter_sides,
    similar_images,
    too_small,
)

COLORS = ("lime", "cyan", "magenta", "yellow", "orange", "deepskyblue", "violet", "tomato", "gold", "springgreen")
SIDE = 480  # longest side of a picture on the page
MARK = "boxtune data_prep show"  # by which an earlier page is known
LISTED = 12  # findings of a kind that are written out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", type=path_argument, help="a prepared data set")
    parser.add_argument("--family", choices=list(FAMILIES), default="qwen2_5_vl", help="whose patches see the objects")
    parser.add_argument("--max-pixels", type=int, default=1_003_520, metavar="N", help="the recipe's (default 1003520)")
    parser.add_argument("--pictures", type=int, default=24, metavar="N", help="how many are shown (default 24)")
    parser.add_argument("--out", metavar="FILE", type=path_argument, help="the page (default: DATA.html beside DATA)")


def main(args: argparse.Namespace) -> None:
    """Write the page, and print what is suspicious."""
    if args.max_pixels < FAMILIES[args.family].factor ** 2:
        raise UserError(f"--max-pixels {args.max_pixels}: less than one token of {args.family}.")
    if args.pictures < 0:
        raise UserError(f"--pictures {args.pictures}: must not be negative.")
    if args.out and args.out.is_dir():
        raise UserError(f"--out {args.out} is a folder; name a file, such as {args.out / 'show.html'}.")
    args.data = args.data.resolve()
    facts = collect(read_splits(args.data), read_info(args.data)["classes"], args)
    out = args.out or args.data.with_name(f"{args.data.name}.html")
    if not args.out and out.is_file() and MARK not in out.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{out} is somebody's own page. Name another with --out.")
    write_whole(out, page_template(Path(__file__).with_name("show.html.jinja")).render(facts))
    for finding in facts["findings"]:
        print(f"{finding['title']}: {finding['text']}")
    if not facts["findings"]:
        print("nothing suspicious")
    print(f"written to {out}")


def collect(splits: dict[str, list[Record]], classes: list[str], args: argparse.Namespace) -> dict:
    """Everything that the page shows."""
    records = [record for members in splits.values() for record in members]
    family = FAMILIES[args.family]
    return {
        "name": args.data.name,
        "mark": MARK,
        "family": args.family,
        "max_pixels": args.max_pixels,
        "splits": {split: class_counts(members) for split, members in splits.items()},
        "images": {split: len(members) for split, members in splits.items()},
        "empty": {split: sum(not r["objects"]["bbox"] for r in members) for split, members in splits.items()},
        "classes": classes,
        "histograms": histograms(records, family, args.max_pixels),
        "budgets": budgets(records, family, args.max_pixels),
        "patch": family.patch_size,
        "findings": find(splits, classes, args),
        "pictures": [picture(record, args.data, classes) for record in sample(records, args.pictures)],
    }  # fmt: skip


def class_counts(records: list[Record]) -> Counter:
    return Counter(name for record in records for name in record["objects"]["category"])


def histograms(records: list[Record], family, max_pixels: int) -> list[dict]:
    """Bars of the sizes of pictures and objects, and of the number of objects."""
    sides, areas = shorter_sides(records)
    shares = [
        area / (record["width"] * record["height"])
        for record in records
        for area in box_area(record["objects"]["bbox"])
    ]
    pictures = [max(record["width"], record["height"]) for record in records]
    counts = [len(record["objects"]["bbox"]) for record in records]
    seen = sides * scale_at(areas, max_pixels)
    return [
        bars("objects a picture", counts, [0, 1, 2, 3, 4, 6, 9, 16, 31, 61], whole=True),
        bars("longer side of the picture, px", pictures, [0, 256, 512, 768, 1024, 1536, 2048, 3072, 4096]),
        bars(
            "share of its picture that an object covers, %", [100 * s for s in shares], [0, 0.1, 0.3, 1, 3, 10, 30, 60]
        ),
        bars(
            "shorter side of an object as the model sees it, px",
            seen,
            [0, 4, 8, family.patch_size, 28, 56, 112, 224, 448],
        ),
    ]


def bars(title: str, values, edges: list[float], whole: bool = False) -> dict:
    """How many values lie from each edge on, below the next; the last has no end. `whole`: they are counts of things."""
    counts = np.histogram(values, [*edges, np.inf])[0].tolist()
    names = [
        f"{low:g}" if whole and high == low + 1 else f"{low:g} to {high - whole:g}" for low, high in pairwise(edges)
    ] + [f"{edges[-1]:g} and more"]
    most = max(counts, default=0) or 1
    rows = [{"name": name, "count": n, "share": 100 * n / most} for name, n in zip(names, counts, strict=True)]
    return {"title": title, "rows": rows}


def budgets(records: list[Record], family, max_pixels: int) -> list[dict]:
    """Tokens and objects too small at `max_pixels`, at others round it, and at the one that would keep them."""
    wanted = {
        max_pixels: "this page's --max-pixels",
        **{round(max_pixels * factor): "" for factor in (0.25, 0.5, 2, 4)},
    }
    if keeping := keeping_budget(records, family):
        wanted[keeping] = "keeps 99 % of what the pictures resolve" + (
            ", this page's --max-pixels" if keeping == max_pixels else ""
        )
    rows = []
    for budget in sorted(wanted):
        tokens, small = image_tokens(records, family, budget), too_small(records, family, budget)
        rows.append(
            {
                "max_pixels": budget,
                "note": wanted[budget],
                "median_tokens": round(float(np.median(tokens))) if len(tokens) else 0,
                "most_tokens": round(float(tokens.max())) if len(tokens) else 0,
                "small": int(small.sum()),
                "share": 100 * float(small.mean()) if len(small) else 0.0,
            }
        )
    return rows


def find(splits: dict[str, list[Record]], classes: list[str], args: argparse.Namespace) -> list[dict]:
    """What is suspicious, each with a sentence and examples."""
    records = [record for members in splits.values() for record in members]
    split_of = {record["id"]: split for split, members in splits.items() for record in members}
    family, found = FAMILIES[args.family], []
    bare = [split for split, members in splits.items() if all(all(r["objects"]["ignore"]) for r in members)]
    if bare or not splits:
        text = f"none that counts in {', '.join(bare) or 'any split'}, so nothing to learn or to measure there. "
        text += "Look at the source, and in problems.jsonl for what was dropped."
        ignored = {split: sum(len(r["objects"]["ignore"]) for r in splits[split]) for split in bare}
        examples = [f"{split}: {len(splits[split])} picture(s), {ignored[split]} ignored object(s)" for split in bare]
        found.append({"title": "no objects", "text": text, "examples": examples})
    small = too_small(records, family, args.max_pixels)
    if small.any():
        ids = [record["id"] for record in records for _ in record["objects"]["bbox"]]
        examples = Counter(name for name, is_small in zip(ids, small, strict=True) if is_small).most_common(LISTED)
        text = f"{small.sum()} of {len(small)} objects are thinner than a patch ({family.patch_size} px) "
        text += f"at max_pixels {args.max_pixels}"
        own = int((shorter_sides(records)[0] < family.patch_size).sum())
        text += f", {own} of them in the picture itself, where no budget helps." if own else "."
        keeping = keeping_budget(records, family)
        if keeping and keeping > args.max_pixels:
            text += f" max_pixels {keeping} keeps 99 % of the others."
        examples = [f"{name}: {count}" for name, count in examples]
        found.append({"title": "too small", "text": text, "examples": examples})
    if boxes := duplicate_boxes(records):
        examples = [f"{name}: {label}, IoU {iou:.2f}" for name, label, iou in boxes[:LISTED]]
        text = (
            f"{len(boxes)} pair(s) of boxes of one class are almost the same; the model would learn to repeat itself. "
        )
        text += "Remove one of each from the annotations."
        found.append({"title": "duplicate boxes", "text": text, "examples": examples})
    pairs, across, shown = similar_images(splits, args.data, LISTED)
    if pairs:
        text = f"{pairs} pair(s) of pictures look the same, {across} of them in two splits"
        if across:
            text += ", where they make scores better than they are: move both into one split, or remove one."
        else:
            text += ". Remove the copies."
        examples = [f"{a} ({split_of[a]}) and {b} ({split_of[b]})" for a, b in shown]
        found.append({"title": "alike pictures", "text": text, "examples": examples})
    if names := alike_names(classes):
        text = "class names look alike; one of each two may be a slip: --rename OLD=NEW merges them."
        found.append(
            {"title": "alike names", "text": text, "examples": [f"{a!r} and {b!r}" for a, b in names[:LISTED]]}
        )
    return found


def sample(records: list[Record], count: int) -> list[Record]:
    """Half by chance, which depends on the ids alone, and half those with most objects."""
    by_chance = sorted(records, key=lambda record: fraction_of(f"show {record['id']}"))
    most = sorted(records, key=lambda record: -len(record["objects"]["bbox"]))
    wanted = [*by_chance[: (count + 1) // 2], *most[: count // 2], *by_chance]
    return list({record["id"]: record for record in wanted}.values())[:count]


def picture(record: Record, directory: Path, classes: list[str]) -> dict:
    """A card: the thumbnail with boxes coloured by class, ignored ones in grey."""
    image: Image.Image = thumbnail(load_image(image_path(record, directory)), SIDE)
    scale = image.width / record["width"]
    objects = record["objects"]
    names = list(dict.fromkeys([*classes, *objects["category"]]))
    groups = defaultdict(list)
    for box, label, ignore in zip(objects["bbox"], objects["category"], objects["ignore"], strict=True):
        groups[label, bool(ignore)].append([value * scale for value in box])
    for (label, ignored), boxes in groups.items():
        color = "grey" if ignored else COLORS[names.index(label) % len(COLORS)]
        image = draw_boxes(image, boxes, [label if len(names) > 1 else ""] * len(boxes), color, dashed=ignored)
    return {
        "id": record["id"],
        "uri": to_data_uri(image),
        "count": len(objects["bbox"]),
        "size": (record["width"], record["height"]),
    }
