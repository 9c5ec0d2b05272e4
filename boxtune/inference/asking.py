"""Ask a detector about every record of a split and keep the predictions in a file; an interrupted call can be resumed."""

import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from boxtune.answers.confidence import SCORERS
from boxtune.answers.decoding import Decoding
from boxtune.answers.example_images import read_examples
from boxtune.answers.grounding import Grounding
from boxtune.answers.parts import questions_of
from boxtune.answers.prediction_writer import partial_of, predict
from boxtune.answers.predictions import Prediction
from boxtune.data.questions import first_question
from boxtune.data.records import Record, image_path
from boxtune.inference.detector import Detector
from boxtune.models.checkpoint import weights_identity


@dataclass(frozen=True)
class Answers:
    """Predictions in the order of the records, and those of an adapter's base if it was asked too."""

    tuned: list[Prediction]
    base: list[Prediction] = field(default_factory=list)


def answer_records(
    detector: Detector, records: list[Record], classes: list[str], data_dir: Path, out: Path, batch_size: int
) -> Answers:
    """A prediction for every record, also written to `out`/predictions.jsonl.

    classes: those that a question about all objects names. Images are read from the records' paths, relative to `data_dir`. A
    call with the same model, records and settings as an interrupted one generates only what is missing.
    """
    _warn_of_new_wording(records, classes, detector.grounding())
    settings = generation_settings(detector, records, data_dir)
    description = detector.servers[0].model["id"] if detector.servers else "predicting"
    ask = partial(detector.answer, batch_size=batch_size, data_dir=data_dir, classes=classes)
    return Answers(predict(ask, records, out / "predictions.jsonl", settings=settings, description=description))


def answer_records_with_base(
    detector: Detector, records: list[Record], classes: list[str], data_dir: Path, out: Path, batch_size: int
) -> Answers:
    """As `answer_records`, and the same for the adapter's base, whose predictions are written to `out`/base."""
    _warn_of_new_wording(records, classes, detector.grounding())
    settings = generation_settings(detector, records, data_dir)
    base_path = out / "base" / "predictions.jsonl"
    with detector.without_adapter() as base_detector:
        ask = partial(base_detector.answer, batch_size=batch_size, data_dir=data_dir, classes=classes)
        base_settings = settings | {"adapter": False}
        base = predict(ask, records, base_path, settings=base_settings, description="base model", keep_partial=True)
    ask = partial(detector.answer, batch_size=batch_size, data_dir=data_dir, classes=classes)
    tuned = predict(ask, records, out / "predictions.jsonl", settings=settings, description="tuned model")
    # The base's partial file is kept until here, so that a call interrupted during the adapter's responses does not repeat it.
    partial_of(base_path).unlink()
    return Answers(tuned, base)


def answer_records_with_settings(
    detector: Detector,
    records: list[Record],
    classes: list[str],
    data_dir: Path,
    folders: dict[Path, Decoding],
    batch_size: int,
) -> list[list[Prediction]]:
    """As `answer_records`, once for each folder and with its decode settings."""
    for ask in dict.fromkeys(decoding.ask for decoding in folders.values()):
        _warn_of_new_wording(records, classes, detector.grounding(Decoding(ask=ask)))
    found = []
    for folder, decoding in folders.items():
        settings = generation_settings(detector, records, data_dir, decoding)
        ask = partial(detector.answer, batch_size=batch_size, data_dir=data_dir, classes=classes, decoding=decoding)
        path, description = folder / "predictions.jsonl", f"ask {decoding.ask}, penalty {decoding.repetition_penalty:g}"
        description += ", verify" if decoding.verify else ""
        found.append(predict(ask, records, path, settings=settings, description=description, keep_partial=True))
    # All partial files are kept until here, so that an interrupted call repeats none of them.
    for folder in folders:
        partial_of(folder / "predictions.jsonl").unlink()
    return found


def generation_settings(
    detector: Detector, records: list[Record], data_dir: Path, decoding: Decoding | None = None
) -> dict[str, Any]:
    """Everything that the responses depend on, as JSON values. A call with other settings starts over."""
    settings = {
        "weights": weights_identity(detector.checkpoint),
        "grounding": asdict(detector.grounding(decoding)),
        "precision": detector.precision,
        "scorers": SCORERS,
        "questions": [[record["id"], first_question(record), *image_identity(record, data_dir)] for record in records],
    }
    if count := detector.grounding(decoding).decoding.teachers:
        examples = read_examples(detector.checkpoint.folder, count)
        settings["teachers"] = [image_identity(record, data_dir) for record in examples]
    if detector.servers:
        addresses = ",".join(server.url for server in detector.servers)
        settings |= {"server": addresses, "served": detector.servers[0].model["id"]}
    return settings


def image_identity(record: Record, data_dir: Path) -> list[Any]:
    """[path, width, height, file size, modification time], which change if the record's image is replaced."""
    path = image_path(record, data_dir)
    stamp = [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else []
    return [str(path.resolve()), record["width"], record["height"], *stamp]


def _warn_of_new_wording(records: list[Record], classes: list[str], grounding: Grounding) -> None:
    """Print a warning if a question about a record is not among those of training. `classes`: see `answer_records`."""
    asked = (questions_of(record, classes, grounding.decoding, grounding.descriptions) for record in records)
    new = {first_question(question) for questions in asked for question in questions} - set(grounding.questions)
    if grounding.questions and new:
        print(
            f"warning: {len(new)} question(s) were never trained on, such as {min(new)!r}; "
            f"training used, for example, {grounding.questions[0]!r}",
            file=sys.stderr,
        )
