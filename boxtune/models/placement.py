"""LoRA placement: the pattern of the linear layers that a recipe adapts, by part, by name and by number of the layer.

Every pattern names its tower, because the towers share the names of linears.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from transformers import PretrainedConfig, PreTrainedModel

from boxtune.common.errors import UserError
from boxtune.models.config import family_of
from boxtune.models.lora import (
    ATTENTION,
    LANGUAGE_PARTS,
    VISION_BLOCKS,
    LinearCounts,
    count_by_part,
    format_counts,
)

# {recipe key: what it counts}
LAYER_KEYS = {"lora_llm_layers": "layers of the language model", "lora_vision_blocks": "blocks of the vision tower"}


class Layers(NamedTuple):
    """The layers of the language model and the blocks of the vision tower that LoRA may reach; None for all of them."""

    llm: tuple[int, ...] | None = None
    vision: tuple[int, ...] | None = None

    def of(self, part: str) -> tuple[int, ...] | None:
        """Those of one of LORA_PARTS. The merger has no numbered layers."""
        return {"language": self.llm, "vision": self.vision}.get(part.partition("_")[0])


ALL_LAYERS = Layers()


# ---- which layers ------------------------------------------------------------------------------------------------------


def read_layers(words: Iterable[object], count: int | None = None) -> tuple[int, ...]:
    """The indices that a value of lora_llm_layers or lora_vision_blocks names, in order: "-2" or "last 2", "0" for none,
    "34,35", "20-23", or several of these indices and ranges.

    count: the number of layers that there are; None to check only the form, when the indices that are returned mean nothing.
    Raises ValueError that says what is wrong.
    """
    text = ",".join(str(word).strip() for word in words)
    if text == "0":
        return ()
    if last := re.fullmatch(r"(?:-|last[\s,]*)(\d+)", text):
        number = int(last[1])
        if number < 1 or (count is not None and number > count):
            raise ValueError(f"{text!r} must name at least 1 and at most all of them, or be 0 for none")
        return tuple(range(count - number, count)) if count is not None else ()
    if text.isdecimal():
        raise ValueError(
            f"{text!r} could be a number or an index; write -{text} for the last {text}, {text}-{text} for {text}"
        )
    indices: set[int] = set()
    for item in (item.strip() for item in text.split(",")):
        if not (found := re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", item)):
            raise ValueError(f"{item!r} is neither -N (the last N), nor an index such as 3, nor a range such as 20-23")
        first, last_index = int(found[1]), int(found[2] or found[1])
        if last_index < first:
            raise ValueError(f"{item!r} ends before it begins")
        if count is not None and last_index >= count:
            raise ValueError(f"{item!r} is beyond the last, {count - 1}")
        indices |= {*range(first, last_index + 1)} if count is not None else {first}
    return tuple(sorted(indices))


def layer_counts(config: PretrainedConfig) -> dict[str, int]:
    """{key of LAYER_KEYS: how many of them a model with this config has}."""
    return {
        "lora_llm_layers": config.get_text_config().num_hidden_layers,
        "lora_vision_blocks": config.vision_config.depth,
    }


def layers_of(config: PretrainedConfig, llm: Sequence[object] | None, vision: Sequence[object] | None) -> Layers:
    """The layers that the values of lora_llm_layers and lora_vision_blocks name in a model with this config.

    Raises UserError that lists the values which name layers that the model lacks, with how many it has.
    """
    chosen, problems = [], []
    for (key, what), words in zip(LAYER_KEYS.items(), (llm, vision), strict=True):
        count = layer_counts(config)[key]
        try:
            chosen.append(None if words is None else read_layers(words, count))
        except ValueError as error:
            problems.append(f"{key}: {error}. This model has {count} {what}")
    if problems:
        raise UserError("layers that this model does not have:", problems)
    return Layers(*chosen)


# ---- what to adapt -----------------------------------------------------------------------------------------------------


def lora_targets(
    model: PreTrainedModel,
    parts: list[str] | None = None,
    suffixes: list[str] | str | None = None,
    vision: bool = False,
    layers: Layers = ALL_LAYERS,
) -> str:
    """The regular expression of the module paths to adapt, for LoraConfig's target_modules.

    parts: members of LORA_PARTS, adapted completely. If there are none, `suffixes` of the language model are adapted, as in
    TRL's `lora_target_modules`, and with `vision`, or if `layers` names blocks of the vision tower, the linears of its blocks as
    well. Without suffixes, these are the attention projections or, if `layers` names layers of the language model, all of their
    linears. layers: narrows all of this to some layers.
    Raises UserError that names every part or suffix without a linear, and lists the linears that the model has.
    """
    if parts:
        patterns = _part_patterns(model, parts, layers)
    else:
        patterns = [] if layers.llm == () else _language_patterns(model, suffixes, layers)
        patterns += _part_patterns(model, VISION_BLOCKS, layers) if vision or layers.vision else []
    if not patterns:
        raise UserError(
            "LoRA would adapt no layer at all. Raise lora_llm_layers or lora_vision_blocks; to measure the base, evaluate it "
            "(evaluate.py --ckpt MODEL, or `base: true` in a sweep)."
        )
    return rf"(?:.*\.)?(?:{'|'.join(patterns)})"


def part_linears(model: PreTrainedModel, layers: Layers = ALL_LAYERS) -> LinearCounts:
    """The linear layers of each part of a model without adapters, 4-bit layers included, in `layers` only."""
    return count_by_part(_linear_paths(model), _places(model, layers))


def present_parts(model: PreTrainedModel, parts: list[str], layers: Layers = ALL_LAYERS) -> list[str]:
    """Those of `parts` in which the model has linears."""
    linears = part_linears(model, layers)
    return [part for part in parts if linears.get(part)]


def _places(model: PreTrainedModel, layers: Layers) -> Mapping[str, str]:
    """Family.lora_parts with the indices of `layers` in place of the number, which each layered part's path has once."""
    places = family_of(model.config).lora_parts
    return {
        part: place if (chosen := layers.of(part)) is None else place.replace(r"\d+", _any_of(map(str, chosen)))
        for part, place in places.items()
    }


def _language_patterns(model: PreTrainedModel, targets: list[str] | str | None, layers: Layers) -> list[str]:
    """The patterns of a `lora_target_modules` value. TRL passes a list of one name as a string."""
    default = ATTENTION if layers.llm is None else ["all-linear"]
    suffixes = [targets] if isinstance(targets, str) else (targets or default)
    if suffixes == ["all-linear"]:
        return _part_patterns(model, present_parts(model, LANGUAGE_PARTS, layers), layers)
    return [_suffix_pattern(model, suffixes, layers)]


def _part_patterns(model: PreTrainedModel, parts: list[str], layers: Layers) -> list[str]:
    """Parts of which `layers` names no layer are left out, because the recipe asks for none of them."""
    parts = [part for part in parts if layers.of(part) != ()]
    places, linears = _places(model, layers), part_linears(model, layers)
    if empty := [part for part in parts if not linears.get(part)]:
        available = [f"{part}: {format_counts(counts)}" for part, counts in linears.items()]
        where = "" if layers == ALL_LAYERS else " in the chosen layers"
        raise UserError(f"lora_parts: this model has no linears in {', '.join(empty)}{where}. It has:", available)
    return [rf"{places[part]}\.{_any_of(linears[part])}" for part in parts]


def _suffix_pattern(model: PreTrainedModel, suffixes: list[str], layers: Layers) -> str:
    """Raises UserError for each suffix that the language model lacks; PEFT complains only if it lacks all of them."""
    numbers = "" if layers.llm is None else rf"layers\.{_any_of(map(str, layers.llm))}\."
    place = rf"{family_of(model.config).language_model}\.{numbers}.*\."
    paths = _linear_paths(model)
    patterns = {suffix: re.compile(rf"(?:.*\.)?{place}{re.escape(suffix)}") for suffix in suffixes}
    if unknown := [suffix for suffix, pattern in patterns.items() if not any(map(pattern.fullmatch, paths))]:
        where = "" if layers.llm is None else f" in its layers {', '.join(map(str, layers.llm))}"
        raise UserError(
            f"lora_target_modules: the language model has no linear layers {', '.join(unknown)}{where}. Use "
            f"{', '.join(_language_names(model, layers))}, or all-linear for all of them."
        )
    return rf"{place}{_any_of(suffixes)}"


def _language_names(model: PreTrainedModel, layers: Layers) -> list[str]:
    """The names of the linears that LoRA can adapt in the language model, such as q_proj."""
    linears = part_linears(model, layers)
    names = (path.rpartition(".")[2] for part in LANGUAGE_PARTS for path in linears.get(part, {}))
    return list(dict.fromkeys(names))


def _linear_paths(model: PreTrainedModel) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def _any_of(names: Iterable[str]) -> str:
    return rf"(?:{'|'.join(map(re.escape, names))})"
