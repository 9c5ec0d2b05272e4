"""Policy loss: IoU, FP and FN of sampled responses, as a cost in boxes whose expectation has a gradient.

A count has no gradient, but its expectation under the model's distribution has one. Sample k responses to each question, and
raise the log-probability of those that cost less than the others (REINFORCE with a leave-one-out baseline; Pinto et al., arXiv
2302.08242, tune vision models with task rewards in this way). The cost of a response is

    iou · (1 − mean IoU of its matches)  +  fp · (false positives + duplicates) / n  +  fn · false negatives / n

where n is the number of ground-truth boxes, at least 1. Matching is that of evaluation. A duplicate is also a false positive, so
it counts twice. Advantages are divided by their standard deviation. Therefore the ratios of the three weights set the balance
within the cost, and the largest weight sets the weight of the policy loss relative to the LM loss.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig

from boxtune.answers.predictions import make_prediction
from boxtune.batching.collator import DetectionCollator, select_images
from boxtune.batching.encoder import IGNORE_INDEX
from boxtune.data.questions import asked_classes
from boxtune.data.records import Record
from boxtune.metrics.matching import match_images
from boxtune.models.generation_config import stop_ids
from boxtune.training.losses import BoxLosses


def answer_costs(record: Record, prediction: dict) -> dict[str, float]:
    """{"iou", "fp", "fn"}: the unweighted costs of a response; all 0 for a perfect one.

    On an image without ground truth, only false positives have a cost.
    """
    [image] = match_images([record], [prediction])
    ground_truth = image.tp + image.fn
    mean_iou = sum(iou for *_, iou in image.pairs) / image.tp if image.tp else 0.0
    return {
        "iou": 1 - mean_iou if ground_truth else 0.0,
        "fp": (image.fp + len(image.duplicates)) / max(ground_truth, 1),
        "fn": image.fn / max(ground_truth, 1),
    }


def advantages(costs: Tensor) -> Tensor:
    """(B, k) costs minus the mean cost of the other responses to the same question, in units of the batch's standard deviation.

    0 if all responses to a question cost the same: then they carry no signal. `costs` must be float64: in float32, the rounding
    error of equal costs is not small compared with the lower bound of the deviation.
    """
    others = (costs.sum(1, keepdim=True) - costs) / (costs.shape[1] - 1)
    differences = costs - others
    return differences / differences.std().clamp(min=1e-6)


@contextmanager
def answering(model: torch.nn.Module) -> Iterator[None]:
    """The model in generation mode (no dropout, no gradient checkpointing); its mode is restored afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class PolicyLoss:
    """Samples `samples` responses to each question of a batch every `every` steps; `weights` weight the parts of their cost."""

    weights: BoxLosses
    samples: int
    every: int

    def __call__(
        self, forward, model, collator: DetectionCollator, inputs: dict[str, Tensor], asked: dict
    ) -> tuple[Tensor, dict[str, float]]:
        """(weighted loss, values to log): the mean `policy_cost`, its unweighted parts, and `policy_frac_same_cost`, the fraction
        of questions whose responses all cost the same and so carry no signal.

        `forward`: the training model, possibly wrapped. `model`: the same model unwrapped. `inputs`: pixel_values and
        image_grid_thw of the batch. `asked`: its questions (DetectionCollator.ask).
        """
        prompt = {key: asked[key] for key in ("input_ids", "attention_mask", "mm_token_type_ids")}
        images = {key: inputs[key] for key in ("pixel_values", "image_grid_thw")}
        with answering(model):
            sequences = model.generate(**prompt, **images, generation_config=self._sampling(collator))
        length = prompt["input_ids"].shape[1]
        kept = until_stop(sequences[:, length:], stop_ids(collator.tokenizer))
        parts = self._costs(sequences[:, length:], kept, collator, asked)
        costs = sum(self.weights.weigh(parts).values())
        mask = torch.cat([prompt["attention_mask"].repeat_interleave(self.samples, 0), kept.long()], 1)
        labels = torch.full_like(sequences, IGNORE_INDEX)
        labels[:, length:] = torch.where(kept, sequences[:, length:], IGNORE_INDEX)
        output = forward(
            input_ids=sequences,
            attention_mask=mask,
            mm_token_type_ids=(sequences == collator.image_token_id).long(),
            labels=labels,
            fused_lm_head=True,
            use_cache=False,
            **repeat_images(images, self.samples),
        )
        weight = self.weights.largest * advantages(costs).reshape(-1, 1).to(output.log_probs)
        found = {f"policy_{name}": values.mean().item() for name, values in parts.items()}
        found["policy_cost"] = costs.mean().item()
        found["policy_frac_same_cost"] = (costs.amax(1) == costs.amin(1)).double().mean().item()
        return (weight * output.log_probs).sum() / kept.sum(), found

    def _sampling(self, collator: DetectionCollator) -> GenerationConfig:
        """Plain sampling from the model's own distribution, because the gradient assumes that distribution."""
        tokenizer = collator.tokenizer
        return GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,  # unset values would come from the model's own config
            num_return_sequences=self.samples,
            max_new_tokens=collator.grounding.max_new_tokens,
            eos_token_id=stop_ids(collator.tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            # A sampled image placeholder would refer to an image that does not exist.
            suppress_tokens=[collator.image_token_id],
        )

    def _costs(self, answers: Tensor, kept: Tensor, collator: DetectionCollator, asked: dict) -> dict[str, Tensor]:
        """`answer_costs` of (B · k, T) sampled tokens, each of shape (B, k), in float64."""
        records = [json.loads(record) for record in asked["records"]]
        stops = stop_ids(collator.tokenizer)
        costs = []
        for i, (row, mask) in enumerate(zip(answers, kept, strict=True)):
            tokens = [token for token in row[mask].tolist() if token not in stops]
            text = collator.tokenizer.decode(tokens, skip_special_tokens=False)
            record, size = records[i // self.samples], asked["input_sizes"][i // self.samples].tolist()
            grounding = collator.grounding
            names = asked_classes(record, grounding.classes)
            prediction = make_prediction(
                record,
                grounding.codec,
                size,
                text,
                seconds=0.0,
                asked=names,
                noise_label=grounding.noise_label,
                irrelevant_answer=grounding.irrelevant_answer,
                starts_in_thought=collator.encoder.prompt_opens_thought,
            )
            costs.append(answer_costs(record, prediction))
        return {
            name: torch.tensor([cost[name] for cost in costs], dtype=torch.float64).reshape(-1, self.samples)
            for name in ("iou", "fp", "fn")
        }


def until_stop(answers: Tensor, stops: list[int]) -> Tensor:
    """(N, T) bool: the tokens up to and including the first stop token."""
    is_stop = torch.isin(answers, torch.tensor(stops, device=answers.device)).long()
    return is_stop.cumsum(1) - is_stop == 0


def repeat_images(images: dict[str, Tensor], times: int) -> dict[str, Tensor]:
    """Each image repeated `times` times in a row."""
    return select_images(images, [i for i in range(len(images["image_grid_thw"])) for _ in range(times)])
