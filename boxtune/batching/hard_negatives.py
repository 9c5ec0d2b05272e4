"""Which absent class to ask for: more often one that an earlier model predicted wrongly."""

import json
from pathlib import Path

from boxtune.common.errors import UserError, reading

# {predicted class: {class of the ground truth, None for background: number of boxes}}, without correct predictions
Confused = dict[str, dict[str | None, int]]


def read_confused(path: Path, classes: list[str]) -> Confused:
    """The wrong predictions of each class, from the confusion matrix of a metrics.json.

    Raises UserError if the file cannot be read, is no metrics.json, or shares no class with `classes`.
    """
    with reading(f"negative_from: the confusion matrix in {path}", "Give the metrics.json of an evaluation."):
        confusion = json.loads(path.read_text(encoding="utf-8"))["confusion"]
        matrix, columns = confusion["matrix"], confusion["columns"]
        known = confusion["rows"][:-1]  # the last row is background
    if not set(classes) & set(known):
        raise UserError(
            f"negative_from: {path} has none of this dataset's classes. It has {', '.join(known[:20])}; the dataset has "
            f"{', '.join(classes[:20])}. Give the metrics.json of an evaluation on these classes."
        )
    confused: Confused = {name: {} for name in classes}
    for actual, row in zip([*known, None], matrix, strict=True):
        for predicted, count in zip(columns, row, strict=True):
            if predicted in confused and predicted != actual:
                confused[predicted][actual] = count
    return confused


def mistake_weight(confused: Confused, absent: str, present: set[str]) -> int:
    """One, plus the number of times that `absent` was predicted on classes in `present` or on background.

    The one keeps the classes that were never predicted wrongly.
    """
    return 1 + sum(confused[absent].get(name, 0) for name in (*present, None))
