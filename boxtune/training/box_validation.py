"""Box metrics during training: a fixed validation sample, predicted at every evaluation and scored as in evaluate.py."""

import math
import time
from collections.abc import Callable, Iterable

from accelerate import PartialState
from accelerate.utils import gather_object
from peft import PeftModel
from tqdm import tqdm
from transformers import PreTrainedModel

from boxtune.answers.predictions import Prediction
from boxtune.batching.collator import DetectionCollator
from boxtune.common.errors import UserError
from boxtune.data.questions import as_asked
from boxtune.data.records import Record, fixed_sample
from boxtune.inference.generation import generate_answers
from boxtune.inference.head_answers import head_answers
from boxtune.metrics.average_precision import all_classes, evaluate_coco
from boxtune.metrics.matching import is_click, match_images
from boxtune.metrics.scoring import mean_iou, total_rates

# Logged with the prefix "eval_"; each can be metric_for_best_model.
METRICS = ("AP", "AP50", "f1", "mean_iou", "fp", "fn", "unparsable", "boxes_runtime")
HEAD_METRICS = ("head_AP", "head_AP50")  # with a detection head
# Logged by transformers and TRL; aux_loss for mixture-of-experts models.
LIBRARY_METRICS = (
    *("loss", "mean_token_accuracy", "entropy", "num_tokens", "aux_loss"),
    *("runtime", "samples_per_second", "steps_per_second"),
)
# Of METRICS: those where lower is better, and those that are undefined without objects.
COSTS = ("fp", "fn", "unparsable", "boxes_runtime")
NEED_OBJECTS = ("AP", "AP50", "f1", "mean_iou", *HEAD_METRICS)
# Asks a model about records: (model, collator, records, batch size) → predictions in any order.
Ask = Callable[[PreTrainedModel | PeftModel, DetectionCollator, list[Record], int], Iterable[Prediction]]


def drawn_records(records: list[Record], count: int) -> list[Record]:
    """A fixed random sample of at most `count` records, reduced to the objects that evaluation asks for."""
    return [as_asked(record) for record in fixed_sample(records, count)]


def require_objects(metric: str, records: list[Record], count: int) -> None:
    """Raises UserError if `metric` selects the best checkpoint but the sampled records contain no objects."""
    drawn = drawn_records(records, count)
    if metric in NEED_OBJECTS and all(all(record["objects"]["ignore"]) for record in drawn):
        raise UserError(
            f"metric_for_best_model: {metric} is undefined, because the {len(drawn)} sampled validation images contain no "
            f"objects. If other validation images do ({len(records)} in total), raise eval_images (now {count}); "
            "otherwise use eval_loss."
        )


class BoxValidation:
    """Predicts the same random sample of `count` records at every evaluation.

    `batch_size` is per process. With several processes, each process predicts its share. With `with_head`, the model's detection
    head predicts it too.
    """

    def __init__(
        self, collator: DetectionCollator, records: list[Record], count: int, batch_size: int, with_head: bool = False
    ):
        self.records = drawn_records(records, count)
        self.collator, self.batch_size, self.with_head = collator, batch_size, with_head

    def predict(self, model, description: str | None = None, ask: Ask = generate_answers) -> list[Prediction]:
        """The predictions in the order of `records`, the same in every process. With a `description`, shows a progress bar.

        ask: `generate_answers`, or `head_answers` for the detection head.
        """
        state = PartialState()
        own = self.records[state.process_index :: state.num_processes]
        answers = ask(model, self.collator, own, self.batch_size)
        if description:
            answers = tqdm(answers, total=len(own), desc=description, unit="image", leave=False, disable=None)
        by_id = {prediction["id"]: prediction for prediction in gather_object(list(answers))}
        return [by_id[record["id"]] for record in self.records]

    def answer(self, model) -> tuple[dict[str, float], list[Prediction]]:
        """({name in METRICS: value}, predictions), the same in every process; with a head, head_AP and head_AP50 too.

        `mean_iou` is over all ground truth, `fp` and `fn` are counts, `unparsable` is a fraction of the responses, and
        `boxes_runtime` is in seconds. Undefined values are NaN: AP without ground truth, IoU for click answers.
        """
        began = time.perf_counter()
        predictions = self.predict(model)
        images, values = match_images(self.records, predictions), {"AP": None, "AP50": None}
        classes = all_classes(self.records, self.collator.grounding.classes)
        if not is_click(predictions):
            coco = evaluate_coco(self.records, predictions, classes)
            values = {"AP": coco.ap(), "AP50": coco.ap(0)}
        if self.with_head:
            coco = evaluate_coco(self.records, self.predict(model, ask=head_answers), classes)
            values |= {"head_AP": coco.ap(), "head_AP50": coco.ap(0)}
        counts = total_rates(images)
        values |= {key: counts[key] for key in ("f1", "fp", "fn")} | {"mean_iou": mean_iou(images)}
        values["unparsable"] = sum(p["problems"].count("unparsable") for p in predictions) / len(predictions)
        values["boxes_runtime"] = round(time.perf_counter() - began, 2)
        return {key: math.nan if value is None else float(value) for key, value in values.items()}, predictions
