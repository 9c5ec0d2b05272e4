"""--export: predictions in the formats of other tools."""

from pathlib import Path

from boxtune.answers.predictions import Prediction
from boxtune.data.records import Record
from boxtune.evaluation.results import print_notes
from boxtune.evaluation.split import Split
from boxtune.reports.exports import check_exports, export_predictions


def check_export(formats: list[str], out: Path, is_click: bool, records: list[Record]) -> None:
    """Raises UserError if `formats` cannot be written to `out`. Without formats there is nothing to check."""
    if formats:
        check_exports(formats, out, is_click, records)


def write_export(formats: list[str], out: Path, split: Split, predictions: list[Prediction]) -> None:
    """Write `predictions` to `out` in each of `formats`, and print what was written to stderr."""
    if formats:
        print_notes(
            export_predictions(formats, out, split.records, predictions, split.classes, split.name, split.data_dir)
        )
