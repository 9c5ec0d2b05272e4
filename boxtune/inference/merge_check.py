"""Check that a merged model has the weights of base + adapter and responds alike. Never holds two models in memory."""

import gc
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from boxtune.answers.predictions import Prediction, response_text
from boxtune.batching.collator import DetectionCollator
from boxtune.common.errors import UserError
from boxtune.data.boxes import box_iou, match_greedy
from boxtune.data.dataset import read_info, read_records
from boxtune.data.records import SPLITS, Record
from boxtune.inference.generation import generate_answers
from boxtune.metrics.matching import same_label
from boxtune.models.checkpoint import Checkpoint, load_checkpoint_model, open_checkpoint
from boxtune.models.merged_weights import compare_weights
from boxtune.models.soft_prompt import without_adapter

# Upper limit of `logit_difference`. bf16 keeps 8 significant bits, so rounding a merged weight changes each product by up to
# 2⁻⁹; over a few dozen layers that adds up to one or two hundredths. Losing a LoRA that matters, or scaling it wrongly, changes
# the logits by more.
LOGIT_TOLERANCE = 0.05
# Share of the weights' size that must be free beyond the weights themselves, for activations.
MEMORY_RESERVE = 0.2


@dataclass
class Observation:
    """What one model computes for the records, one entry per record.

    logits: (T, vocabulary) at the T positions that predict the ground-truth response. answers: the generated responses.
    base_logits: like logits, with adapter and soft prompt turned off; empty for a whole model.
    """

    logits: list[torch.Tensor]
    answers: list[Prediction]
    base_logits: list[torch.Tensor]


def verify(
    checkpoint: Checkpoint, merged_folder: Path, records: list[Record], data_dir: Path, with_nf4: bool
) -> dict[str, Any]:
    """The content of merge_report.json: how a merged model compares with the adapter that it was merged from.

    `agrees` says whether both weights and logits agree; None if the weights do, but the model does not fit into memory.
    Generated boxes do not decide: greedy decoding may choose another digit where two are almost equally likely. `can_tell` says
    whether the adapter changes the logits enough for its loss to be noticed there. with_nf4: also compare with the NF4 base, if
    it was trained on one.
    """
    report: dict[str, Any] = {
        "images": len(records),
        "logit_tolerance": LOGIT_TOLERANCE,
        "precision": precision_here(),
        "weights": compare_weights(checkpoint, merged_folder),
    }
    if report["weights"]["different"]:
        return report | {"agrees": False}
    if not fits_memory(merged_folder, report["precision"]):
        return report | {"agrees": None}
    merged = observe(open_checkpoint(str(merged_folder)), report["precision"], records, data_dir)
    bf16 = compare(merged, observe(checkpoint, report["precision"], records, data_dir))
    report["bf16_base_and_adapter"] = bf16
    if with_nf4 and checkpoint.grounding.base_precision == "nf4":
        report["nf4_base_and_adapter"] = compare(merged, observe(checkpoint, "nf4", records, data_dir))
    report["can_tell"] = bf16["adapter_moves_logits_by"] > 2 * LOGIT_TOLERANCE
    return report | {"agrees": bf16["logit_difference"] <= LOGIT_TOLERANCE}


def comparison_records(data_dir: Path, samples: int) -> list[Record]:
    """The first records of validation, test or train: the first of these splits that exists."""
    if samples < 1:
        raise UserError(f"--samples must be at least 1, got {samples}.")
    train, validation, test = SPLITS
    splits = read_info(data_dir)["splits"]
    split = next((name for name in (validation, test, train) if splits.get(name, {}).get("images")), None)
    if split is None:
        raise UserError(f"{data_dir} has no images to compare on; give another --data.")
    return read_records(data_dir, split)[:samples]


def precision_here() -> str:
    """The precision of the comparison: bf16, or float32 on a GPU that only emulates bf16."""
    lacks_bf16 = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return "float32" if lacks_bf16 else "bfloat16"


def weight_bytes(folder: Path) -> int:
    """The size of the weights in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def fits_memory(folder: Path, precision: str) -> bool:
    """Whether the bf16 weights in `folder`, in `precision`, fit into the free memory of the GPU or else of the machine."""
    weights = weight_bytes(folder)
    weights *= 2 if precision == "float32" else 1
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available
    return (1 + MEMORY_RESERVE) * weights < free


# ---- observing one model -----------------------------------------------------------------------------------------------


@torch.inference_mode()
def observe(checkpoint: Checkpoint, precision: str | None, records: list[Record], data_dir: Path) -> Observation:
    """Load a model, compute its logits and responses, and free it."""
    model = load_checkpoint_model(checkpoint, precision)
    collator, base_collator = (
        DetectionCollator(checkpoint.processor, grounding, data_dir)
        for grounding in (checkpoint.grounding, checkpoint.grounding.of_base())
    )
    logits, base_logits = [], []
    for record in records:
        batch, is_response = _teacher_forced(record, collator, model.device)
        logits.append(_response_logits(model, batch, is_response))
        if checkpoint.adapter:
            with without_adapter(model):
                base_logits.append(_response_logits(model, *_teacher_forced(record, base_collator, model.device)))
    predictions = {row["id"]: row for row in generate_answers(model, collator, records, batch_size=1)}
    del model
    _free_memory()
    return Observation(logits, [predictions[record["id"]] for record in records], base_logits)


def _teacher_forced(
    record: Record, collator: DetectionCollator, device: torch.device
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(a batch of the record with its ground-truth response, (T,) whether each position predicts a token of that response)."""
    features, (size,) = collator.process_images([record])
    encoded = collator.encoder.encode(record, size)
    batch = collator.batch([encoded.input_ids], features, side="right")
    is_response = torch.tensor(encoded.labels).roll(-1) >= 0  # each position predicts the next token
    return {key: value.to(device) for key, value in batch.items()}, is_response


def _response_logits(
    model: PreTrainedModel | PeftModel, batch: dict[str, torch.Tensor], is_response: torch.Tensor
) -> torch.Tensor:
    """(T, vocabulary) on the CPU. The prompt's logits are left out, because they decide nothing."""
    return model(**batch).logits[0, is_response].cpu()


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---- comparing two models ----------------------------------------------------------------------------------------------


def compare(merged: Observation, reference: Observation) -> dict[str, Any]:
    """The merged model against base + adapter, as in merge_report.json."""
    return {
        "logit_difference": logit_difference(merged.logits, reference.logits),
        "box_agreement": box_agreement(merged.answers, reference.answers),
        "boxes": sum(len(row["objects"]["category"]) for row in merged.answers + reference.answers),
        "same_answers": same_answers(merged.answers, reference.answers),
        "adapter_moves_logits_by": logit_difference(reference.base_logits, reference.logits),
    }


def same_answers(answers_a: list[Prediction], answers_b: list[Prediction]) -> int:
    """How many responses have the same text."""
    return sum(response_text(a) == response_text(b) for a, b in zip(answers_a, answers_b, strict=True))


def logit_difference(logits_a: list[torch.Tensor], logits_b: list[torch.Tensor]) -> float:
    """Root mean square of the difference, divided by the root mean square of `logits_b`."""
    difference = reference = 0.0
    # One record at a time: in float64 the logits of all records together could fill the memory.
    for a, b in zip(logits_a, logits_b, strict=True):
        difference += (a.double() - b.double()).square().sum().item()
        reference += b.double().square().sum().item()
    return math.sqrt(difference / max(reference, 1e-24))


def box_agreement(answers_a: list[Prediction], answers_b: list[Prediction]) -> float:
    """2 · Σ IoU of matched boxes / (number of boxes in a + number of boxes in b); 1 if there are none.

    Boxes are matched one to one, within equal labels. Points count as IoU 1 if they are at most a pixel apart, else as 0.
    """
    overlap, count = 0.0, 0
    for a, b in zip(answers_a, answers_b, strict=True):
        similarity = object_similarity(a, b)
        overlap += sum(float(similarity[pair]) for pair in match_greedy(similarity))
        count += sum(similarity.shape)
    return 2 * overlap / count if count else 1.0


def object_similarity(a: Prediction, b: Prediction) -> np.ndarray:
    """(N, M) IoU of the N objects of `a` with the M of `b`; 0 for different labels."""
    objects_a, objects_b = a["objects"], b["objects"]
    labels_a, labels_b = objects_a["category"], objects_b["category"]
    same = same_label(labels_a, labels_b)
    if "point" in objects_a:
        is_near = [[math.dist(p, q) <= 1 for q in objects_b["point"]] for p in objects_a["point"]]
        return np.array(is_near, dtype=float).reshape(len(labels_a), len(labels_b)) * same
    return box_iou(objects_a["bbox"], objects_b["bbox"]) * same
