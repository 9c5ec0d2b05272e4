"""Questions about classes that an image lacks: the right response holds no boxes."""

import random

from boxtune.data.questions import Descriptions, answer_category, turns_for
from boxtune.data.records import Record, with_objects

# More questions about an image would cost much on datasets with many classes.
PER_IMAGE = 3


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
            asked = turns_for(classes, name, descriptions)
            questions.append(with_objects(record, []) | {"id": f"{record['id']}/{name}", "messages": asked})
    return questions
