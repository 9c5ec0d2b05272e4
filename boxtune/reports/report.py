"""report.html: one page with all numbers and a gallery of images, readable without a network.

The numbers are static HTML. Galleries, filters and the minimum score are JSON plus SCRIPTS. The page stays below 20 MB at any
number of images and boxes: what is counted is aggregated, and what is drawn has a budget.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from boxtune.answers.predictions import Prediction
from boxtune.common.files import write_whole
from boxtune.common.numbers import format_difference
from boxtune.common.templates import page_template
from boxtune.data.boxes import COCO_SIZES
from boxtune.data.records import Record, image_path
from boxtune.metrics.bootstrap import DRAWS
from boxtune.metrics.error_types import ERROR_TYPES
from boxtune.metrics.guardrail_rules import Probes
from boxtune.metrics.matching import is_click
from boxtune.metrics.minimum_score import outcomes
from boxtune.metrics.misses import MISS_CAUSES
from boxtune.metrics.scoring import Shared, share
from boxtune.reports.guardrail_table import domain_rows, probe_rows
from boxtune.reports.report_data import OBJECT_BYTES, counts_data, gallery_data, object_bytes
from boxtune.reports.report_images import choose_images, load_images
from boxtune.reports.score_table import INTERVALS, MEAN_IOU, headline_rows

PAGE_BYTES = 19_800_000
SCRIPTS = ("report_counts.js", "report_filters.js", "report_cards.js", "report_tables.js", "report.js")
PLOT_CLASSES = 8
# With more classes than this, the page lists the most confused pairs instead of the confusion matrix.
MATRIX_CLASSES = 20
CONFUSED_PAIRS = 200
# With more classes than this, the table per class has a search field.
SEARCHED_CLASSES = 12
# What the page calls the error types and the causes of misses.
ERROR_NAMES = {kind: kind.replace("_", " ") for kind in ERROR_TYPES} | {"localisation": "poorly placed"}
CAUSE_NAMES = {
    "taken": "shared box",
    "wrong_class": "box of another class",
    "localisation": "poorly placed box",
    "no_box": "no box near",
}
# The numbers at the top of the page.
TILES = ("AP", "AP50", MEAN_IOU, "precision", "recall", "F1")
# The problems that a parser reports: once per response for its text, once per object for objects.
MEANINGS = {
    "fence": "the response is wrapped in a code fence",
    "prose": "there is text around the objects",
    "spacing": "the spacing or the notation differs from the trained format",
    "thinking": "the model thought before it answered; only the text after that is read",
    "quotes": "quotes are missing or other than in JSON, numbers are in quotes, or colons are = or full-width",
    "float": "coordinates are not whole numbers",
    "key_order": "keys are missing, doubled or in another order",
    "truncated": "the response ends early; the objects before that count",
    "looped": "the response repeated one sequence three times; it was stopped there",
    "unparsable": "nothing could be read; the response counts as empty",
    "bad_box": "the box has reversed corners, a wrong number of values or no numbers, or the object has no box; it was dropped",
    "bad_label": "the object has no label, or one that cannot be read; it was dropped",
    "bad_caption": "the caption cannot be read; the object was kept without it",
    "no_label": "the object has no label; it took the one class that was asked for",
    "snapped": "the label is no candidate phrase and was replaced by the nearest one",
    "label_case": "the label differs from a class in case, width or outer space; it counts as that class",
    "clipped": "a coordinate was outside the image and was moved to its border",
    "noise": "the model itself labeled the object as noise; it was dropped, and the response counts as clean",
    "gated": "the gate found none of the classes in the image, so it was not asked about; the response is clean",
    "low_score": "the score is below score_threshold; the object was dropped, the response is clean",
    "suppressed": "a box of the same label overlaps it by more than suppress_iou; the object was dropped, the response is clean",
    "merged": "several tiles showed the object; its boxes became one, the response is clean",
    "missing": "there is no prediction for the image; it counts as an empty response",
}


def write_report(
    path: str | Path,
    records: list[Record],
    predictions: list[Prediction],
    metrics: dict,
    curves: dict[str, dict[str, list[float]]],
    data_dir: str | Path,
    title: str,
    baseline_metrics: dict | None = None,
    limit: int = 1000,
    seed: int = 0,
    shared: Shared | None = None,
    probes: Probes | None = None,
) -> None:
    """Write one HTML file. `predictions[i]` belongs to `records[i]`; `metrics` and `curves` come from `score` and `curves`.

    Image files are read from `data_dir`; a missing or unreadable one is shown as a gray area and counted. The page shows at
    most `limit` images: the worst half, and others drawn with `seed`. `baseline_metrics`, those of the base model before
    training, are shown next to `metrics`. `shared` comes from `share`, if it was made already. `probes`: guardrails, if they were
    measured.
    """
    iou_threshold, classes, click = metrics["matching"]["iou_threshold"], [*metrics["per_class"]], is_click(predictions)
    shared = shared or share(records, predictions, classes, iou_threshold)
    matches = shared.images

    all_outcomes = outcomes(records, predictions, matches, classes, iou_threshold, shared.split)
    shown = choose_images(matches, object_bytes(all_outcomes, len(records)), limit, OBJECT_BYTES, seed)
    number = {i: n for n, i in enumerate(shown.positions)}
    data = {
        "click": click,
        "iou_threshold": iou_threshold,
        "classes": classes,
        "names": ERROR_NAMES | {f"missed_{cause}": name for cause, name in CAUSE_NAMES.items()},
        "counts": counts_data(all_outcomes),
        "random": [number[i] for i in shown.random],
        **gallery_data(records, predictions, matches, all_outcomes, shown.positions),
    }
    script = "".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in SCRIPTS)
    variables = {
        "title": title,
        "click": click,
        "has_threshold": not click and metrics["score_source"] != "constant",
        "images": len(records),
        "gt_boxes": sum(match.tp + match.fn for match in matches),
        **_number_variables(metrics, curves, baseline_metrics),
        "probes": probe_rows(probes or {}),
        "domains": domain_rows(probes or {}),
        "shown": shown,
        "script": script,
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    }
    template = page_template(Path(__file__).with_name("report.html.jinja"))
    # The image files get what the rest of the page leaves.
    rest = len(json.dumps(data)) + len(template.render(**variables, without_file=0, data={}).encode(errors="replace"))
    images = load_images([image_path(records[i], Path(data_dir)) for i in shown.positions], PAGE_BYTES - rest)
    for entry, image in zip(data["images"], images, strict=True):
        entry |= {"data_uri": image.data_uri, "image_problem": image.problem}
    page = template.render(**variables, without_file=sum(bool(image.problem) for image in images), data=data)
    write_whole(path, page)


def _number_variables(
    metrics: dict, curves: dict[str, dict[str, list[float]]], baseline: dict | None
) -> dict[str, Any]:
    """The variables of the template that show numbers of metrics.json."""
    return {
        "metrics": metrics,
        "baseline": baseline,
        "numbers": _compare(headline_rows(metrics), headline_rows(baseline) if baseline else None),
        "draws": DRAWS,
        "tiles": {name: metrics["intervals"].get(INTERVALS.get(name)) for name in TILES},
        "classes": [
            {"name": name, **row, "before": baseline["per_class"].get(name) if baseline else None}
            for name, row in metrics["per_class"].items()
        ],
        "plot": _plot(curves, metrics["per_class"]),
        "plot_classes": PLOT_CLASSES,
        "matrix": _matrix(metrics["confusion"]) if len(metrics["per_class"]) <= MATRIX_CLASSES else None,
        "confused": _confused_pairs(metrics["confusion"]),
        "meanings": MEANINGS,
        "error_types": ERROR_TYPES,
        "error_names": ERROR_NAMES,
        "miss_causes": MISS_CAUSES,
        "cause_names": CAUSE_NAMES,
        "sizes": COCO_SIZES,
        "searched_classes": SEARCHED_CLASSES,
        "confused_pairs": CONFUSED_PAIRS,
        "provenance": _flatten(metrics["provenance"]),
    }


def _compare(rows: dict, before: dict | None) -> dict[str, dict]:
    """{title: {"value", "before", "change"}} of the numbers that are defined; the latter two are None without a baseline."""
    return {
        name: {
            "value": value,
            "before": before[name] if before else None,
            "change": format_difference(before[name], value) if before else None,
        }
        for name, value in rows.items()
        if value is not None
    }


def _flatten(value: dict, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested provenance as rows: {"versions": {"torch": "2"}} → [("versions.torch", "2")]."""
    rows: list[tuple[str, Any]] = []
    for key, item in value.items():
        rows += _flatten(item, f"{prefix}{key}.") if isinstance(item, dict) else [(f"{prefix}{key}", item)]
    return rows


def _plot(curves: dict[str, dict[str, list[float]]], per_class: dict) -> list[dict]:
    """The precision–recall curves of the classes with the most ground truth boxes.

    name; number: of the class; ap50; precision and recall: of all its predictions; points: the curve as SVG points in a square
    of 100 × 100, up to the highest recall reached.
    """
    number = {name: i for i, name in enumerate(per_class)}
    most_boxes = sorted(curves, key=lambda name: -per_class[name]["truth"])[:PLOT_CLASSES]
    return [
        {
            "name": name,
            "number": number[name],
            "ap50": per_class[name]["AP50"],
            "precision": per_class[name]["precision"],
            "recall": per_class[name]["recall"],
            "points": _svg_points(curves[name]["recall"], curves[name]["precision"]),
        }
        for name in most_boxes
    ]


def _svg_points(recalls: list[float], precisions: list[float]) -> str:
    points = zip(recalls, precisions, strict=True)
    return " ".join(f"{100 * recall:.1f},{100 - 100 * precision:.1f}" for recall, precision in points if precision > 0)


def _matrix(confusion: dict) -> dict:
    """The confusion matrix.

    rows: [(name, is it a class, [(count, share of its row, is it on the diagonal)])]; columns: [(name, is it a class)]. A name
    alone does not show whether it is a class: a class may be called "background".
    """
    class_count = len(confusion["rows"]) - 1  # rows and columns begin with the classes
    rows = []
    for i, (name, counts) in enumerate(zip(confusion["rows"], confusion["matrix"], strict=True)):
        total = max(1, sum(counts))
        cells = [(count, count / total, i == j and i < class_count) for j, count in enumerate(counts)]
        rows.append((name, i < class_count, cells))
    return {"rows": rows, "columns": [(name, j < class_count) for j, name in enumerate(confusion["columns"])]}


def _confused_pairs(confusion: dict) -> list[dict]:
    """The pairs of a class and another predicted label with the most boxes, most first.

    row, column: the cell of the confusion matrix; truth, predicted: the names; is_class: whether the predicted label is one;
    count: boxes; share: of the class's ground truth boxes.
    """
    class_count = len(confusion["rows"]) - 1
    matrix = np.array(confusion["matrix"], dtype=np.int64)
    confused = matrix[:class_count, : class_count + 1].copy()  # with the column of unknown labels
    np.fill_diagonal(confused, 0)
    rows, columns = np.nonzero(confused)
    most = np.argsort(-confused[rows, columns], kind="stable")[:CONFUSED_PAIRS]
    totals = matrix.sum(axis=1)
    return [
        {
            "row": i,
            "column": j,
            "truth": confusion["rows"][i],
            "predicted": confusion["columns"][j],
            "is_class": j < class_count,
            "count": int(confused[i, j]),
            "share": float(confused[i, j] / totals[i]),
        }
        for i, j in zip(rows[most].tolist(), columns[most].tolist(), strict=True)
    ]
