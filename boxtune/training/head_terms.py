"""The terms of the detection head's loss for one micro-batch of a training step."""

import torch
from torch import Tensor, nn

from boxtune.batching.collator import DetectionCollator
from boxtune.batching.packed import example_lengths, is_packed, unpack
from boxtune.models.detection_head import label_embeddings, seen_in
from boxtune.models.head_files import detection_head
from boxtune.models.language_states import LanguageStates
from boxtune.training.detection_loss import DetectionLoss, caption_loss


def head_terms(
    base: nn.Module,
    collator: DetectionCollator,
    loss: DetectionLoss,
    states: LanguageStates,
    inputs: dict[str, Tensor],
    targets: dict[str, Tensor],
    boxes: Tensor | float,
    examples: Tensor | int,
) -> dict[str, Tensor]:
    """{"bbox", "giou", "objectness", "caption"}: this micro-batch's share of each unweighted term of the detection head.

    base: the model below its adapters. states: of this micro-batch's `inputs`. boxes, examples: their numbers in the whole step.
    """
    ids = inputs["input_ids"]
    if is_packed(inputs):  # the head reads one example per row, with its own image and question only
        lengths = example_lengths(inputs)
        ids, states = unpack(ids, lengths), LanguageStates(unpack(states.inputs, lengths), unpack(states.last, lengths))
    # Responses are padded on the right, so everything before the response is the question.
    positions = torch.arange(ids.shape[1], device=ids.device)
    start, end = (targets[key].to(ids.device)[:, None] for key in ("question_start", "question_end"))
    is_question = (positions >= start) & (positions < end)
    grids = inputs["image_grid_thw"][targets["image"].to(ids.device)]
    merge_size = collator.processor.image_processor.merge_size
    seen = seen_in(ids, is_question, grids, collator.image_token_id, merge_size)
    embeddings = base.get_input_embeddings()
    labels = label_embeddings(embeddings, collator.tokenizer, collator.grounding.classes)
    if not loss.trains_model:
        states = LanguageStates(states.inputs.detach(), states.last.detach())
    head = detection_head(base)
    found = head(states, seen, labels)
    terms = {name: term / boxes for name, term in loss.terms(found, targets).items()}
    if loss.caption:
        terms["caption"] = caption_loss(head, found, targets, embeddings.weight) / examples
    return terms
