"""LoRA by part of the model: the linears that a part holds, the pattern that hits them, and what was adapted."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from peft import LoraConfig

from boxtune.common.errors import UserError
from boxtune.families import FAMILIES

VISION_BLOCKS = ["vision_attention", "vision_mlp"]

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL_LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


def _parts(model: torch.nn.Module) -> Mapping[str, str]:
    return FAMILIES[model.config.model_type].lora_parts


def by_part(paths: Iterable[str], parts: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """{part: {name below its place: n}} of module paths; paths that lie in none of a family's `parts` are left out."""
    counts = {part: Counter() for part in parts}
    for path in paths:
        for part, place in parts.items():
            if match := re.fullmatch(rf"(?:.*\.)?{place}\.(.+)", path):
                counts[part][match.group(1)] += 1
    return {part: dict(sorted(count.items())) for part, count in counts.items()}


def part_linears(model: torch.nn.Module) -> dict[str, dict[str, int]]:
    """{part: {name: n}}: the linears of a model without adapters, 4-bit ones too."""
    linears = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return by_part(linears, _parts(model))


def adapted_modules(model: torch.nn.Module) -> dict[str, dict[str, int]]:
    """{part: {name: n}}: which linears bear a LoRA."""
    names = (name for name, _ in model.named_modules())
    return by_part((name.removesuffix(".lora_A") for name in names if name.endswith(".lora_A")), _parts(model))


def in_words(counts: dict[str, int]) -> str:
    """{"gate_proj": 4, "up_proj": 4} → "4 gate_proj, 4 up_proj"."""
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def lora_targets(
    model: torch.nn.Module,
    parts: list[str] | None = None,
    suffixes: list[str] | str | None = None,
    vision: bool = False,
) -> str:
    """The pattern of the linears in `parts` (of LORA_PARTS), anchored to their towers, named as this model names them.

    Without parts: `suffixes` of the language model, as TRL's `lora_target_modules` has them (the attention projections by
    default), and with `vision` the linears of the vision tower's blocks. Raises UserError that names every part or suffix
    that hits nothing, and what the model has.
    """
    if parts:
        places = _part_patterns(model, parts)
    else:
        places = [_suffix_pattern(model, target_suffixes(suffixes))]
        places += _part_patterns(model, VISION_BLOCKS) if vision else []
    return rf"(?:.*\.)?(?:{'|'.join(places)})"


def _part_patterns(model: torch.nn.Module, parts: list[str]) -> list[str]:
    linears = part_linears(model)
    if empty := [part for part in parts if not linears[part]]:
        there = [f"{part}: {in_words(counts)}" for part, counts in linears.items()]
        raise UserError(f"lora_parts: this model has no linears in {', '.join(empty)}. What it has:", there)
    return [rf"{_parts(model)[part]}\.(?:{'|'.join(map(re.escape, linears[part]))})" for part in parts]


def target_suffixes(targets: list[str] | str | None) -> list[str]:
    """The modules that `lora_target_modules` means; TRL hands over a list of one as a string."""
    suffixes = [targets] if isinstance(targets, str) else (targets or ATTENTION)
    return ALL_LINEAR if suffixes == ["all-linear"] else suffixes


def _suffix_pattern(model: torch.nn.Module, suffixes: list[str]) -> str:
    """PEFT itself complains only where no suffix is found."""
    place = r"language_model\..*\."
    names = [name for name, _ in model.named_modules()]
    patterns = {suffix: re.compile(rf"(?:.*\.)?{place}{re.escape(suffix)}") for suffix in suffixes}
    if unknown := [suffix for suffix, pattern in patterns.items() if not any(map(pattern.fullmatch, names))]:
        raise UserError(
            f"lora_target_modules: the language model has no {', '.join(unknown)}. Use {', '.join(ALL_LINEAR)}, or "
            "all-linear for all of them."
        )
    return rf"{place}(?:{'|'.join(map(re.escape, suffixes))})"


def lora_config(r: int, alpha: float, dropout: float, targets: str, use_rslora: bool = False) -> LoraConfig:
    """`targets` is a pattern of lora_targets."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        use_rslora=use_rslora,
        bias="none",
    )
