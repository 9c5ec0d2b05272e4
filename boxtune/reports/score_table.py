"""metrics.json as tables for a terminal, for one or more runs."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from boxtune.common.numbers import format_difference, format_interval, format_number

MEAN_IOU = "mean IoU (all ground truth)"
# {title of a row: its key in the "intervals" of metrics.json}
INTERVALS = {"AP": "AP", "AP50": "AP50", MEAN_IOU: "mean_iou_gt", "F1": "f1"}
# A run with a longer name gets a letter as its heading; the name is then printed above the table.
MAX_HEADING = 12


def headline_rows(metrics: dict) -> dict[str, float | int | None]:
    """{title: value} in reading order. For points, precision, recall and the counts come from `points`."""
    matching, rates, absent = metrics["matching"], metrics["points"] or metrics["matching"], metrics["absent"] or {}
    return {
        "AP": metrics["AP"],
        "AP50": metrics["AP50"],
        "AP75": metrics["AP75"],
        "AP, constant scores": metrics["AP_constant_score"]["mean"],
        "calibration error": metrics["calibration"]["expected_calibration_error"],
        MEAN_IOU: matching["mean_iou_gt"],
        "mean IoU (matched boxes)": matching["mean_iou_tp"],
        "precision": rates["precision"],
        "recall": rates["recall"],
        "F1": rates["f1"],
        "F1, mean over classes": matching["f1_macro"],
        "true positives": rates["tp"],
        "false positives": rates["fp"],
        "false negatives": rates["fn"],
        "duplicate boxes": metrics["duplicate_boxes"],
        "unknown-label boxes": metrics["unknown_label_boxes"],
        "wrong-class boxes": metrics["mistakes"]["wrong_class"],
        "badly localized boxes": metrics["mistakes"]["localisation"],
        "background boxes": metrics["mistakes"]["background"],
        "empty images": metrics["empty_images"]["images"],
        "empty images with boxes": metrics["empty_images"]["with_false_positives"],
        "questions about absent classes": absent.get("asked"),
        "of these with boxes": absent.get("with_boxes"),
        "responses": metrics["parse"]["images"],
        "responses without problems": metrics["parse"]["clean"],
        "unparsable responses": metrics["parse"]["problems"].get("unparsable", 0),
    }


def format_table(metrics_by_name: dict[str, dict]) -> Group:
    """One row per number, one column per run. One run also has 95 % intervals; two have the second minus the first."""
    headings = _headings(list(metrics_by_name))
    runs = list(metrics_by_name.values())
    last_column = {1: "95 % interval", 2: "difference"}.get(len(runs))
    table = Table()
    table.add_column("", no_wrap=True)
    for heading in [*headings, *([last_column] if last_column else [])]:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    columns = [headline_rows(metrics) for metrics in runs]
    for title in columns[0]:
        values = [column[title] for column in columns]
        if all(value is None for value in values):
            continue
        cells = [format_number(value) for value in values]
        if len(runs) == 1:
            cells.append(format_interval(runs[0]["intervals"].get(INTERVALS.get(title))))
        if len(runs) == 2:
            cells.append(format_difference(*values))
        table.add_row(title, *cells)
    return Group(*_legend(headings, list(metrics_by_name)), table)


def format_class_table(metrics_by_name: dict[str, dict]) -> Group:
    """AP, F1, TP, FP and FN of every class, with one row per class and one line per run in it.

    In a terminal of 80 columns only names of classes wrap. Numbers of up to six digits are never cut.
    """
    headings = _headings(list(metrics_by_name))
    has_run_column = len(headings) > 1
    table = Table(padding=0)
    table.add_column("class", overflow="fold")
    if has_run_column:
        table.add_column("run", no_wrap=True)
    for heading in ("ground\ntruth", "AP", "F1", "TP", "FP", "FN"):
        table.add_column(heading, justify="right", no_wrap=True)
    per_class = [metrics["per_class"] for metrics in metrics_by_name.values()]
    for label in dict.fromkeys(label for run in per_class for label in run):
        rows = [run.get(label, {}) for run in per_class]
        gt_boxes = next(row["truth"] for row in rows if row)
        # Text instead of str, because names may contain rich's markup.
        names = [Text(label), Text("\n".join(headings))] if has_run_column else [Text(label)]
        numbers = ["\n".join(format_number(row.get(key)) for row in rows) for key in ("AP", "f1", "tp", "fp", "fn")]
        table.add_row(*names, str(gt_boxes), *numbers)
    legend = _legend(headings, list(metrics_by_name)) if has_run_column else []
    return Group(*legend, table)


def _headings(names: list[str]) -> list[str]:
    """Headings of the runs: their names, or letters if one of the names is too long for a column."""
    if all(len(name) <= MAX_HEADING for name in names):
        return names
    return ["this run"] if len(names) == 1 else [chr(ord("A") + i) for i in range(len(names))]


def _legend(headings: list[str], names: list[str]) -> list[Text]:
    """Lines that explain the headings that are not names."""
    lines = zip(headings, names, strict=True)
    return [Text(f"{heading}: {name}", overflow="fold") for heading, name in lines if heading != name]
