"""LoRA: the linear layers of each part of a model, which of them are adapted, and PEFT's config.

The parts are those of LORA_PARTS in boxtune/families/family.py; each model family says where they are.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from boxtune.models.config import family_of

LANGUAGE_PARTS = ["language_attention", "language_linear_attention", "language_mlp"]
VISION_BLOCKS = ["vision_attention", "vision_mlp"]

# The names that `lora_target_modules` selects by default, in the language model of every family.
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]

# Which biases of the base are trained with LoRA: none, those of all layers, or those of the adapted layers.
BIASES = ("none", "all", "lora_only")

LinearCounts = dict[str, dict[str, int]]  # {part: {name of the linear below the part's place: count}}


# ---- what a model has --------------------------------------------------------------------------------------------------


def count_by_part(paths: Iterable[str], places: Mapping[str, str]) -> LinearCounts:
    """Count module paths by part. Paths outside all parts are left out.

    places: {part: regular expression of the path below which the part's linears are}, as in Family.lora_parts.
    """
    counts: dict[str, Counter[str]] = {part: Counter() for part in places}
    for path in paths:
        for part, place in places.items():
            if match := re.fullmatch(rf"(?:.*\.)?{place}\.(.+)", path):
                counts[part][match.group(1)] += 1
    return {part: dict(sorted(count.items())) for part, count in counts.items()}


def adapted_modules(model: PreTrainedModel | PeftModel) -> LinearCounts:
    """The linear layers of each part that have a LoRA."""
    return count_by_part(_adapted_paths(model), family_of(model.config).lora_parts)


def adapted_layers(model: PreTrainedModel | PeftModel) -> dict[str, list[int]]:
    """{part: the numbers of its layers or blocks that have a LoRA}. The merger has none."""
    numbers = {}
    for part, place in family_of(model.config).lora_parts.items():
        if part != "merger":
            number = place.replace(r"\d+", r"(\d+)")
            found = (re.fullmatch(rf"(?:.*\.)?{number}\..+", path) for path in _adapted_paths(model))
            numbers[part] = sorted({int(match[1]) for match in found if match})
    return numbers


def _adapted_paths(model: torch.nn.Module) -> list[str]:
    return [path.removesuffix(".lora_A") for path, _ in model.named_modules() if path.endswith(".lora_A")]


def format_counts(counts: Mapping[str, int]) -> str:
    """{"gate_proj": 4, "up_proj": 4} → "4 gate_proj, 4 up_proj"."""
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


# ---- the config -------------------------------------------------------------------------------------------------------


def lora_config(
    r: int,
    alpha: float,
    dropout: float,
    targets: str,
    use_rslora: bool = False,
    bias: str = "none",
    whole_modules: list[str] | None = None,
) -> LoraConfig:
    """The PEFT config. `targets` is a pattern of `lora_targets`. bias: one of BIASES. whole_modules: their paths."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        use_rslora=use_rslora,
        bias=bias,
        modules_to_save=whole_modules or None,
    )
