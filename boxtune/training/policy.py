"""FN, FP and IoU of answers that the model samples: a cost that is counted in boxes, and reaches the weights all the same.

A count has no gradient, but its expectation has: sample k answers to each question, and raise the log-probability of those
that cost less than the others (REINFORCE with a leave-one-out baseline; tuning vision models with task rewards in this
way: Pinto et al., arXiv 2302.08242). An answer costs

    iou · (1 − mean IoU of its matches)  +  fp · (false positives + duplicates) / n  +  fn · false negatives / n

n being the number of true boxes, or 1. Matching is that of evaluation, so a duplicate is a false positive as well and counts
twice. What an answer costs more than others is measured in standard deviations, so the ratios of the three weights say what
costs, and the largest of them how much the loss weighs beside the LM's.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig

from boxtune.answers.predictions import make_prediction
from boxtune.batching.collator import IGNORE_INDEX, DetectionCollator
from boxtune.data.records import Record
from boxtune.metrics.matching import match_images
from boxtune.models.generation_config import stop_ids
from boxtune.training.losses import BoxLosses


def answer_costs(record: Record, prediction: dict) -> dict[str, float]:
    """{"iou", "fp", "fn"}: what an answer costs before anything is weighed; all 0 for a perfect one.

    Without truth only false positives can be made.
    """
    [image] = match_images([record], [prediction])
    truth = image.tp + image.fn
    mean_iou = sum(iou for *_, iou in image.pairs) / image.tp if image.tp else 0.0
    return {
        "iou": 1 - mean_iou if truth else 0.0,
        "fp": (image.fp + len(image.duplicates)) / max(truth, 1),
        "fn": image.fn / max(truth, 1),
    }


def advantages(costs: Tensor) -> Tensor:
    """(B, k) costs minus the mean cost of the same question's other answers, in units of the batch's standard deviation.

    All 0 where all answers to a question cost the same: nothing can be learned from them. `costs` must be float64, because
    what float32 leaves of equal costs is not small against the least deviation.
    """
    others = (costs.sum(1, keepdim=True) - costs) / (costs.shape[1] - 1)
    differences = costs - others
    return differences / differences.std().clamp(min=1e-6)


@contextmanager
def answering(model: torch.nn.Module) -> Iterator[None]:
    """The model as it generates: no dropout, no gradient checkpointing, and afterwards as it was found."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class PolicyLoss:
    """`samples` answers to each question of a batch, every `every` steps; `weights` are those of their cost."""

    weights: BoxLosses
    samples: int
    every: int

    def __call__(
        self, forward, model, collator: DetectionCollator, inputs: dict[str, Tensor], asked: dict
    ) -> tuple[Tensor, dict[str, float]]:
        """(the loss, weighed already; what to log of the answers: their mean `policy_cost`, its parts before weighing, and the
        share of questions whose answers all cost the same, of which nothing can be learned).

        `forward` is the model as it trains, wrapped as it may be, `model` the same unwrapped. `inputs` are the batch's
        pixel_values and image_grid_thw, `asked` its questions (collator.ask).
        """
        prompt = {key: asked[key] for key in ("input_ids", "attention_mask", "mm_token_type_ids")}
        pictures = {key: inputs[key] for key in ("pixel_values", "image_grid_thw")}
        with answering(model):
            sequences = model.generate(**prompt, **pictures, generation_config=self._sampling(collator))
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
            **repeat_images(pictures, self.samples),
        )
        weight = self.weights.largest * advantages(costs).reshape(-1, 1).to(output.log_probs)
        found = {f"policy_{name}": values.mean().item() for name, values in parts.items()}
        found["policy_cost"] = costs.mean().item()
        found["policy_frac_same_cost"] = (costs.amax(1) == costs.amin(1)).double().mean().item()
        return (weight * output.log_probs).sum() / kept.sum(), found

    def _sampling(self, collator: DetectionCollator) -> GenerationConfig:
        """Plain sampling from the model's own distribution, which is what the gradient is of."""
        tokenizer = collator.tokenizer
        return GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,  # whatever is left open here comes from the model's own config (generation.py)
            num_return_sequences=self.samples,
            max_new_tokens=collator.grounding.max_new_tokens,
            eos_token_id=stop_ids(collator.tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            # A sampled placeholder would stand for a picture that is not there.
            suppress_tokens=[collator.image_token_id],
        )

    def _costs(self, answers: Tensor, kept: Tensor, collator: DetectionCollator, asked: dict) -> dict[str, Tensor]:
        """`answer_costs` of (B · k, T) sampled tokens, each (B, k), in float64."""
        records = [json.loads(record) for record in asked["records"]]
        stops = stop_ids(collator.tokenizer)
        costs = []
        for i, (row, mask) in enumerate(zip(answers, kept, strict=True)):
            tokens = [token for token in row[mask].tolist() if token not in stops]
            text = collator.tokenizer.decode(tokens, skip_special_tokens=False)
            record, size = records[i // self.samples], asked["input_sizes"][i // self.samples].tolist()
            grounding = collator.grounding
            prediction = make_prediction(
                record, grounding.codec, size, text, seconds=0.0, noise_label=grounding.noise_label
            )
            costs.append(answer_costs(record, prediction))
        return {
            name: torch.tensor([cost[name] for cost in costs], dtype=torch.float64).reshape(-1, self.samples)
            for name in ("iou", "fp", "fn")
        }


def until_stop(answers: Tensor, stops: list[int]) -> Tensor:
    """(N, T) bool: the tokens up to the first stop, which belongs to the answer."""
    is_stop = torch.isin(answers, torch.tensor(stops, device=answers.device)).long()
    return is_stop.cumsum(1) - is_stop == 0


def repeat_images(pictures: dict[str, Tensor], times: int) -> dict[str, Tensor]:
    """Each picture `times` times in a row; pixel_values holds the patches of all pictures one after the other."""
    patches = pictures["pixel_values"].split(pictures["image_grid_thw"].prod(1).tolist())
    return {
        "pixel_values": torch.cat([chunk for chunk in patches for _ in range(times)]),
        "image_grid_thw": pictures["image_grid_thw"].repeat_interleave(times, 0),
    }
