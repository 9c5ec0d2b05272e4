"""report.html: one page with all numbers and a gallery of pictures, readable without a network.

The page is static HTML for the numbers, and JSON with report.js for what can be asked of them: galleries, filters and the
score threshold. It matches again whenever the threshold moves, from the IoUs that are stored beside the boxes.
"""

import base64
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from boxtune.common.drawing import thumbnail, to_data_uri
from boxtune.common.files import write_whole
from boxtune.common.numbers import format_difference
from boxtune.common.templates import page_template
from boxtune.data.boxes import box_iou
from boxtune.data.images import load_image
from boxtune.data.records import Record, image_path
from boxtune.metrics.bootstrap import DRAWS
from boxtune.metrics.error_types import ERROR_TYPES, error_types
from boxtune.metrics.matching import ImageMatch, is_click, match_images, same_label, worst_first
from boxtune.reports.score_table import INTERVALS, headline_rows

# All pictures of a page together; as base64 they are a third longer, and a page of 1,000 stays under 20 MB.
IMAGE_BYTES = 11_000_000
MAX_IMAGE_BYTES = 60_000
# The longest side of a picture: with more than MANY on one page, a smaller one looks better than a coarser one.
SIDE, SIDE_OF_MANY, MANY = 480, 360, 400
WORKERS = 4
PLOT_CLASSES = 8
MATRIX_CLASSES = 20
TILES = ("AP", "AP50", "mean IoU (all truth)", "precision", "recall", "F1")
# What a parser may report: of the text once an answer, of an object once for each.
MEANINGS = {
    "fence": "a code fence stood around the answer",
    "prose": "words stood around the objects",
    "spacing": "spacing differs from what was trained",
    "quotes": "quotes are missing or single",
    "float": "coordinates are not whole numbers",
    "key_order": "keys are missing or in another order",
    "truncated": "the answer breaks off; the objects before that count",
    "looped": "one sequence stood three times over; the answer was ended there",
    "unparsable": "nothing could be read; the answer counts as empty",
    "bad_box": "a box has reversed corners, a wrong count or no numbers, or an object says none; it was dropped",
    "bad_label": "an object has no label; it was dropped",
    "clipped": "a coordinate lay outside the picture and was moved to its border",
    "noise": "an object that the model itself labelled as none; it was dropped, and the answer counts as clean",
    "missing": "no prediction for this image; it counts as an empty answer",
}


def write_report(
    path: str | Path,
    records: list[Record],
    predictions: list[dict],
    metrics: dict,
    curves: dict[str, dict[str, list[float]]],
    data_dir: str | Path,
    title: str,
    baseline_metrics: dict | None = None,
    limit: int = 1000,
    seed: int = 0,
) -> None:
    """Write one HTML file. `predictions[i]` answers `records[i]`; `metrics` and `curves` come from `score` and `curves`.

    ImageFinder are read from `data_dir`; one that is missing or torn is shown as a grey field and counted. Of more than `limit`
    images the page shows that many: the worst half, and others drawn by `seed`. `baseline_metrics`, those of the
    base model before training, are compared with `metrics` wherever a number stands.
    """
    iou_threshold, classes, click = metrics["matching"]["iou_threshold"], [*metrics["per_class"]], is_click(predictions)
    scores = match_images(records, predictions, iou_threshold)
    excused = [image.excused for image in match_images([_only_ignored(record) for record in records], predictions)]
    images = [_image(*row, classes, iou_threshold) for row in zip(records, predictions, scores, excused, strict=True)]
    shown, drawn = _choose(scores, limit, seed)
    for i in shown:
        _add_drawing(images[i], records[i], predictions[i])
    no_picture = _add_images([(images[i], image_path(records[i], Path(data_dir))) for i in sorted(shown)])
    script = Path(__file__).with_name("report.js").read_text(encoding="utf-8")
    page = page_template(Path(__file__).with_name("report.html.jinja")).render(
        title=title,
        metrics=metrics,
        baseline=baseline_metrics,
        click=click,
        has_threshold=not click and metrics["score_source"] != "constant",
        images=len(records),
        truth=sum(image.tp + image.fn for image in scores),
        numbers=_compare(headline_rows(metrics), headline_rows(baseline_metrics) if baseline_metrics else None),
        draws=DRAWS,
        tiles={name: metrics["intervals"].get(INTERVALS.get(name)) for name in TILES},
        classes=[
            {"name": name, **row, "before": baseline_metrics["per_class"].get(name) if baseline_metrics else None}
            for name, row in metrics["per_class"].items()
        ],
        plot=_plot(curves, metrics),
        plot_classes=PLOT_CLASSES,
        confusion=_confusion(metrics["confusion"], metrics["per_class"]),
        meanings=MEANINGS,
        kinds=ERROR_TYPES,
        provenance=_flatten(metrics["provenance"]),
        shown=len(shown),
        worst=_worst_half(limit),
        no_picture=no_picture,
        data={"click": click, "iou_threshold": iou_threshold, "classes": classes, "random": drawn, "images": images},
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )
    write_whole(path, page)


def _compare(rows: dict, before: dict | None) -> dict[str, dict]:
    """{title: {"value", "before", "change"}}; the latter two are None where there is no baseline."""
    return {
        name: {
            "value": value,
            "before": before and before[name],
            "change": format_difference(before[name], value) if before else None,
        }
        for name, value in rows.items()
        if value is not None
    }


def _flatten(value: dict, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested provenance as rows: {"versions": {"torch": "2"}} → [("versions.torch", "2")]."""
    rows = []
    for key, item in value.items():
        rows += _flatten(item, f"{prefix}{key}.") if isinstance(item, dict) else [(f"{prefix}{key}", item)]
    return rows


def _plot(curves: dict, metrics: dict) -> list[dict]:
    """The classes with most truth: name, number, AP50, precision and recall of the counts, and the curve as SVG points in a
    square of 100, up to the recall reached."""
    per_class = metrics["per_class"]
    number = {name: i for i, name in enumerate(per_class)}
    by_truth = sorted(curves, key=lambda name: -per_class[name]["truth"])[:PLOT_CLASSES]
    return [
        {
            "name": name,
            "number": number[name],
            "ap50": per_class[name]["AP50"],
            "precision": per_class[name]["precision"],
            "recall": per_class[name]["recall"],
            "points": " ".join(
                f"{100 * recall:.1f},{100 - 100 * precision:.1f}"
                for recall, precision in zip(curves[name]["recall"], curves[name]["precision"], strict=True)
                if precision > 0
            ),
        }
        for name in by_truth
    ]


def _confusion(confusion: dict, per_class: dict) -> dict:
    """The matrix of the classes with most truth, and of the rows and columns that are no class.

    "rows": [(name, is a class, [(count, share of its row, is on the diagonal)])], "columns": [(name, is a class)], "classes": how
    many of the classes it shows. A class may bear the name of a row that is none.
    """
    count = len(confusion["rows"]) - 1  # the classes come first, in rows and columns alike
    by_truth = sorted(range(count), key=lambda i: -per_class[confusion["rows"][i]]["truth"])
    kept = sorted(by_truth[:MATRIX_CLASSES])
    columns = [*kept, *range(count, len(confusion["columns"]))]
    rows = []
    for i in (*kept, count):
        row = confusion["matrix"][i]
        cells = [(row[j], row[j] / max(1, sum(row)), i == j < count) for j in columns]
        rows.append((confusion["rows"][i], i < count, cells))
    return {"rows": rows, "columns": [(confusion["columns"][j], j < count) for j in columns], "classes": len(kept)}


def _worst_half(limit: int) -> int:
    return limit - limit // 2


def _choose(scores: list[ImageMatch], limit: int, seed: int) -> tuple[set[int], list[int]]:
    """(positions of the images to show, those of them that were drawn, in the order of drawing).

    What is drawn comes from all images, the worst among them, so that it gives a fair impression of the split.
    """
    order = np.random.default_rng(seed).permutation(len(scores)).tolist()
    if len(scores) <= limit:
        return {*order}, order
    shown, drawn = {*worst_first(scores)[: _worst_half(limit)]}, []
    for i in order:
        if len(shown) == limit:
            break
        shown.add(i)
        drawn.append(i)
    return shown, drawn


def _only_ignored(record: Record) -> dict:
    """The record without its truth that counts: what match_images excuses of it is excused wherever nothing matches it."""
    objects = record["objects"]
    ignored = [j for j, is_ignored in enumerate(objects["ignore"]) if is_ignored]
    return record | {"objects": {key: [objects[key][j] for j in ignored] for key in ("bbox", "category", "ignore")}}


def _image(
    record: Record, prediction: dict, score: ImageMatch, excused: list[int], classes: list[str], iou_threshold: float
) -> dict:
    """What the page needs to count one image at any score threshold.

    `answers.otherwise` is what an answer is where no truth matches it: "excused" or a key of ERROR_TYPES. `pairs` are
    [answer, truth, IoU], the best first and ties in the order of `boxtune.data.boxes.match_greedy`. Which point belongs to which
    box takes more than a greedy matching, but points have no threshold: their pairs are those of `score`, their IoU is 1.
    """
    truth, answers = record["objects"], prediction["objects"]
    unmatched = replace(score, false=[*range(len(answers["category"]))])
    kinds = error_types(record, prediction, unmatched, classes, iou_threshold) | dict.fromkeys(excused, "excused")
    return {
        "truth": {"label": _stripped(truth["category"]), "ignored": truth["ignore"]},
        "answers": {
            "label": _stripped(answers["category"]),
            "score": answers["score"],
            "otherwise": [kinds[i] for i in unmatched.false],
        },
        "pairs": [(i, j, 1.0) for i, j, _ in score.pairs] if "point" in answers else _pairs(truth, answers),
        "problems": prediction["problems"],
    }


def _pairs(truth: dict, answers: dict) -> list[tuple[int, int, float]]:
    """(answer, truth, IoU) of the same class, ignored truth left out, wherever they overlap; the best first."""
    iou = box_iou(answers["bbox"], truth["bbox"]) * same_label(answers["category"], truth["category"])
    iou[:, np.flatnonzero(truth["ignore"])] = 0
    pairs = ((int(i), int(j), float(iou[i, j])) for i, j in zip(*np.nonzero(iou), strict=True))
    return sorted(pairs, key=lambda pair: -pair[2])


def _add_drawing(image: dict, record: Record, prediction: dict) -> None:
    """What the page needs besides to draw the image on a card; boxes and points in pixels of the original."""
    answers = prediction["objects"]
    image["truth"]["place"] = [_rounded(box) for box in record["objects"]["bbox"]]
    image["answers"]["place"] = [_rounded(place) for place in answers["point" if "point" in answers else "bbox"]]
    image |= {key: record[key] for key in ("id", "image", "width", "height")}
    image |= {key: prediction[key] for key in ("text", "seconds")}


def _stripped(labels: list[str]) -> list[str]:
    return [label.strip() for label in labels]


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 1) for value in values]


def _add_images(rows: list[tuple[dict, Path]]) -> int:
    """Give each image of the page its `picture`, a data URI, or else its `trouble`; returns how many have none."""
    side = SIDE if len(rows) <= MANY else SIDE_OF_MANY
    max_bytes = min(MAX_IMAGE_BYTES, IMAGE_BYTES // max(1, len(rows)))
    with ThreadPoolExecutor(WORKERS) as pool:
        pictures = [*pool.map(lambda row: _picture(row[1], side, max_bytes), rows)]
    for (image, _), (picture, trouble) in zip(rows, pictures, strict=True):
        image |= {"picture": picture, "trouble": trouble}
    return sum(picture is None for picture, _ in pictures)


def _picture(path: Path, side: int, max_bytes: int) -> tuple[str | None, str]:
    """(data URI, "") or (None, what is wrong with the file)."""
    if not path.is_file():
        return None, "image file not found"
    try:
        return to_data_uri(thumbnail(load_image(path), side), max_bytes), ""
    except OSError:
        return None, "image file cannot be read"
