"""The comparison of two runs as a terminal table, as comparison.json and as comparison.html."""

import json
from pathlib import Path

from PIL import Image
from rich.table import Table

from boxtune.answers.predictions import Prediction
from boxtune.common.drawing import draw_boxes, draw_points, thumbnail, to_data_uri
from boxtune.common.files import write_whole
from boxtune.common.numbers import format_difference, format_number
from boxtune.common.templates import page_template
from boxtune.data.images import load_image
from boxtune.data.records import Record, image_path
from boxtune.metrics.bootstrap import DRAWS
from boxtune.metrics.comparison import VALUES
from boxtune.metrics.matching import match_images

TITLES = {
    "AP": "AP",
    "AP50": "AP50",
    "f1": "F1",
    "mean_iou_gt": "mean IoU (all ground truth)",
    "fp": "false positives",
    "fn": "false negatives",
}
# The page shows at most this many images, with this longest side in pixels and this file size in bytes.
SHOWN, SIDE, MAX_BYTES = 24, 480, 40_000
# The same as in report.html: dark enough for white text, and still visible on a dark background.
COLORS = {"truth": "#12803b", "hit": "#2563eb", "false": "#c93a0c"}


def comparison_table(result: dict) -> Table:
    """The table for a terminal."""
    table = Table("")
    for title in ("A", "B", "B − A", "95 % interval"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in _table_rows(result):
        table.add_row(*row)
    return table


def _table_rows(result: dict) -> list[tuple[str, str, str, str, str]]:
    """(title, A, B, difference, interval) of the numbers that are defined for one run at least."""
    rows = []
    for key in VALUES:
        value = result["values"][key]
        if value["A"] is None and value["B"] is None:
            continue
        difference = format_difference(value["A"], value["B"])
        is_count = isinstance(value["difference"], int)
        interval = _format_change_interval(value["interval"], digits=0 if is_count else 3)
        rows.append((TITLES[key], format_number(value["A"]), format_number(value["B"]), difference, interval))
    return rows


def _format_change_interval(interval: list[float] | None, digits: int) -> str:
    """ "-0.012 to +0.034", with signs."""
    if interval is None:
        return "–"
    low, high = (f"{round(value, digits) + 0.0:+.{digits}f}" for value in interval)  # adding zero turns −0 into 0
    return f"{low} to {high}"


def write_comparison(
    out: Path,
    result: dict,
    records: list[Record],
    predictions_a: list[Prediction],
    predictions_b: list[Prediction],
    data_dir: Path,
) -> None:
    """Write comparison.json with all numbers and comparison.html with the 24 images that differ most, side by side.

    `result` comes from `compare`; the caller adds "A" and "B", the names of the runs, and the "data" and "split" they share.
    """
    write_whole(out / "comparison.json", json.dumps(result, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    position = {record["id"]: i for i, record in enumerate(records)}
    cards = []
    for row in result["images"][:SHOWN]:
        i = position[row["id"]]
        images = _draw_both(records[i], predictions_a[i], predictions_b[i], data_dir)
        sides = [
            {"errors": row["errors"][side], "iou": row["mean_iou"][side], "image": images[side]} for side in (0, 1)
        ]
        cards.append(row | {"sides": sides})
    page = page_template(Path(__file__).with_name("comparison.html.jinja")).render(
        result=result, rows=_table_rows(result), cards=cards, colors=COLORS, images=len(records), draws=DRAWS
    )
    write_whole(out / "comparison.html", page)


def _draw_both(
    record: Record, prediction_a: Prediction, prediction_b: Prediction, data_dir: Path
) -> tuple[str | None, str | None]:
    """The image with the predictions of A and of B, as data URIs; None if the file is missing or cannot be read."""
    try:
        image = load_image(image_path(record, data_dir))
    except OSError:
        return None, None
    small = thumbnail(image, SIDE)
    scale = small.width / image.width
    a, b = (_draw_match(small, record, prediction, scale) for prediction in (prediction_a, prediction_b))
    return to_data_uri(a, MAX_BYTES), to_data_uri(b, MAX_BYTES)


def _draw_match(image: Image.Image, record: Record, prediction: Prediction, scale: float) -> Image.Image:
    """Ground truth, dashed where it was missed, and on top the predictions: true positives, and false positives with labels."""
    (match,) = match_images([record], [prediction])
    gt, predicted = record["objects"], prediction["objects"]
    found, hits = [j for _, j, _ in match.pairs], [i for i, _, _ in match.pairs]
    draw, places = (draw_points, predicted["point"]) if "point" in predicted else (draw_boxes, predicted["bbox"])

    def scaled(values: list[list[float]], chosen: list[int]) -> list[list[float]]:
        return [[value * scale for value in values[i]] for i in chosen]

    def no_labels(chosen: list[int]) -> list[str]:
        return [""] * len(chosen)

    missed_labels = [gt["category"][j] for j in match.missed]
    false_labels = [predicted["category"][i] for i in match.false_positives]
    image = draw_boxes(image, scaled(gt["bbox"], found), no_labels(found), COLORS["truth"])
    image = draw_boxes(image, scaled(gt["bbox"], match.missed), missed_labels, COLORS["truth"], dashed=True)
    image = draw(image, scaled(places, hits), no_labels(hits), COLORS["hit"])
    return draw(image, scaled(places, match.false_positives), false_labels, COLORS["false"])
