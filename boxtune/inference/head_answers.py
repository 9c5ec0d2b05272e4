"""Ask a model's detection head: one forward pass over the prompt, and no generated text."""

from collections.abc import Iterator
from functools import partial

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from boxtune.answers.decoding import HEAD
from boxtune.answers.predictions import Prediction, rounded_box
from boxtune.batching.collator import DetectionCollator, ProcessedImages
from boxtune.data.boxes import box_cxcywh_to_xyxy
from boxtune.data.questions import asked_classes
from boxtune.data.records import Record
from boxtune.inference.batches import in_batches
from boxtune.inference.generation import largest_first
from boxtune.models.detection_head import Layer, label_embeddings, seen_in
from boxtune.models.head_files import detection_head
from boxtune.models.language_states import language_states


def head_answers(
    model: PreTrainedModel | PeftModel, collator: DetectionCollator, records: list[Record], batch_size: int
) -> Iterator[Prediction]:
    """Yield a prediction for every record, the largest images first."""
    ordered = largest_first(records, collator)
    for prediction, seconds in in_batches(collator, ordered, batch_size, partial(_answer_batch, model, collator)):
        yield prediction | {"seconds": round(seconds, 3)}


def _answer_batch(
    model: PreTrainedModel | PeftModel, collator: DetectionCollator, records: list[Record], images: ProcessedImages
) -> list[Prediction]:
    batch, input_sizes = collator.collate_questions(records, images)
    layer = find_objects(model, collator, {key: value.to(model.device) for key, value in batch.items()})
    boxes, scores = layer.boxes_cxcywh.cpu(), layer.logits.sigmoid().cpu()
    rows = zip(records, boxes, scores, input_sizes, strict=True)
    return [_prediction(record, *found, collator) for record, *found in rows]


def find_objects(
    model: PreTrainedModel | PeftModel, collator: DetectionCollator, batch: dict[str, torch.Tensor]
) -> Layer:
    """The result of the head for a batch of prompts. Its classes are those of the checkpoint."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    with language_states(base) as states:
        model(**batch, use_cache=False, logits_to_keep=1)
    merge_size = collator.processor.image_processor.merge_size
    is_question = batch["attention_mask"].bool()
    seen = seen_in(batch["input_ids"], is_question, batch["image_grid_thw"], collator.image_token_id, merge_size)
    labels = label_embeddings(base.get_input_embeddings(), collator.tokenizer, collator.grounding.classes)
    return detection_head(base)(states[0], seen, labels)[-1]


def _prediction(
    record: Record, boxes_cxcywh: torch.Tensor, scores: torch.Tensor, size: tuple[int, int], collator: DetectionCollator
) -> Prediction:
    """boxes_cxcywh: (Q, 4), scores: (Q, C). Each query is the most likely of the asked classes."""
    grounding = collator.grounding
    asked = asked_classes(record, grounding.classes)
    columns = [i for i, name in enumerate(grounding.classes) if name in asked]
    objects: dict[str, list] = {"bbox": [], "category": [], "score": []}
    if columns:
        best, column = scores[:, columns].max(dim=-1)
        least = grounding.decoding.score_threshold or grounding.head_threshold
        # Infinitesimal boxes would collapse when they are rounded, and boxes of the head may reach over the border.
        boxes_xyxy = box_cxcywh_to_xyxy(boxes_cxcywh.double().numpy()).clip(0, 1)
        boxes_xyxy *= [record["width"], record["height"]] * 2
        for i in best.argsort(descending=True).tolist():
            box = boxes_xyxy[i].tolist()
            if best[i] >= least and box[0] < box[2] and box[1] < box[3]:
                objects["bbox"].append(rounded_box(box))
                objects["category"].append(grounding.classes[columns[column[i]]])
                objects["score"].append(round(best[i].item(), 6))
    return {
        "id": record["id"],
        "image": record["image"],
        "width": record["width"],
        "height": record["height"],
        "codec": grounding.codec,
        "input_size": list(size),
        "text": "",
        "objects": objects,
        "problems": [],
        "seconds": 0.0,
        "decoder": HEAD,
    }
