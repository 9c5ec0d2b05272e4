"""metrics.json as tables for a terminal, one column per run."""

from rich.table import Table
from rich.text import Text

from boxtune.common.numbers import format_difference, format_interval, format_number

# Which rows have an interval.
INTERVALS = {"AP": "AP", "AP50": "AP50", "mean IoU (all truth)": "mean_iou_gt", "F1": "f1"}


def headline_rows(metrics: dict) -> dict[str, float | int | None]:
    """{title: value} in the order of reading. Click answers take precision and its kin from `points`."""
    matching, rates = metrics["matching"], metrics["points"] or metrics["matching"]
    return {
        "AP": metrics["AP"],
        "AP50": metrics["AP50"],
        "AP75": metrics["AP75"],
        "AP, scores made equal": metrics["AP_constant_score"]["mean"],
        "calibration error": metrics["calibration"]["expected_calibration_error"],
        "mean IoU (all truth)": matching["mean_iou_gt"],
        "mean IoU (matched)": matching["mean_iou_tp"],
        "precision": rates["precision"],
        "recall": rates["recall"],
        "F1": rates["f1"],
        "F1, mean of classes": matching["f1_macro"],
        "true positives": rates["tp"],
        "false positives": rates["fp"],
        "false negatives": rates["fn"],
        "duplicate boxes": metrics["duplicate_boxes"],
        "boxes of unknown label": metrics["unknown_label_boxes"],
        "boxes of the wrong class": metrics["mistakes"]["wrong_class"],
        "boxes off their object": metrics["mistakes"]["localisation"],
        "boxes on background": metrics["mistakes"]["background"],
        "empty images": metrics["empty_images"]["images"],
        "empty images with boxes": metrics["empty_images"]["with_false_positives"],
        "answers": metrics["parse"]["images"],
        "answers without a problem": metrics["parse"]["clean"],
        "unparsable answers": metrics["parse"]["problems"].get("unparsable", 0),
    }


def format_table(metrics_by_name: dict[str, dict]) -> Table:
    """One row per number, one column per run; of one run also 95 % intervals, of two also the second minus the first."""
    table = Table()
    table.add_column("")
    for name in metrics_by_name:
        table.add_column(Text(name), justify="right")
    one, two = (len(metrics_by_name) == runs for runs in (1, 2))
    if one or two:
        table.add_column("95 % interval" if one else "difference", justify="right")
    columns = [headline_rows(metrics) for metrics in metrics_by_name.values()]
    intervals = next(iter(metrics_by_name.values()))["intervals"]
    for title in columns[0]:
        values = [column[title] for column in columns]
        if any(value is not None for value in values):
            last = [format_difference(*values)] if two else [format_interval(intervals.get(INTERVALS.get(title)))]
            table.add_row(title, *map(format_number, values), *(last if one or two else []))
    return table


def format_class_table(metrics_by_name: dict[str, dict]) -> Table:
    """One row per class; AP, F1, TP, FP and FN of every run. Two runs fit 80 columns; of numbers no digit is ever cut."""
    table = Table(padding=(0, 1) if len(metrics_by_name) == 1 else 0)
    table.add_column("class", overflow="fold")
    table.add_column("truth", justify="right", no_wrap=True)
    for name in metrics_by_name:
        for i, column in enumerate(("AP", "F1", "TP", "FP", "FN")):
            head = Text(f"{name}\n{column}" if i == 0 else f"\n{column}")
            table.add_column(head, justify="right", no_wrap=True)
    runs = [metrics["per_class"] for metrics in metrics_by_name.values()]
    for label in dict.fromkeys(label for run in runs for label in run):
        rows = [run.get(label, {}) for run in runs]
        truth = next(row["truth"] for row in rows if row)
        cells = [format_number(row.get(key)) for row in rows for key in ("AP", "f1", "tp", "fp", "fn")]
        # Text, not str: a label may hold what rich takes for markup.
        table.add_row(Text(label), str(truth), *cells)
    return table
