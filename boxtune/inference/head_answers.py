"""Ask a model's detection head: one forward pass over the prompt, and no generated text."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from peft import PeftModel
from torchvision.ops import batched_nms, box_convert
from transformers import PreTrainedModel

from boxtune.answers.confidence import rounded_score
from boxtune.answers.decoding import HEAD
from boxtune.answers.head_merging import merge_decoders
from boxtune.answers.predictions import Prediction, rounded_box, without_text
from boxtune.batching.collator import DetectionCollator, ProcessedImages
from boxtune.data.questions import asked_classes
from boxtune.data.records import Record
from boxtune.inference.batches import in_batches
from boxtune.inference.generation import generate_answers, largest_first
from boxtune.models.detection_head import PROPOSAL_IOU, Found, label_embeddings, seen_in
from boxtune.models.head_files import detection_head
from boxtune.models.language_states import below_adapter, language_states

# Objects of the head with a lower score are never merged with those of the text.
LEAST_SCORE = 0.01


def head_answers(
    model: PreTrainedModel | PeftModel, collator: DetectionCollator, records: list[Record], batch_size: int
) -> Iterator[Prediction]:
    """Yield a prediction for every record, the largest images first."""
    ordered = largest_first(records, collator)
    for prediction, seconds in in_batches(collator, ordered, batch_size, partial(_answer_batch, model, collator)):
        yield prediction | {"seconds": round(seconds, 3)}


def both_answers(
    model: PreTrainedModel | PeftModel, collator: DetectionCollator, records: list[Record], batch_size: int
) -> Iterator[Prediction]:
    """Yield the merged prediction of generated text and head for every record. A threshold of scores holds after merging."""
    grounding = collator.grounding
    least = grounding.decoding.score_threshold or grounding.both_threshold
    everything = copy.copy(collator)
    settings = replace(grounding.decoding, score_threshold=0.0)
    everything.grounding = replace(grounding, decoding=settings, head_threshold=LEAST_SCORE)
    heads = {prediction["id"]: prediction for prediction in head_answers(model, everything, records, batch_size)}
    for prediction in generate_answers(model, everything, records, batch_size):
        yield merge_decoders(prediction, heads[prediction["id"]], least)


def _answer_batch(
    model: PreTrainedModel | PeftModel, collator: DetectionCollator, records: list[Record], images: ProcessedImages
) -> list[Prediction]:
    batch, input_sizes = collator.collate_questions(records, images)
    found = find_objects(model, collator, {key: value.to(model.device) for key, value in batch.items()})
    result = found.layers[-1]
    boxes, scores = result.boxes_cxcywh.cpu(), result.logits.sigmoid().cpu()
    rows = zip(records, boxes, scores, input_sizes, strict=True)
    kept = [_kept_objects(record, *of_image, collator) for record, *of_image, _ in rows]
    captions = _captions(model, collator, found, [[query for query, *_ in objects] for objects in kept])
    rows = zip(records, kept, captions, input_sizes, strict=True)
    return [_prediction(*row, collator.grounding.codec) for row in rows]


def find_objects(
    model: PreTrainedModel | PeftModel, collator: DetectionCollator, batch: dict[str, torch.Tensor]
) -> Found:
    """What the head finds in a batch of prompts. Its classes are those of the checkpoint."""
    base = below_adapter(model)
    with language_states(base) as states:
        model(**batch, use_cache=False, logits_to_keep=1)
    merge_size = collator.processor.image_processor.merge_size
    is_question = batch["attention_mask"].bool()
    seen = seen_in(batch["input_ids"], is_question, batch["image_grid_thw"], collator.image_token_id, merge_size)
    labels = label_embeddings(base.get_input_embeddings(), collator.tokenizer, collator.grounding.classes)
    return detection_head(base)(states[0], seen, labels)


def _kept_objects(
    record: Record, boxes_cxcywh: torch.Tensor, scores: torch.Tensor, collator: DetectionCollator
) -> list[tuple[int, list[float], str, float]]:
    """(query, box_xyxy in pixels, class, score) of the objects above the threshold, by falling score.

    boxes_cxcywh: (Q, 4), scores: (Q, C). The class of a query is the most likely one of those that were asked for.
    """
    grounding = collator.grounding
    asked = asked_classes(record, grounding.classes)
    columns = [i for i, name in enumerate(grounding.classes) if name in asked]
    if not columns:
        return []
    best, column = scores[:, columns].max(dim=-1)
    least = grounding.decoding.score_threshold or grounding.head_threshold
    corners = box_convert(boxes_cxcywh.double(), "cxcywh", "xyxy").clamp(0, 1)  # they may reach over the border
    boxes_xyxy = corners * torch.tensor([record["width"], record["height"]] * 2)
    kept = []
    for i in batched_nms(boxes_xyxy, best.double(), column, PROPOSAL_IOU).tolist():  # by falling score
        box = boxes_xyxy[i].tolist()
        if best[i] >= least and box[0] < box[2] and box[1] < box[3]:
            kept.append((i, rounded_box(box), grounding.classes[columns[column[i]]], rounded_score(best[i].item())))
    return kept


def _captions(
    model: PreTrainedModel | PeftModel, collator: DetectionCollator, found: Found, queries: list[list[int]]
) -> list[list[str] | None]:
    """The captions of the `queries` of each image; None for each image if the head writes no captions."""
    base = below_adapter(model)
    decoder = detection_head(base).captions
    if decoder is None:
        return [None] * len(queries)
    rows = torch.tensor([row for row, of_image in enumerate(queries) for _ in of_image], dtype=torch.long)
    chosen = torch.tensor([query for of_image in queries for query in of_image], dtype=torch.long)
    texts: list[str] = []
    if len(rows):
        embeddings, end = base.get_input_embeddings().weight, collator.tokenizer.eos_token_id
        written = decoder.write(found.queries[rows, chosen], found.memory[rows], found.is_memory[rows], embeddings, end)
        texts = collator.tokenizer.batch_decode(written, skip_special_tokens=True)
    left = iter(texts)
    return [[next(left) for _ in of_image] for of_image in queries]


def _prediction(
    record: Record,
    kept: list[tuple[int, list[float], str, float]],
    captions: list[str] | None,
    size: tuple[int, int],
    codec: str,
) -> Prediction:
    objects: dict[str, list] = {
        "bbox": [box for _, box, _, _ in kept],
        "category": [label for _, _, label, _ in kept],
        "score": [score for *_, score in kept],
    }
    if captions is not None:
        objects["caption"] = captions
    return without_text(record, codec, size, objects, []) | {"decoder": HEAD}
