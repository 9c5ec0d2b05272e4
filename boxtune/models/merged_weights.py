"""Compare the tensors of a merged model with base + adapter, one at a time. The adapter's scale and places come from PEFT.

Nothing here is shared with merging.py but the names of keys, so that a wrong scale or place there is found here.
"""

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import load_peft_weights
from safetensors import safe_open
from tqdm import tqdm
from transformers import AutoModelForImageTextToText

from boxtune.common.errors import reading
from boxtune.common.problems import MAX_EXAMPLES
from boxtune.families.family import Family
from boxtune.models.checkpoint import Checkpoint, read_adapter_prompt
from boxtune.models.config import family_of, load_config
from boxtune.models.merging import PEFT_PREFIX, Lora, base_folder
from boxtune.models.soft_prompt import SoftPrompt
from boxtune.models.weight_files import weight_files

# bf16 keeps 8 significant bits, so rounding changes a number in [2ᵏ⁻¹, 2ᵏ) by at most 2ᵏ⁻⁹.
HALF_STEP = 2.0**-9
# float32 sums in another order differ in their last bits: by this share of a half step, and of the largest product.
SUM_NOISE, PRODUCT_NOISE = 2.0**-10, 2.0**-20


def compare_weights(checkpoint: Checkpoint, merged_folder: Path) -> dict[str, Any]:
    """Every tensor of the merged model against base + scale · (B · A), or the trained weight or bias, in float32 and rounded to
    bf16. Of the embedding matrix, the rows of a soft prompt are compared with the adapter's.

    {"compared", "adapted", "different": numbers of tensors, "examples": keys of different ones}. A tensor differs if an element
    is not the bf16 number nearest to the float32 value, or if only the base or only the merged model has it. Holds one tensor
    of each model in memory, so it also runs where the whole model does not fit.
    """
    grounding = checkpoint.grounding
    source = base_folder(grounding.base_model, grounding.base_revision)
    config = load_config(str(source))
    family = family_of(config)
    loras, whole = peft_loras(source, checkpoint.adapter, family), peft_whole(checkpoint.adapter, family)
    base_files, merged_files = weight_files(source), weight_files(merged_folder)
    different, adapted = base_files.keys() ^ merged_files.keys(), set()
    keys = base_files.keys() & merged_files.keys()
    if soft_prompt := read_adapter_prompt(checkpoint, config):
        same, wrong = _compare_prompt(soft_prompt, base_files, merged_files, family, config.tie_word_embeddings)
        different, keys, adapted = different - same | wrong, keys - same - wrong, {family.token_embeddings}
    for key in tqdm(keys, desc="comparing weights", unit="tensor", leave=False):
        path = family.module_path(key)
        lora = loras.get(path) if key.endswith(".weight") else None
        if lora:
            adapted.add(path)
        base = whole.pop(path) if path in whole else _read(base_files[key], key)
        if not is_nearest_bf16(_read(merged_files[key], key), base, lora):
            different.add(key)
    different |= (loras.keys() - adapted) | whole.keys()
    return {
        "compared": len(base_files.keys() | merged_files.keys()),
        "adapted": len(adapted),
        "different": len(different),
        "examples": sorted(different)[:MAX_EXAMPLES],
    }


def _compare_prompt(
    soft_prompt: SoftPrompt, base_files: dict[str, Path], merged_files: dict[str, Path], family: Family, is_tied: bool
) -> tuple[set[str], set[str]]:
    """(keys that are right, keys that are wrong) of the embedding matrix and, if the base ties it to its head, of that."""
    key = next(key for key in base_files if family.module_path(key) == family.token_embeddings)
    base = _read(base_files[key], key).to(torch.bfloat16)
    expected = {key: base.clone()}
    for token_id, row in zip(soft_prompt.token_ids.tolist(), soft_prompt.embeddings.detach(), strict=True):
        expected[key][token_id] = row.to(torch.bfloat16)
    if is_tied:
        expected[f"{family.lm_head}.weight"] = base
    wrong = {
        name
        for name, tensor in expected.items()
        if name not in merged_files or not torch.equal(_read(merged_files[name], name), tensor)
    }
    return expected.keys() - wrong, wrong


def peft_loras(source: Path, adapter: Path, family: Family) -> dict[str, Lora]:
    """{module path: Lora} for each module that PEFT adapts, with PEFT's scale. Raises UserError if weights are missing."""
    with torch.device("meta"):  # the modules without their weights
        model = AutoModelForImageTextToText.from_config(load_config(str(source)))
    with reading(f"the adapter in {adapter}", "Use another checkpoint of the run."):
        adapted = PeftModel(model, PeftConfig.from_pretrained(adapter), low_cpu_mem_usage=True)
        weights = load_peft_weights(str(adapter), device="cpu", key_mapping=family.renamed_paths)
        loras = {}
        for path, module in adapted.named_modules():
            if isinstance(module, LoraLayer):
                a, b = (weights[f"{path}.{name}.weight"].float() for name in ("lora_A", "lora_B"))
                loras[path.removeprefix(PEFT_PREFIX)] = Lora(a, b, module.scaling["default"])
    return loras


def peft_whole(adapter: Path, family: Family) -> dict[str, torch.Tensor]:
    """{path: value} for each weight or bias of the base that was trained itself. The path of a weight is that of its module."""
    with reading(f"the adapter in {adapter}", "Use another checkpoint of the run."):
        weights = load_peft_weights(str(adapter), device="cpu", key_mapping=family.renamed_paths)
    paths = {key: key.removeprefix(PEFT_PREFIX).replace("base_layer.bias", "bias") for key in weights}
    return {path.removesuffix(".weight"): weights[key] for key, path in paths.items() if ".lora_" not in key}


def _read(file: Path, key: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as weights:
        return weights.get_tensor(key)


def is_nearest_bf16(merged: torch.Tensor, base: torch.Tensor, lora: Lora | None = None) -> bool:
    """Whether each element of `merged` is the bf16 number nearest to base + scale · (B · A), up to float32's own rounding.

    Without a LoRA, `merged` must equal `base` rounded to bf16; integers are not rounded.
    """
    if lora is None:
        return torch.equal(merged, base.to(torch.bfloat16) if base.is_floating_point() else base)
    product = lora.scale * (lora.b @ lora.a)
    if merged.dtype != torch.bfloat16 or not merged.shape == base.shape == product.shape:
        return False
    expected = base.float() + product
    half_step = torch.ldexp(torch.full_like(expected, HALF_STEP), torch.frexp(expected).exponent)
    allowed = (1 + SUM_NOISE) * half_step + PRODUCT_NOISE * product.abs().max()
    return bool(((merged.float() - expected).abs() <= allowed).all())
