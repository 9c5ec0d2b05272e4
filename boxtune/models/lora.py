"""LoRA placement: the linear layers of each part of a model, the pattern that selects them, and what was adapted.

The parts are those of LORA_PARTS in boxtune/families/family.py; each model family says where they are.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from boxtune.common.errors import UserError
from boxtune.families.family import Family
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


def part_linears(model: PreTrainedModel) -> LinearCounts:
    """The linear layers of each part of a model without adapters, 4-bit layers included."""
    paths = (path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return count_by_part(paths, family_of(model.config).lora_parts)


def adapted_modules(model: PreTrainedModel | PeftModel) -> LinearCounts:
    """The linear layers of each part that have a LoRA."""
    adapted = (path.removesuffix(".lora_A") for path, _ in model.named_modules() if path.endswith(".lora_A"))
    return count_by_part(adapted, family_of(model.config).lora_parts)


def format_counts(counts: Mapping[str, int]) -> str:
    """{"gate_proj": 4, "up_proj": 4} → "4 gate_proj, 4 up_proj"."""
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


# ---- what to adapt -----------------------------------------------------------------------------------------------------


def lora_targets(
    model: PreTrainedModel,
    parts: list[str] | None = None,
    suffixes: list[str] | str | None = None,
    vision: bool = False,
) -> str:
    """The regular expression of the module paths to adapt, for LoraConfig's target_modules.

    parts: members of LORA_PARTS, adapted completely. If there are none, `suffixes` of the language model are adapted, as in
    TRL's `lora_target_modules` (the attention projections by default), and with `vision` the linears of the vision tower's
    blocks as well. Every place names its tower, because the towers share the names of linears.
    Raises UserError that names every part or suffix without a linear, and lists the linears that the model has.
    """
    if parts:
        places = _part_patterns(model, parts)
    else:
        places = _language_patterns(model, suffixes)
        places += _part_patterns(model, VISION_BLOCKS) if vision else []
    return rf"(?:.*\.)?(?:{'|'.join(places)})"


def present_parts(model: PreTrainedModel, parts: list[str]) -> list[str]:
    """Those of `parts` in which the model has linears."""
    linears = part_linears(model)
    return [part for part in parts if linears.get(part)]


def _language_patterns(model: PreTrainedModel, targets: list[str] | str | None) -> list[str]:
    """The patterns of a `lora_target_modules` value. TRL passes a list of one name as a string."""
    suffixes = [targets] if isinstance(targets, str) else (targets or ATTENTION)
    if suffixes == ["all-linear"]:
        return _part_patterns(model, present_parts(model, LANGUAGE_PARTS))
    return [_suffix_pattern(model, suffixes)]


def _part_patterns(model: PreTrainedModel, parts: list[str]) -> list[str]:
    places, linears = family_of(model.config).lora_parts, part_linears(model)
    if empty := [part for part in parts if not linears.get(part)]:
        available = [f"{part}: {format_counts(counts)}" for part, counts in linears.items()]
        raise UserError(f"lora_parts: this model has no linears in {', '.join(empty)}. It has:", available)
    return [rf"{places[part]}\.{_any_of(linears[part])}" for part in parts]


def _suffix_pattern(model: PreTrainedModel, suffixes: list[str]) -> str:
    """Raises UserError for each suffix that the language model lacks; PEFT complains only if it lacks all of them."""
    place = _below_language_model(family_of(model.config))
    paths = [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    patterns = {suffix: re.compile(rf"(?:.*\.)?{place}{re.escape(suffix)}") for suffix in suffixes}
    if unknown := [suffix for suffix, pattern in patterns.items() if not any(map(pattern.fullmatch, paths))]:
        raise UserError(
            f"lora_target_modules: the language model has no linear layers {', '.join(unknown)}. Use "
            f"{', '.join(_language_names(model))}, or all-linear for all of them."
        )
    return rf"{place}{_any_of(suffixes)}"


def _language_names(model: PreTrainedModel) -> list[str]:
    """The names of the linears that LoRA can adapt in the language model, such as q_proj."""
    linears = part_linears(model)
    names = (path.rpartition(".")[2] for part in LANGUAGE_PARTS for path in linears.get(part, {}))
    return list(dict.fromkeys(names))


def _below_language_model(family: Family) -> str:
    return rf"{family.language_model}\..*\."


def _any_of(names: Iterable[str]) -> str:
    return rf"(?:{'|'.join(map(re.escape, names))})"


def lora_config(
    r: int, alpha: float, dropout: float, targets: str, use_rslora: bool = False, bias: str = "none"
) -> LoraConfig:
    """The PEFT config. `targets` is a pattern of `lora_targets`. bias: one of BIASES."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        use_rslora=use_rslora,
        bias=bias,
    )
