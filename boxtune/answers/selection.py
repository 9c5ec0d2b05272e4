"""Which objects of a prediction are kept: those of a sufficient score, and one of several boxes on the same object."""

from collections.abc import Sequence

import numpy as np

from boxtune.answers.decoding import Decoding
from boxtune.answers.gate import GATED
from boxtune.answers.noise import NOISE_LABEL
from boxtune.answers.predictions import Prediction
from boxtune.answers.tile_merging import MERGED
from boxtune.data.boxes import box_iou

# Each dropped object adds one of these to the problems of its prediction.
LOW_SCORE, SUPPRESSED = "low_score", "suppressed"
# The problems that a clean response may have: these objects were dropped or merged on purpose.
INTENDED = frozenset({NOISE_LABEL, LOW_SCORE, SUPPRESSED, MERGED, GATED})


def keep_objects(prediction: Prediction, decoding: Decoding) -> Prediction:
    """The prediction without the objects that `score_threshold` and `suppress_iou` drop; the others keep their order."""
    objects = prediction["objects"]
    scores = objects["score"]
    kept = [i for i, score in enumerate(scores) if score >= decoding.score_threshold]
    low = len(scores) - len(kept)
    if decoding.suppress_iou < 1 and "bbox" in objects:
        kept = _suppress(objects["bbox"], objects["category"], scores, kept, decoding.suppress_iou)
    if len(kept) == len(scores):
        return prediction
    suppressed = len(scores) - low - len(kept)
    problems = [*prediction["problems"], *[LOW_SCORE] * low, *[SUPPRESSED] * suppressed]
    columns = {key: [column[i] for i in kept] for key, column in objects.items()}
    return prediction | {"objects": columns, "problems": problems}


def _suppress(
    boxes_xyxy: list[list[float]], labels: list[str], scores: list[float], positions: Sequence[int], most: float
) -> list[int]:
    """Those of the `positions` that no kept box of the same label and a higher score covers with an IoU above `most`.

    Of equal scores, the first one in the response counts as higher.
    """
    names = np.array([label.strip() for label in labels], dtype=object)
    covers = (box_iou(boxes_xyxy, boxes_xyxy) > most) & (names[:, None] == names[None])
    kept: list[int] = []
    for i in sorted(positions, key=lambda i: -scores[i]):
        if not covers[i, kept].any():
            kept.append(i)
    return sorted(kept)
