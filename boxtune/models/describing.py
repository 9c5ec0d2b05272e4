"""Which parts of a loaded model are quantized, adapted and trainable."""

from collections import Counter

import bitsandbytes as bnb
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from boxtune.common.numbers import format_ranges
from boxtune.families.family import Family
from boxtune.models.config import family_of
from boxtune.models.head_files import is_of_head
from boxtune.models.lora import VISION_BLOCKS, adapted_layers, adapted_modules, format_counts
from boxtune.models.soft_prompt import soft_prompt_of
from boxtune.models.whole_modules import whole_modules


def tower(module_path: str, family: Family) -> str:
    """ "vision", "language" or "head": the tower that a module belongs to. `module_path` may have prefixes, as under PEFT."""
    if f".{family.vision_tower}." in f".{module_path}.":
        return "vision"
    return "language" if f".{family.language_model}." in f".{module_path}." else "head"


def quantized_modules(model: PreTrainedModel | PeftModel) -> dict[str, dict[str, int]]:
    """{tower: {"nf4": count, "full": count}}: how many linear layers of each tower are 4-bit and how many are not."""
    family = family_of(model.config)
    counts: dict[str, Counter[str]] = {name: Counter(nf4=0, full=0) for name in ("vision", "language", "head")}
    for path, module in model.named_modules():
        if is_of_head(path) or ".modules_to_save." in path:  # counted by itself; a copy of a module that is counted
            continue
        if type(module) is bnb.nn.Linear4bit:
            counts[tower(path, family)]["nf4"] += 1
        elif type(module) is torch.nn.Linear and ".lora_" not in path:
            counts[tower(path, family)]["full"] += 1
    return {name: dict(count) for name, count in counts.items()}


def trainable_parameters(model: PreTrainedModel | PeftModel) -> tuple[int, int]:
    """(number of trainable parameters, number of all parameters)."""
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return trainable, sum(_parameter_count(parameter) for parameter in model.parameters())


def _parameter_count(parameter: torch.nn.Parameter) -> int:
    """Two 4-bit values share a byte, and bytes may be stored as wider numbers (bnb_4bit_quant_storage)."""
    if isinstance(parameter, bnb.nn.Params4bit):
        return parameter.numel() * 2 * parameter.element_size()
    return parameter.numel()


def describe_modules(model: PreTrainedModel | PeftModel) -> str:
    """A summary of what is quantized, adapted and trainable, printed before training starts."""
    lines = []
    for name, counts in quantized_modules(model).items():
        lines.append(f"  {name:9s} linears: {counts['nf4']} in NF4, {counts['full']} in full precision")
    numbers = adapted_layers(model)
    for part, counts in adapted_modules(model).items():
        name = "blocks" if part in VISION_BLOCKS else "layers"
        where = f" ({name} {format_ranges(numbers[part])})" if numbers.get(part) else ""
        lines.append(f"  LoRA on {part}: {format_counts(counts)}{where}")
    if whole := whole_modules(model):
        lines.append(f"  trained whole: {', '.join(whole)}")
    if head := sum(parameter.numel() for path, parameter in model.named_parameters() if is_of_head(path)):
        lines.append(f"  detection head: {head:,} parameters")
    if soft_prompt := soft_prompt_of(model):
        lines.append(f"  soft prompt: {len(soft_prompt.embeddings)} virtual tokens")
    trainable, total = trainable_parameters(model)
    lines.append(f"  trainable: {trainable:,} of {total:,} parameters ({100 * trainable / total:.2f} %)")
    return "\n".join(lines)
