"""Does a merged model answer as base + adapter do? Models are loaded one after the other, never two at once."""

import gc
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from boxtune.answers.predictions import Prediction
from boxtune.batching.collator import DetectionCollator
from boxtune.data.boxes import box_iou, match_greedy
from boxtune.data.records import Record
from boxtune.inference.generation import generate_answers
from boxtune.metrics.matching import same_label
from boxtune.models.checkpoint import Checkpoint, load_checkpoint_model, open_checkpoint

# Root mean square of the logits' difference over that of the logits. bf16 keeps 8 bits, so rounding a merged weight moves
# each product by up to 2⁻⁹; over a few dozen layers that adds up to one or two hundredths. A lost or wrongly scaled LoRA
# that matters moves the logits by more.
LOGIT_TOLERANCE = 0.05
# Twice the summed IoU of matched boxes over the number of boxes in both answers; 1 where both are empty. Greedy decoding
# may flip a digit where two are almost equally likely. A broken merge was seen to fall from 0.79 to 0.30.
BOX_TOLERANCE = 0.8
# Boxes, in both models' answers together, below which they decide nothing: one flipped digit would be the whole of them.
BOXES_THAT_TELL = 10


@dataclass
class Observation:
    """Answer logits and answers per record, and the base's logits where an adapter could be switched off."""

    logits: list[torch.Tensor]
    answers: list[Prediction]
    base_logits: list[torch.Tensor]


def fits_memory(folder: Path) -> bool:
    """Whether the bf16 weights in `folder`, with a fifth to spare, fit the GPU or the free main memory."""
    needed = 1.2 * sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available
    return needed < free


@torch.inference_mode()
def observe(checkpoint: Checkpoint, precision: str, records: list[Record], data_dir: Path) -> Observation:
    """Load one model, read its logits over the true answers, let it answer, and free it."""
    model = load_checkpoint_model(checkpoint, precision)
    collator = DetectionCollator(checkpoint.processor, checkpoint.grounding, data_dir)
    logits, base_logits, answers = [], [], {}
    for record in records:
        features, (size,) = collator.process_images([record])
        encoded = collator.encode(record, size)
        batch = collator.batch([encoded.input_ids], features, side="right")
        batch = {key: value.to(model.device) for key, value in batch.items()}
        # Only the positions that predict answers: the prompt's logits decide nothing.
        taught = torch.tensor(encoded.labels).roll(-1) >= 0
        logits.append(model(**batch).logits[0, taught].cpu())
        if checkpoint.adapter:
            with model.disable_adapter():
                base_logits.append(model(**batch).logits[0, taught].cpu())
    for prediction in generate_answers(model, collator, records, batch_size=1):
        answers[prediction["id"]] = prediction
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Observation(logits, [answers[record["id"]] for record in records], base_logits)


def logit_difference(logits_a: list[torch.Tensor], logits_b: list[torch.Tensor]) -> float:
    """Root mean square difference relative to the root mean square of `logits_b`."""
    difference = reference = 0.0
    for a, b in zip(
        logits_a, logits_b, strict=True
    ):  # one by one: a vocabulary of float64 numbers a token fills memory
        difference += (a.double() - b.double()).square().sum().item()
        reference += b.double().square().sum().item()
    return math.sqrt(difference / max(reference, 1e-24))


def box_agreement(answers_a: list[Prediction], answers_b: list[Prediction]) -> float:
    """2 · Σ IoU of one-to-one matched boxes of equal label / (boxes in a + boxes in b); points agree within a pixel."""
    overlap, count = 0.0, 0
    for a, b in ((a["objects"], b["objects"]) for a, b in zip(answers_a, answers_b, strict=True)):
        labels_a, labels_b = a["category"], b["category"]
        shape = (len(labels_a), len(labels_b))
        same = same_label(labels_a, labels_b)
        if "point" in a:
            near = [[math.dist(p, q) <= 1 for q in b["point"]] for p in a["point"]]
            similarity = np.array(near, dtype=float).reshape(shape) * same
        else:
            similarity = box_iou(a["bbox"], b["bbox"]) * same
        overlap += sum(float(similarity[pair]) for pair in match_greedy(similarity))
        count += len(labels_a) + len(labels_b)
    return 2 * overlap / count if count else 1.0


def _compare(merged: Observation, other: Observation) -> dict:
    return {
        "logit_difference": logit_difference(merged.logits, other.logits),
        "box_agreement": box_agreement(merged.answers, other.answers),
        "boxes": sum(len(answer["objects"]["category"]) for answer in merged.answers + other.answers),
        "same_answers": sum(a["text"] == b["text"] for a, b in zip(merged.answers, other.answers, strict=True)),
        "adapter_moves_logits_by": logit_difference(other.base_logits, other.logits),
    }


def agrees(found: dict) -> bool:
    """Whether what `_compare` found is within the tolerances: of logits always, of boxes where there are BOXES_THAT_TELL."""
    same_boxes = found["boxes"] < BOXES_THAT_TELL or found["box_agreement"] >= BOX_TOLERANCE
    return found["logit_difference"] <= LOGIT_TOLERANCE and same_boxes


def verify(checkpoint: Checkpoint, merged_folder: Path, records: list[Record], data_dir: Path, with_nf4: bool) -> dict:
    """The report of one merge; `agrees` says whether it may be kept, None where memory was too small to tell."""
    report = {
        "images": len(records),
        "logit_tolerance": LOGIT_TOLERANCE,
        "box_tolerance": BOX_TOLERANCE,
        "boxes_that_tell": BOXES_THAT_TELL,
    }
    if not fits_memory(merged_folder):
        return report | {"agrees": None}
    merged = observe(open_checkpoint(str(merged_folder)), "bfloat16", records, data_dir)
    report["bf16_base_and_adapter"] = _compare(merged, observe(checkpoint, "bfloat16", records, data_dir))
    if with_nf4 and checkpoint.grounding.base_precision == "nf4":
        report["nf4_base_and_adapter"] = _compare(merged, observe(checkpoint, "nf4", records, data_dir))
    bf16 = report["bf16_base_and_adapter"]
    # An adapter that moves less than the tolerance could be lost without this comparison noticing.
    report["can_tell"] = bf16["adapter_moves_logits_by"] > 2 * LOGIT_TOLERANCE
    return report | {"agrees": agrees(bf16)}
