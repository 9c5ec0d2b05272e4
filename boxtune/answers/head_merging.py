"""Decoder "both": the boxes of the generated text and those of the detection head, merged.

Of a box of the text and a box of the head with the same label and an IoU of at least MERGE_IOU, the one with the higher score
is kept, and its score is the mean of both. Its caption is that of the text, if the text wrote one. The score of a box that only
one of them found is halved, as in weighted boxes fusion (arXiv 1910.13302): it is the mean with 0, the score that the other gave
it.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from boxtune.answers.confidence import rounded_score
from boxtune.answers.decoding import BOTH
from boxtune.answers.predictions import Prediction
from boxtune.data.boxes import box_iou, match_greedy
from boxtune.data.records import CAPTION

MERGE_IOU = 0.5


def merge_decoders(text: Prediction, head: Prediction, least: float) -> Prediction:
    """The text's prediction with the merged objects of at least this score, by falling score. Both are about the same image."""
    ours, theirs = text["objects"], head["objects"]
    partner = _partners(text, head)
    rows = []
    for i, (box, label, score, caption) in enumerate(_objects(ours)):
        other = partner.get(i)
        other_score = 0.0 if other is None else theirs["score"][other]
        if other is not None and other_score > score:
            box = theirs["bbox"][other]
        if other is not None and caption is None:
            caption = theirs.get(CAPTION, {other: None})[other]
        rows.append(((score + other_score) / 2, box, label, caption))
    taken = set(partner.values())
    for j, (box, label, score, caption) in enumerate(_objects(theirs)):
        if j not in taken:
            rows.append((score / 2, box, label, caption))
    rows = sorted((row for row in rows if row[0] >= least), key=lambda row: -row[0])
    objects: dict[str, list[Any]] = {
        "bbox": [box for _, box, _, _ in rows],
        "category": [label for _, _, label, _ in rows],
        "score": [rounded_score(score) for score, *_ in rows],
    }
    if CAPTION in ours or CAPTION in theirs:
        objects[CAPTION] = [caption for *_, caption in rows]
    seconds = round((text["seconds"] or 0.0) + (head["seconds"] or 0.0), 3)
    return text | {"objects": objects, "seconds": seconds, "decoder": BOTH}


def _objects(objects: dict[str, list]) -> Iterator[tuple[list[float], str, float, str | None]]:
    """(bbox, label, score, caption) of each object."""
    captions = objects.get(CAPTION, [None] * len(objects["bbox"]))
    return zip(objects["bbox"], objects["category"], objects["score"], captions, strict=True)


def _partners(text: Prediction, head: Prediction) -> dict[int, int]:
    """{box of the text: box of the head on the same object}."""
    ious = box_iou(text["objects"]["bbox"], head["objects"]["bbox"])
    ours, theirs = (np.array(side["objects"]["category"], dtype=object) for side in (text, head))
    return dict(match_greedy(np.where(ours[:, None] == theirs[None], ious, 0.0), MERGE_IOU))
