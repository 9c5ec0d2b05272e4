"""Modules that are trained whole beside LoRA (recipe key `lora_modules_to_save`), such as the merger.

PEFT keeps a trained copy of each beside the base's own module, and saves it with the adapter.
"""

import re

import bitsandbytes as bnb
import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import Tensor
from transformers import PreTrainedModel

from boxtune.common.errors import UserError
from boxtune.models.config import family_of
from boxtune.models.loading import uses_fsdp

# Stands for all mergers of a model, deepstack mergers included.
MERGER = "merger"


def whole_module_paths(model: PreTrainedModel, names: list[str], targets: str) -> list[str]:
    """The full paths of the modules that `names` name: MERGER, a module path, or the end of one, such as visual.pos_embed.

    targets: the pattern of the linears that LoRA adapts. Raises UserError that lists every name that cannot be trained whole.
    """
    if names and uses_fsdp():
        raise UserError(
            "lora_modules_to_save: does not work under FSDP; launch with recipes/accelerate/ddp.yaml, or omit it."
        )
    family, modules = family_of(model.config), dict(model.named_modules())
    chosen, problems = [], []
    for name in names:
        place = family.lora_parts[MERGER] if name == MERGER else re.escape(name)
        paths = [path for path in modules if re.fullmatch(rf"(?:.*\.)?{place}", path)]
        for path in paths:  # a list of modules has no forward pass of its own
            if isinstance(modules[path], torch.nn.ModuleList):
                paths = [below for below in paths if below != path]
                paths += [f"{path}.{child}" for child, _ in modules[path].named_children()]
        if not paths:
            problems.append(
                f"{name}: no such module; use {MERGER}, or a module path such as {family.vision_tower}.pos_embed"
            )
        for path in paths:
            if problem := _problem(path, modules, (family.lm_head, family.token_embeddings), targets):
                problems.append(f"{name}: {problem}")
        chosen += paths
    nested = [path for path in chosen if any(path.startswith(f"{other}.") for other in chosen)]
    problems += [f"{path}: is inside another of these modules; omit it" for path in nested]
    if problems:
        raise UserError("lora_modules_to_save: modules that cannot be trained whole:", problems)
    return list(dict.fromkeys(chosen))


def _problem(path: str, modules: dict[str, torch.nn.Module], vocabulary: tuple[str, ...], targets: str) -> str | None:
    below = {name: module for name, module in modules.items() if f"{name}.".startswith(f"{path}.")}
    if any(name in vocabulary for name in below):
        return "embeddings and LM head cannot be trained whole beside LoRA; use use_peft: false, or num_virtual_tokens"
    if any(re.fullmatch(targets, name) for name in below):
        return f"{path} has LoRA as well; take it out of lora_parts, or omit it here"
    if any(isinstance(module, bnb.nn.Linear4bit) for module in below.values()):
        return f"{path} is 4-bit, which cannot be trained; use quantize_vision: false or load_in_4bit: false"
    if not [*modules[path].parameters()]:
        return f"{path} has no weights"
    return None


def whole_modules(model: torch.nn.Module) -> list[str]:
    """The paths, in the base, of the modules that are trained whole."""
    wrapped = (path for path, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper))
    return [path.removeprefix("base_model.model.") for path in wrapped]


def cast_whole_modules(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Train the whole modules in `dtype`, starting from the base's own values, inside a model that keeps its own dtype.

    TRL has rounded them to bf16, as it does with LoRA.
    """
    if not isinstance(model, PeftModel):
        return
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            trained, original = module.modules_to_save["default"], module.original_module
            for weight, value in zip(trained.parameters(), original.parameters(), strict=True):
                weight.data = value.data.to(dtype)
            own = next(original.parameters()).dtype
            trained.register_forward_pre_hook(lambda _, inputs: tuple(_cast(value, dtype) for value in inputs))
            trained.register_forward_hook(lambda _, inputs, output, own=own: _cast(output, own))


def _cast(value: object, dtype: torch.dtype) -> object:
    """Indices of an embedding stay integers."""
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
