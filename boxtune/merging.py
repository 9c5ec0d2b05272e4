"""LoRA into bf16 weights, one shard of the base at a time."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from boxtune.checkpoint import Checkpoint
from boxtune.errors import UserError
from boxtune.modeling import load_config

_PREFIX = "base_model.model."


def module_name(key: str) -> str:
    """A weight's key on disk → the module's path in transformers ≥ 5.

    The hub's Qwen2-VL and Qwen2.5-VL files say `model.layers.…` and `visual.…` where the modules are
    `model.language_model.layers.…` and `model.visual.…`; Qwen3-VL's files already say so.
    """
    name = key.removesuffix(".weight")
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model.") and not name.startswith(("model.language_model.", "model.visual.")):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name


def read_lora(adapter: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    """{module path: (A (r, in), B (out, r), scale)} in float32. Raises UserError for what a plain LoRA cannot say."""
    config = PeftConfig.from_pretrained(adapter)
    if not isinstance(config, LoraConfig) or config.use_dora or config.bias != "none" or config.modules_to_save:
        raise UserError(f"{adapter} is no plain LoRA (DoRA, biases or whole modules); merge it with peft instead.")
    try:
        weights = load_file(adapter / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(f"the adapter in {adapter} is torn: {error}") from None
    loras = {}
    for key, a in weights.items():
        if not key.endswith(".lora_A.weight"):
            continue
        b = weights[key.replace(".lora_A.", ".lora_B.")]
        path = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
        r = a.shape[0]
        scale = config.lora_alpha / (r**0.5 if config.use_rslora else r)
        loras[path] = (a.float(), b.float(), scale)
    if 2 * len(loras) != len(weights):
        raise UserError(f"{adapter} holds weights other than LoRA pairs; merge it with peft instead.")
    return loras


def base_folder(base: str, revision: str | None) -> Path:
    """The folder with the base's safetensors; a hub model is taken from the local cache or downloaded."""
    load_config(base, revision)
    return Path(base) if Path(base).is_dir() else Path(snapshot_download(base, revision=revision))


def merge_shards(checkpoint: Checkpoint, out: Path) -> int:
    """Write the merged model, processor and prompt to `out`; returns how many modules were merged.

    Each product is computed in float32 and rounded once to bf16. Raises UserError where a LoRA finds no weight.
    """
    grounding = checkpoint.grounding
    source = base_folder(grounding.base_model, grounding.base_revision)
    loras = read_lora(checkpoint.adapter)
    shards = sorted(source.glob("*.safetensors"))
    if not shards:
        raise UserError(f"{source} holds no safetensors; merging needs the base in that form.")
    unused, total_size, weight_map = set(loras), 0, {}
    for shard in tqdm(shards, desc="merging", unit="shard"):
        tensors = {}
        with safe_open(shard, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118  (safe_open is no mapping)
                tensor = weights.get_tensor(key)
                name = module_name(key)
                if name in unused and key.endswith(".weight"):
                    a, b, scale = loras[name]
                    tensor = tensor.float() + scale * (b @ a)
                    unused.remove(name)
                tensors[key] = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
                total_size += tensors[key].nbytes
                weight_map[key] = shard.name
        save_file(tensors, out / shard.name, metadata={"format": "pt"})
    if unused:
        raise UserError(f"{len(unused)} adapted modules have no weight in {source}:", sorted(unused)[:20])
    if len(shards) > 1:
        index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    config = load_config(str(source))
    config.dtype = torch.bfloat16
    config.save_pretrained(out)
    if (source / "generation_config.json").is_file():
        (out / "generation_config.json").write_bytes((source / "generation_config.json").read_bytes())
    checkpoint.processor.save_pretrained(out)
    replace(grounding, base_precision="bfloat16", compute_dtype="bfloat16").save(out)
    return len(loras)
