"""--absent: ask about classes that the images lack, and count the responses with boxes."""

from pathlib import Path
from typing import Any

from boxtune.data.absent_questions import absent_questions
from boxtune.evaluation.split import Split
from boxtune.inference.asking import answer_records
from boxtune.inference.detector import Detector


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
