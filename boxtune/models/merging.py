"""LoRA into bf16 weights, one shard of the base at a time."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from boxtune.common.errors import UserError, reading
from boxtune.models.checkpoint import Checkpoint
from boxtune.models.generation_config import greedy_config
from boxtune.models.loading import family_of, load_config

_PREFIX = "base_model.model."


def read_lora(adapter: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    """{module path: (A (r, in), B (out, r), scale)} in float32. Raises UserError for what a plain LoRA cannot say."""
    with reading(f"the adapter in {adapter}", "Take another checkpoint of the run."):
        config = PeftConfig.from_pretrained(adapter)
        weights = load_file(adapter / "adapter_model.safetensors")
    plain = isinstance(config, LoraConfig) and not (config.use_dora or config.modules_to_save)
    if not plain or config.bias != "none" or config.rank_pattern or config.alpha_pattern:
        raise UserError(f"{adapter} is no plain LoRA of one rank; merge it with peft instead.")
    loras = {}
    for key, a in weights.items():
        b = weights.get(key.replace(".lora_A.", ".lora_B."))
        if not key.endswith(".lora_A.weight") or b is None:
            continue
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
    family = family_of(load_config(str(source)))
    loras = read_lora(checkpoint.adapter)
    shards = sorted(source.glob("*.safetensors"))
    if not shards:
        raise UserError(f"{source} holds no safetensors; merging needs the base in that form.")
    unused, total_size, weight_map = set(loras), 0, {}
    for shard in tqdm(shards, desc="merging", unit="shard"):
        tensors = {}
        with reading(str(shard), "Get the base again."):
            opened = safe_open(shard, framework="pt")
        with opened as weights:
            for key in weights.keys():  # noqa: SIM118  (safe_open is no mapping)
                tensor = weights.get_tensor(key)
                name = family.module_path(key)
                if name in unused and key.endswith(".weight"):
                    a, b, scale = loras[name]
                    if b.shape[1:] + tensor.shape != a.shape[:1] + b.shape[:1] + a.shape[1:]:
                        raise UserError(
                            f"{name}: the adapter has {list(b.shape)} times {list(a.shape)}, the base {list(tensor.shape)}. "
                            f"Is {source} the base that it was trained on?"
                        )
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
    # The base's own words, so that every program that reads the base reads the merged model.
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if key not in {"quantization_config", "torch_dtype"}}
    config |= {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    (out / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    # Servers follow this file: the hub's asks for sampling and a repetition penalty, evaluation for neither.
    greedy_config(checkpoint.processor.tokenizer, grounding.max_new_tokens).save_pretrained(out)
    checkpoint.processor.save_pretrained(out)
    replace(grounding, base_precision="bfloat16", compute_dtype="bfloat16").save(out)
    return len(loras)
