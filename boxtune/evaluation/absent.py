"""--absent: ask about classes that the images lack, and count the responses with boxes."""

import random
from pathlib import Path
from typing import Any

from boxtune.data.questions import Descriptions, answer_category, turns_for
from boxtune.data.records import Record, with_objects
from boxtune.evaluation.split import Split
from boxtune.inference.asking import answer_records
from boxtune.inference.detector import Detector

# More questions about an image would cost much on datasets with many classes.
PER_IMAGE = 3


def ask_absent(detector: Detector, split: Split, out: Path, batch_size: int) -> dict[str, Any]:
    """{"asked": number of questions, "with_boxes": number of responses with a box, "rate": their fraction or None}.

    The predictions are written to `out`/absent.
    """
    questions = absent_questions(split.records, split.classes, detector.checkpoint.grounding.descriptions)
    if not questions:
        return {"asked": 0, "with_boxes": 0, "rate": None}
    answers = answer_records(detector, questions, split.classes, split.data_dir, out / "absent", batch_size).tuned
    with_boxes = sum(bool(prediction["objects"]["category"]) for prediction in answers)
    return {"asked": len(questions), "with_boxes": with_boxes, "rate": with_boxes / len(questions)}


def absent_questions(records: list[Record], classes: list[str], descriptions: Descriptions) -> list[Record]:
    """For each image, a question about each of up to PER_IMAGE of the `classes` that it lacks. The choice depends on its id.

    Images whose own question is not about all classes are left out: they may contain objects that are not in the record.
    """
    questions = []
    for record in records:
        if answer_category(record["messages"][1]["content"]) != (True, None):
            continue
        lacking = [name for name in classes if name not in record["objects"]["category"]]
        for name in random.Random(record["id"]).sample(lacking, min(PER_IMAGE, len(lacking))):
            turns = {"id": f"{record['id']}/{name}", "messages": turns_for(classes, name, descriptions)}
            questions.append(with_objects(record, []) | turns)
    return questions
