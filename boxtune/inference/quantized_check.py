"""Check that a quantized copy of a model finds the same boxes. Never holds two models in memory."""

from pathlib import Path
from typing import Any

from boxtune.answers.predictions import Prediction
from boxtune.common.errors import UserError
from boxtune.data.boxes import match_greedy
from boxtune.data.records import Record
from boxtune.inference.merge_check import (
    box_agreement,
    fits_memory,
    logit_difference,
    object_similarity,
    observe,
    precision_here,
    same_answers,
    weight_bytes,
)
from boxtune.models.checkpoint import Checkpoint, open_checkpoint

# By default, a quantized copy is kept if its boxes agree this much with those of the model (`box_agreement` in merge_check).
LEAST_AGREEMENT = 0.9
# A box counts as moved if its IoU with its counterpart is below one of these.
IOUS = (0.95, 0.75, 0.5)


def check_quantized(
    quantized: Path, model: Checkpoint, records: list[Record], data_dir: Path, least_agreement: float
) -> dict[str, Any]:
    """How the model in the folder `quantized` compares with `model`; the entry "quantized" of merge_report.json.

    Raises UserError if `model` does not fit into memory, because an unchecked copy is not kept.
    """
    if not fits_memory(model.folder, precision_here()):
        raise UserError(
            f"{model.path} does not fit into the free memory here ({weight_bytes(model.folder) / 1e9:.1f} GB of weights), so the "
            "boxes of a quantized copy cannot be compared with its own. Quantize on a larger machine."
        )
    copy = observe(open_checkpoint(str(quantized)), None, records, data_dir)
    original = observe(model, precision_here(), records, data_dir)
    agreement = box_agreement(copy.answers, original.answers)
    return {
        "images": len(records),
        "logit_difference": logit_difference(copy.logits, original.logits),
        "same_answers": same_answers(copy.answers, original.answers),
        "box_agreement": agreement,
        **moved_boxes(original.answers, copy.answers),
        "bytes": {"model": weight_bytes(model.folder), "quantized": weight_bytes(quantized)},
        "least_box_agreement": least_agreement,
        "agrees": agreement >= least_agreement,
    }


def moved_boxes(before: list[Prediction], after: list[Prediction]) -> dict[str, Any]:
    """How the boxes of `before` are found again in `after`, matched one to one within equal labels.

    boxes: their number. moved: {IoU: how many have a counterpart, but with a lower IoU}. lost: how many have none; new: how many
    of `after` have none.
    """
    ious, count, count_after = [], 0, 0
    for a, b in zip(before, after, strict=True):
        similarity = object_similarity(a, b)
        ious += [float(similarity[pair]) for pair in match_greedy(similarity)]
        count, count_after = count + similarity.shape[0], count_after + similarity.shape[1]
    moved = {f"{limit:g}": sum(iou < limit for iou in ious) for limit in IOUS}
    return {"boxes": count, "moved": moved, "lost": count - len(ious), "new": count_after - len(ious)}


def describe_quantized(found: dict[str, Any]) -> str:
    """What the user reads about the check."""
    size = found["bytes"]
    moved = ", ".join(f"{count} below {limit}" for limit, count in found["moved"].items())
    return (
        f"  weights: {size['quantized'] / 1e6:,.1f} MB instead of {size['model'] / 1e6:,.1f} MB\n"
        f"  against bf16, on {found['images']} images: relative logit difference {found['logit_difference']:.4f}, "
        f"{found['same_answers']} responses identical\n"
        f"  boxes: agreement {found['box_agreement']:.3f} (required: {found['least_box_agreement']:g}); of {found['boxes']} in "
        f"bf16, {found['lost']} are lost, {found['new']} are new; IoU of the others with their counterparts: {moved}"
    )
