"""Write an HTML page with images, box sizes and possible problems of a prepared dataset.

python -m data_prep show DATA [--family qwen2_5_vl] [--max-pixels 1003520] [--out DATA.html]
"""

import argparse
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from boxtune.common.drawing import draw_boxes, thumbnail, to_data_uri
from boxtune.common.errors import UserError
from boxtune.common.files import path_argument, write_whole
from boxtune.common.templates import page_template
from boxtune.data.dataset import read_info, read_splits
from boxtune.data.images import load_image
from boxtune.data.records import Record, image_path
from boxtune.families import FAMILIES
from data_prep.pipeline.hashing import fraction_of
from data_prep.tools.findings import find
from data_prep.tools.show_charts import budget_rows, histograms

_COLORS = ("lime", "cyan", "magenta", "yellow", "orange", "deepskyblue", "violet", "tomato", "gold", "springgreen")
_IMAGE_SIDE = 480  # longer side of an image on the page, in pixels
# Identifies a page of this tool, which may be replaced.
_MARK = "boxtune data_prep show"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", type=path_argument, help="a prepared dataset")
    parser.add_argument(
        "--family",
        choices=list(FAMILIES),
        metavar="FAMILY",
        default="qwen2_5_vl",
        help=f"family of the model to train (default qwen2_5_vl): {', '.join(FAMILIES)}",
    )
    parser.add_argument(
        "--max-pixels", type=int, default=1_003_520, metavar="N", help="pixel budget of the recipe (default 1003520)"
    )
    parser.add_argument(
        "--num-images", type=int, default=24, metavar="N", help="number of images on the page (default 24)"
    )
    # The former name of --num-images.
    parser.add_argument("--pictures", dest="num_images", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("--out", metavar="FILE", type=path_argument, help="the page (default: DATA.html next to DATA)")


def main(args: argparse.Namespace) -> None:
    """Write the page, and print the findings."""
    _check_arguments(args)
    data_dir = args.data.resolve()
    out = args.out or data_dir.with_name(f"{data_dir.name}.html")
    content = page_content(data_dir, args.family, args.max_pixels, args.num_images)
    if not args.out and out.is_file() and _MARK not in out.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{out} was not written by this command. Use another path with --out.")
    write_whole(out, page_template(Path(__file__).with_name("show.html.jinja")).render(content))
    for finding in content["findings"]:
        print(f"{finding.title}: {finding.text}")
    if not content["findings"]:
        print("nothing suspicious")
    print(f"written to {out}")


def _check_arguments(args: argparse.Namespace) -> None:
    if args.max_pixels < FAMILIES[args.family].factor ** 2:
        raise UserError(f"--max-pixels {args.max_pixels} is less than one image token of {args.family}.")
    if args.num_images < 0:
        raise UserError(f"--num-images {args.num_images} must not be negative.")
    if args.out and args.out.is_dir():
        raise UserError(f"--out {args.out} is a folder; name a file, such as {args.out / 'show.html'}.")


def page_content(data_dir: Path, family_name: str, max_pixels: int, num_images: int) -> dict[str, Any]:
    """The variables of the page's template."""
    splits, classes = read_splits(data_dir), read_info(data_dir)["classes"]
    records = [record for members in splits.values() for record in members]
    family = FAMILIES[family_name]
    return {
        "name": data_dir.name,
        "mark": _MARK,
        "family": family_name,
        "splits": {split: _class_counts(members) for split, members in splits.items()},
        "images": {split: len(members) for split, members in splits.items()},
        "empty": {split: sum(not r["objects"]["bbox"] for r in members) for split, members in splits.items()},
        "classes": classes,
        "histograms": histograms(records, family, max_pixels),
        "budgets": budget_rows(records, family, max_pixels),
        "patch": family.patch_size,
        "findings": find(splits, classes, data_dir, family, max_pixels),
        "cards": [_card(record, data_dir, classes) for record in choose_examples(records, num_images)],
    }


def _class_counts(records: list[Record]) -> Counter[str]:
    return Counter(name for record in records for name in record["objects"]["category"])


def choose_examples(records: list[Record], count: int) -> list[Record]:
    """Half at random, drawn by the ids alone, and half those with the most objects."""
    at_random = sorted(records, key=lambda record: fraction_of(f"show {record['id']}"))
    by_objects = sorted(records, key=lambda record: -len(record["objects"]["bbox"]))
    chosen = [*at_random[: (count + 1) // 2], *by_objects[: count // 2], *at_random]
    return list({record["id"]: record for record in chosen}.values())[:count]


def _card(record: Record, data_dir: Path, classes: list[str]) -> dict[str, Any]:
    """One image of the page: a thumbnail with boxes in the color of their class; ignored ones are gray and dashed."""
    image = thumbnail(load_image(image_path(record, data_dir)), _IMAGE_SIDE)
    scale = image.width / record["width"]
    objects = record["objects"]
    names = list(dict.fromkeys([*classes, *objects["category"]]))
    groups: dict[tuple[str, bool], list[list[float]]] = defaultdict(list)
    for box_xyxy, label, ignore in zip(objects["bbox"], objects["category"], objects["ignore"], strict=True):
        groups[label, bool(ignore)].append([value * scale for value in box_xyxy])
    for (label, ignored), boxes_xyxy in groups.items():
        color = "grey" if ignored else _COLORS[names.index(label) % len(_COLORS)]
        captions = [label if len(names) > 1 else ""] * len(boxes_xyxy)
        image = draw_boxes(image, boxes_xyxy, captions, color, dashed=ignored)
    return {
        "id": record["id"],
        "uri": to_data_uri(image),
        "count": len(objects["bbox"]),
        "size": (record["width"], record["height"]),
    }
