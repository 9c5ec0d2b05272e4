"""report.html: one page with all numbers and the worst images first, readable without a network."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from boxtune.drawing import thumbnail, to_data_uri
from boxtune.files import write_whole
from boxtune.images import load_image
from boxtune.matching import ImageScore, image_scores, is_click, worst_first
from boxtune.records import Record, image_path
from boxtune.score_table import format_difference, format_number, headline_rows

# The longest side of a picture, in pixels of its thumbnail and in units of the drawing on top of it.
SIDE = 480
PLOT_CLASSES = 8
TILES = ("AP", "AP50", "mean IoU (all truth)", "precision", "recall", "F1")
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
    "bad_box": "a box has reversed corners, a wrong count or no numbers; it was dropped",
    "bad_label": "an object has no label; it was dropped",
    "clipped": "a coordinate lay outside the picture and was moved to its border",
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
    limit: int = 200,
) -> None:
    """Write one HTML file. `predictions[i]` answers `records[i]`; `metrics` and `curves` come from `score` and `curves`.

    Pictures are read from `data_dir`; one that is missing or torn is shown as a grey field and counted. At most `limit`
    images are shown, those with most errors. `baseline_metrics` are compared with `metrics` wherever a number stands.
    """
    scores = image_scores(records, predictions, metrics["matching"]["iou_threshold"])
    shown = worst_first(scores)[:limit]
    cards = [_card(records[i], predictions[i], scores[i], Path(data_dir)) for i in shown]
    page = _template().render(
        title=title,
        metrics=metrics,
        baseline=baseline_metrics,
        click=is_click(predictions),
        images=len(records),
        truth=sum(image.tp + image.fn for image in scores),
        numbers=_compare(headline_rows(metrics), headline_rows(baseline_metrics) if baseline_metrics else None),
        tiles=TILES,
        classes=[
            {"name": name, **row, "before": baseline_metrics["per_class"].get(name) if baseline_metrics else None}
            for name, row in metrics["per_class"].items()
        ],
        plot=_plot(curves, metrics),
        plot_classes=PLOT_CLASSES,
        meanings=MEANINGS,
        provenance=_flatten(metrics["provenance"]),
        cards=cards,
        no_picture=sum(card["picture"] is None for card in cards),
    )
    write_whole(path, page)


def _template():
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # labels and answers are whatever a model or a stranger's file says
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    environment.globals["difference"] = format_difference
    return environment.get_template("report.html.jinja")


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
    """The classes with most truth: name, AP50 and the curve as SVG points in a square of 100, up to the recall reached."""
    by_truth = sorted(curves, key=lambda name: -metrics["per_class"][name]["truth"])[:PLOT_CLASSES]
    return [
        {
            "name": name,
            "ap50": metrics["per_class"][name]["AP50"],
            "points": " ".join(
                f"{100 * recall:.1f},{100 - 100 * precision:.1f}"
                for recall, precision in zip(curves[name]["recall"], curves[name]["precision"], strict=True)
                if precision > 0
            ),
        }
        for name in by_truth
    ]


def _card(record: Record, prediction: dict, score: ImageScore, data_dir: Path) -> dict:
    """One image of the gallery."""
    picture, trouble = _picture(image_path(record, data_dir))
    scale = SIDE / max(record["width"], record["height"])
    return {
        "score": score,
        "image": record["image"],
        "picture": picture,
        "trouble": trouble,
        "width": round(record["width"] * scale, 1),
        "height": round(record["height"] * scale, 1),
        "shapes": _shapes(record["objects"], prediction["objects"], score, scale),
        "size": f"{record['width']} × {record['height']}",
        "problems": prediction["problems"],
        "text": prediction["text"],
        "seconds": prediction["seconds"],
    }


def _picture(path: Path) -> tuple[str | None, str]:
    """(data URI, "") or (None, what is wrong with the file)."""
    if not path.is_file():
        return None, "image file not found"
    try:
        return to_data_uri(thumbnail(load_image(path), SIDE)), ""
    except (OSError, ValueError, SyntaxError):  # what Pillow raises for a torn file
        return None, "image file cannot be read"


def _shapes(truth: dict, answers: dict, score: ImageScore, scale: float) -> list[dict]:
    """Everything drawn on one picture, truth first so that answers lie on top: kind, geometry, label and tooltip."""
    missed, ious = set(score.missed), {i: iou for i, _, iou in score.pairs}
    shapes = []
    for j, (box, label, ignored) in enumerate(zip(truth["bbox"], truth["category"], truth["ignore"], strict=True)):
        kind = "ignored" if ignored else "missed" if j in missed else "truth"
        tip = {"ignored": "ignored truth", "missed": "missed truth", "truth": "truth"}[kind]
        text = label if kind == "missed" else ""
        shapes.append({"kind": kind, "label": text, "tip": f"{label}: {tip}", **_geometry(box, scale)})
    for i, (place, label, value) in enumerate(
        zip(answers["point" if "point" in answers else "bbox"], answers["category"], answers["score"], strict=True)
    ):
        kind = "hit" if i in ious else "excused" if i in score.excused else "false"
        tip = {"hit": "true positive", "excused": "not counted, inside ignored truth", "false": "false positive"}[kind]
        tip += ", duplicate" if i in score.duplicates else ""
        tip += "" if ious.get(i) is None else f", IoU {ious[i]:.2f}"
        shapes.append(
            {"kind": kind, "label": label, "tip": f"{label}: {tip}, score {value:.2f}", **_geometry(place, scale)}
        )
    return shapes


def _geometry(values: list[float], scale: float) -> dict:
    """A box or a point in units of the drawing."""
    x, y, *far = (round(value * scale, 1) for value in values)
    if not far:
        return {"shape": "point", "x": x, "y": y}
    return {"shape": "box", "x": x, "y": y, "w": round(far[0] - x, 1), "h": round(far[1] - y, 1)}
