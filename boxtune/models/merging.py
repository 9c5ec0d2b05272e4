"""Merge a LoRA adapter into the bf16 weights of its base, one shard of the base at a time."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from boxtune.answers.example_images import copy_examples
from boxtune.common.errors import UserError, reading
from boxtune.families.family import Family
from boxtune.models.checkpoint import Checkpoint, read_adapter_prompt
from boxtune.models.config import family_of, load_config
from boxtune.models.foreign import unquantized_name
from boxtune.models.generation_config import greedy_config
from boxtune.models.head_files import HEAD_FOLDER
from boxtune.models.soft_prompt import SoftPrompt
from boxtune.models.weight_files import weight_files

PEFT_PREFIX = "base_model.model."  # PEFT's wrapping, in front of every module path


class Lora(NamedTuple):
    """The adapter of one linear layer, in float32: it adds `scale * (b @ a)` to the layer's weight.

    a: (r, in). b: (out, r). scale: lora_alpha / r, or with rsLoRA (arXiv 2312.03732) lora_alpha / sqrt(r).
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float


def merge_shards(checkpoint: Checkpoint, out: Path) -> int:
    """Write the merged model with processor and grounding.json to the folder `out`; return the number of merged modules.

    Each merged weight is computed in float32 and rounded once to bf16. The files are those of the base. The rows of a soft prompt
    become rows of the embedding matrix. A head that was tied to that matrix gets a weight of its own, the base's: otherwise the
    model would write a virtual token as readily as the word from which it was trained, and servers do not read a list of tokens
    to suppress. Raises UserError if the adapter is not a plain LoRA, or its modules do not match the base.
    """
    grounding = checkpoint.grounding
    source = base_folder(grounding.base_model, grounding.base_revision)
    config = load_config(str(source))
    if getattr(config, "quantization_config", None):
        raise UserError(
            f"the base {grounding.base_model} is quantized, and merging needs the weights that it was quantized from: add "
            f"--base-model {unquantized_name(grounding.base_model)}"
        )
    family = family_of(config)
    # Adapters made with an earlier transformers have other paths.
    loras = {family.module_path(path): lora for path, lora in read_lora(checkpoint.adapter).items()}
    whole = {family.module_path(path): weight for path, weight in read_whole(checkpoint.adapter).items()}
    if vocabulary := {family.lm_head, family.token_embeddings} & whole.keys():
        raise UserError(
            f"{checkpoint.adapter} has trained {', '.join(sorted(vocabulary))} whole, which other weights may be tied to; merge "
            "it with peft instead."
        )

    soft_prompt = read_adapter_prompt(checkpoint, config)
    unties = soft_prompt is not None and config.tie_word_embeddings
    _merge_weights(source, out, family, loras, whole, soft_prompt, unties)
    _write_config(source, out, unties)
    write_beside_weights(checkpoint, out)
    return len(loras)


def write_beside_weights(checkpoint: Checkpoint, out: Path) -> None:
    """What a bf16 model that was made of a checkpoint has besides weights and config: processor, grounding.json, detection head
    and example images."""
    grounding, processor = checkpoint.grounding, checkpoint.processor
    # Servers read generation_config.json. The base's own asks for sampling and a repetition penalty, evaluation for neither.
    greedy_config(processor.tokenizer, grounding.max_new_tokens).save_pretrained(out)
    processor.save_pretrained(out)
    if checkpoint.head:
        shutil.copytree(checkpoint.head / HEAD_FOLDER, out / HEAD_FOLDER)
    replace(grounding, base_precision="bfloat16", compute_dtype="bfloat16").save(out)
    copy_examples(checkpoint.folder, out)


def base_folder(base: str, revision: str | None) -> Path:
    """The folder with the base's safetensors. A Hub model comes from the local cache, or is downloaded."""
    load_config(base, revision)  # raises UserError if the base does not exist
    return Path(base) if Path(base).is_dir() else Path(snapshot_download(base, revision=revision))


# ---- the adapter -------------------------------------------------------------------------------------------------------


def read_lora(adapter: Path) -> dict[str, Lora]:
    """{module path: Lora} of an adapter folder. Raises UserError if the adapter is unreadable or more than a plain LoRA."""
    with reading(f"the adapter in {adapter}", "Use another checkpoint of the run."):
        config = PeftConfig.from_pretrained(adapter)
        weights = {key: weight for key, weight in _read_adapter(adapter).items() if ".lora_" in key}
    if not _is_plain_lora(config):
        raise UserError(f"{adapter} is not a plain LoRA with one rank for all modules; merge it with peft instead.")
    loras = {}
    for key, a in weights.items():
        b = weights.get(key.replace(".lora_A.", ".lora_B."))
        if not key.endswith(".lora_A.weight") or b is None:
            continue
        path = key.removeprefix(PEFT_PREFIX).removesuffix(".lora_A.weight")
        r = a.shape[0]
        scale = config.lora_alpha / (r**0.5 if config.use_rslora else r)
        loras[path] = Lora(a.float(), b.float(), scale)
    if 2 * len(loras) != len(weights):
        raise UserError(f"{adapter} contains LoRA weights without their pair; merge it with peft instead.")
    return loras


def read_whole(adapter: Path) -> dict[str, torch.Tensor]:
    """{path of a weight or bias: its trained value} of an adapter folder: those of the base that were trained with LoRA."""
    with reading(f"the adapter in {adapter}", "Use another checkpoint of the run."):
        weights = _read_adapter(adapter)
    return {
        key.removeprefix(PEFT_PREFIX).replace(".base_layer.", "."): weight
        for key, weight in weights.items()
        if ".lora_" not in key
    }


def _read_adapter(adapter: Path) -> dict[str, torch.Tensor]:
    return load_file(adapter / "adapter_model.safetensors")


def _is_plain_lora(config: PeftConfig) -> bool:
    """Whether LoRA pairs of one rank and scale, and perhaps weights and biases of the base, are all that the adapter has."""
    if not isinstance(config, LoraConfig) or config.lora_bias:  # biases of LoRA's own layers
        return False
    return not (config.use_dora or config.rank_pattern or config.alpha_pattern)


# ---- the merged model --------------------------------------------------------------------------------------------------


def _merge_weights(
    source: Path,
    out: Path,
    family: Family,
    loras: Mapping[str, Lora],
    whole: Mapping[str, torch.Tensor],
    soft_prompt: SoftPrompt | None,
    unties: bool,
) -> None:
    """Write the weights that transformers reads from `source`, with LoRAs, soft prompt, and the weights and biases of `whole`
    in place of the base's, under the names of their files.

    unties: whether the head gets the weight of the base's embedding matrix.
    """
    shards: dict[Path, list[str]] = {}
    for key, shard in weight_files(source).items():
        shards.setdefault(shard, []).append(key)
    unused, total_size, weight_map = {*loras, *whole}, 0, {}
    unused |= {family.token_embeddings} if soft_prompt else set()
    for shard, keys in tqdm(shards.items(), desc="merging", unit="shard"):
        tensors, merged = _merge_shard(
            shard, keys, family, {path: loras[path] for path in unused & loras.keys()}, whole
        )
        if soft_prompt:
            merged |= _merge_prompt(tensors, family, soft_prompt, unties)
        save_file(tensors, out / shard.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard.name)
        unused -= merged
        total_size += sum(tensor.nbytes for tensor in tensors.values())
    if unused:
        raise UserError(
            f"{len(unused)} adapted modules, or weights that were trained whole, have no weight in {source}. Is it the base that "
            "the adapter was trained on?",
            sorted(unused),
        )
    if [shard.name for shard in shards] != [SAFE_WEIGHTS_NAME]:
        _write_json(out / SAFE_WEIGHTS_INDEX_NAME, {"metadata": {"total_size": total_size}, "weight_map": weight_map})


def _merge_shard(
    shard: Path, keys: list[str], family: Family, loras: Mapping[str, Lora], whole: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], set[str]]:
    """({key: merged tensor}, paths of the modules whose LoRA was added and of the weights and biases that were replaced).
    Floating-point tensors become bf16."""
    tensors, merged = {}, set()
    with safe_open(shard, framework="pt") as weights:
        for key in keys:
            tensor = weights.get_tensor(key)
            path = family.module_path(key)
            if key.endswith(".weight") and path in loras and path not in merged:
                tensor = _add_lora(tensor, loras[path], path, shard.parent)
                merged.add(path)
            elif path in whole:
                tensor = _replace(tensor, whole[path], path, shard.parent)
                merged.add(path)
            tensors[key] = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
    return tensors, merged


def _merge_prompt(tensors: dict[str, torch.Tensor], family: Family, soft_prompt: SoftPrompt, unties: bool) -> set[str]:
    """Put the soft prompt into the merged tensors of a shard, if the embedding matrix is one of them: {its path}, else {}."""
    head = f"{family.lm_head}.weight"
    if unties:
        tensors.pop(head, None)  # a copy that is not read while the head is tied
    for key, tensor in tensors.items():
        if family.module_path(key) == family.token_embeddings:
            tensors[key] = tensor.index_copy(0, soft_prompt.token_ids, soft_prompt.embeddings.detach().to(tensor.dtype))
            if unties:
                tensors[head] = tensor
            return {family.token_embeddings}
    return set()


def _add_lora(weight: torch.Tensor, lora: Lora, path: str, source: Path) -> torch.Tensor:
    """The merged weight (out, in) in float32. Raises UserError if the shapes do not match."""
    are_matrices = lora.a.ndim == lora.b.ndim == 2
    if not are_matrices or lora.b.shape[1] != lora.a.shape[0] or weight.shape != lora.b.shape[:1] + lora.a.shape[1:]:
        raise UserError(
            f"{path}: the adapter multiplies {list(lora.b.shape)} by {list(lora.a.shape)}, but the base's weight has shape "
            f"{list(weight.shape)}. Is {source} the base that the adapter was trained on?"
        )
    return weight.float() + lora.scale * (lora.b @ lora.a)


def _replace(weight: torch.Tensor, trained: torch.Tensor, path: str, source: Path) -> torch.Tensor:
    if weight.shape != trained.shape:
        raise UserError(
            f"{path}: the adapter has shape {list(trained.shape)}, but the base {list(weight.shape)}. Is {source} the base that "
            "the adapter was trained on?"
        )
    return trained.float()


# Keys of the base's config that are not true of the merged model.
_OWN_KEYS = {"quantization_config", "torch_dtype", "transformers_weights"}


def _write_config(source: Path, out: Path, unties: bool) -> None:
    """The base's own config with bf16 as its dtype, so that every program that reads the base reads the merged model."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if key not in _OWN_KEYS}
    config |= {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    if unties:  # programs read this key in either place
        config["tie_word_embeddings"] = False
        if "text_config" in config:
            config["text_config"]["tie_word_embeddings"] = False
    _write_json(out / "config.json", config)


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
