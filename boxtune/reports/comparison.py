"""Two runs on the same images of one split: what changed, whether it is more than chance, and on which images."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from rich.table import Table

from boxtune.common.drawing import draw_boxes, draw_points, thumbnail, to_data_uri
from boxtune.common.errors import UserError, reading
from boxtune.common.files import write_whole
from boxtune.common.numbers import format_difference, format_number
from boxtune.common.templates import page_template
from boxtune.data.images import load_image
from boxtune.data.records import image_path, read_json_lines
from boxtune.metrics.average_precision import CocoBoxes, all_classes
from boxtune.metrics.bootstrap import DRAWS, bootstrap, interval
from boxtune.metrics.matching import ImageMatch, is_click, match_images
from boxtune.metrics.scoring import mean_iou, total_rates

VALUES = {"AP": "AP", "AP50": "AP50", "f1": "F1", "mean_iou_gt": "mean IoU (all truth)", "fp": "FP", "fn": "FN"}
# Mean IoUs of an image that are closer than this are equal: predictions are rounded.
TIE = 0.001
SHOWN, SIDE, MAX_BYTES = 24, 480, 40_000
# As in report.html: dark enough for white letters, and on a dark card still seen.
COLORS = {"truth": "#12803b", "hit": "#2563eb", "false": "#c93a0c"}


def find_predictions(run: Path) -> Path:
    """predictions.jsonl of a run: the file itself, or in its folder, or in eval/ below. Raises UserError where it is none."""
    for path in (run, run / "predictions.jsonl", run / "eval" / "predictions.jsonl"):
        if path.is_file():
            return path
    if not run.exists():
        raise UserError(f"{run} does not exist. Make predictions: python evaluate.py --ckpt DIR --data DIR")
    raise UserError(
        f"{run} holds no predictions.jsonl, nor does {run / 'eval'}. Evaluate it first: python evaluate.py --ckpt DIR"
    )


def agreed_provenance(files: list[Path], key: str) -> str | None:
    """What the metrics.json beside each of the predictions says of `key`; None where none says anything.

    Raises UserError where they disagree.
    """
    found = {}
    for path in files:
        beside = path.with_name("metrics.json")
        if beside.is_file():
            with reading(str(beside), "Evaluate again, or give --data DIR and --split."):
                found[path] = json.loads(beside.read_text(encoding="utf-8"))["provenance"].get(key)
                if not isinstance(found[path], str | None):
                    raise ValueError(f"{key} is {found[path]!r}, and no name")
    told = {value for value in found.values() if value is not None}
    if len(told) > 1:
        raise UserError(
            f"these runs are of different {key}; compare runs of one, or give --{key}:",
            [f"{path}: {value}" for path, value in found.items()],
        )
    return next(iter(told), None)


def common_ids(files: list[Path]) -> set[str]:
    """The ids that both files answer. Raises UserError where they hold none, or one that lists each id which only one holds."""
    ids = [
        {line["id"] for _, line in read_json_lines(path) if isinstance(line, dict) and isinstance(line.get("id"), str)}
        for path in files
    ]
    problems = [
        f"{name}: not in {path}"
        for path, own in zip(files, ids, strict=True)
        for name in sorted((ids[0] | ids[1]) - own)
    ]
    if problems:
        raise UserError("only runs on the same images can be compared; evaluate both on one split:", problems)
    if not ids[0]:
        raise UserError(f"{files[0]} and {files[1]} answer no image; evaluate both on one split.")
    return ids[0]


def compare(
    records: list[dict], answers_a: list[dict], answers_b: list[dict], classes: list[str], seed: int = 0
) -> dict:
    """What comparison.json holds; `answers_a[i]` and `answers_b[i]` answer `records[i]`.

    `values` {"AP", "AP50", "f1", "mean_iou_gt", "fp", "fn"}: of A, of B, their difference B − A, and its 95 % percentile
    interval over 300 draws of images with replacement, both runs answering the same ones. `outcome` counts the images that B
    won, lost and tied: fewer errors (FP + FN) win, then a mean IoU over truth that is higher by 0.001. `images` are those not
    tied, by the difference in errors and then in IoU, the greatest first. Undefined is None. Raises UserError where one run
    holds points and the other boxes.
    """
    click = is_click(answers_a)
    if click != is_click(answers_b):
        raise UserError("one run answers with points and the other with boxes; they share no numbers to compare.")
    classes = all_classes(records, classes)
    values, samples, images = [], [], []
    for answers in (answers_a, answers_b):
        boxes = None if click else CocoBoxes(records, answers, classes)
        matches = boxes.match(boxes.scores) if boxes else None
        fared = match_images(records, answers)
        coco, rates = matches.coco() if matches else None, total_rates(fared)
        averages = {"AP": coco.ap() if coco else None, "AP50": coco.ap(0) if coco else None}
        values.append({**averages, "mean_iou_gt": mean_iou(fared), **{key: rates[key] for key in ("f1", "fp", "fn")}})
        samples.append(bootstrap(matches, fared, seed))
        images.append(fared)
    differing = _differing(*images)
    return {
        "values": {
            key: {
                "A": values[0][key],
                "B": values[1][key],
                "difference": None if None in (values[0][key], values[1][key]) else values[1][key] - values[0][key],
                "interval": interval(samples[1][key] - samples[0][key]),
            }
            for key in VALUES
        },
        "outcome": {
            "won": sum(row["winner"] == "B" for row in differing),
            "lost": sum(row["winner"] == "A" for row in differing),
            "tied": len(records) - len(differing),
        },
        "images": differing,
    }


def _differing(images_a: list[ImageMatch], images_b: list[ImageMatch]) -> list[dict]:
    """The images that one of the runs won, those that differ most first."""
    rows = []
    for a, b in zip(images_a, images_b, strict=True):
        fewer, closer = a.errors - b.errors, (b.mean_iou or 0.0) - (a.mean_iou or 0.0)
        if fewer or abs(closer) > TIE:
            rows.append(
                {
                    "id": a.id,
                    "winner": "B" if (fewer or closer) > 0 else "A",
                    "errors": [a.errors, b.errors],
                    "mean_iou": [a.mean_iou, b.mean_iou],
                }
            )
    return sorted(
        rows,
        key=lambda row: (
            -abs(np.subtract(*row["errors"])),
            -abs(np.subtract(*(iou or 0.0 for iou in row["mean_iou"]))),
        ),
    )


def comparison_table(result: dict) -> Table:
    """For a terminal."""
    table = Table("")
    for title in ("A", "B", "B − A", "95 % interval"):
        table.add_column(title, justify="right")
    for row in _rows(result):
        table.add_row(*row)
    return table


def _rows(result: dict) -> list[tuple[str, ...]]:
    """(title, A, B, difference, interval) of the values that are defined."""
    rows = {title: result["values"][key] for key, title in VALUES.items()}
    return [
        (title, format_number(row["A"]), format_number(row["B"]), *_difference(row))
        for title, row in rows.items()
        if row["A"] is not None or row["B"] is not None
    ]


def _difference(row: dict) -> tuple[str, str]:
    """The difference and its interval, signed; of counts as whole numbers."""
    change = format_difference(row["A"], row["B"])
    if row["interval"] is None:
        return change, "–"
    digits = 0 if isinstance(row["difference"], int) else 3
    low, high = (f"{round(value, digits) + 0.0:+.{digits}f}" for value in row["interval"])
    return change, f"{low} to {high}"


def write_comparison(
    out: Path, result: dict, records: list[dict], answers_a: list[dict], answers_b: list[dict], data_dir: Path
) -> None:
    """comparison.json and comparison.html in `out`: the numbers, and side by side the 24 images that differ most.

    `result` is that of `compare`, with the names of the runs as "A" and "B".
    """
    write_whole(out / "comparison.json", json.dumps(result, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    number = {record["id"]: i for i, record in enumerate(records)}
    cards = []
    for row in result["images"][:SHOWN]:
        i = number[row["id"]]
        sides = [
            {"errors": errors, "iou": iou, "picture": picture}
            for errors, iou, picture in zip(
                row["errors"],
                row["mean_iou"],
                _pictures(records[i], (answers_a[i], answers_b[i]), data_dir),
                strict=True,
            )
        ]
        cards.append(row | {"sides": sides})
    page = page_template(Path(__file__).with_name("comparison.html.jinja")).render(
        result=result, rows=_rows(result), cards=cards, colors=COLORS, images=len(records), draws=DRAWS
    )
    write_whole(out / "comparison.html", page)


def _pictures(record: dict, answers: tuple[dict, dict], data_dir: Path) -> list[str | None]:
    """Two data URIs, truth with either answer; None where the file is missing or torn."""
    try:
        image = load_image(image_path(record, data_dir))
    except OSError:
        return [None, None]
    small = thumbnail(image, SIDE)
    scale = small.width / image.width
    return [to_data_uri(_draw(small, record, answer, scale), MAX_BYTES) for answer in answers]


def _draw(image: Image.Image, record: dict, answer: dict, scale: float) -> Image.Image:
    """Truth, dashed where it was missed, and on top the answer: hits, and false positives with their labels."""
    (fared,) = match_images([record], [answer])
    truth, objects = record["objects"], answer["objects"]
    draw = draw_points if "point" in objects else draw_boxes
    places, hits = objects["point" if "point" in objects else "bbox"], [i for i, *_ in fared.pairs]

    def scaled(values: list, chosen: list[int]) -> list[list[float]]:
        return [[value * scale for value in values[i]] for i in chosen]

    found = [j for _, j, _ in fared.pairs]
    image = draw_boxes(image, scaled(truth["bbox"], found), [""] * len(found), COLORS["truth"])
    labels = [truth["category"][j] for j in fared.missed]
    image = draw_boxes(image, scaled(truth["bbox"], fared.missed), labels, COLORS["truth"], dashed=True)
    image = draw(image, scaled(places, hits), [""] * len(hits), COLORS["hit"])
    labels = [objects["category"][i] for i in fared.false]
    return draw(image, scaled(places, fared.false), labels, COLORS["false"])
