"""How large a model is, and an estimate of the memory that its training with LoRA takes."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from boxtune.common.errors import reading
from boxtune.families.family import Family

# What training takes in bytes; estimates, in no case measured as a whole.
_BYTES_16_BITS, _BYTES_NF4 = 2, 0.516  # of one weight; NF4 with nested scales
_BYTES_TRAINED = 16  # of one weight of an adapter in fp32: itself, its gradient and two moments of AdamW
# Of one token in the layer that is recomputed, for each input and output of its linear layers. A layer of Qwen2-VL-7B
# (90,112 of them) saves 0.45 GB for 1,024 tokens.
_BYTES_ACTIVATION = 4.9
_BYTES_CUDA = 1e9  # context and kernels
# The share of a GPU's memory that may be planned for; the rest is for fragmentation.
_USABLE = 0.9


@dataclass(frozen=True)
class ModelSize:
    """parameters: all of the model. quantizable: those that NF4 quantizes. ends: numbers of inputs and outputs of the adapted
    linear layers. layer_ends: the same for all linear layers that a token passes in one layer. inputs: hidden size × layers,
    which gradient checkpointing keeps for each token. source: where these numbers come from.
    """

    parameters: float
    quantizable: float
    ends: float
    layer_ends: float
    inputs: float
    source: str


@dataclass(frozen=True)
class Memory:
    """An estimate in bytes, by what takes the memory."""

    weights: float
    adapters: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.adapters + self.activations + _BYTES_CUDA

    def fits(self, gpu_gb: float) -> bool:
        return self.total <= _USABLE * gpu_gb * 1e9


def estimate_memory(size: ModelSize, in_4_bits: bool, lora_r: int, tokens: int) -> Memory:
    """Training with LoRA and gradient checkpointing, where the micro-batch has so many tokens."""
    quantized = size.quantizable if in_4_bits else 0
    return Memory(
        weights=_BYTES_NF4 * quantized + _BYTES_16_BITS * (size.parameters - quantized),
        adapters=_BYTES_TRAINED * lora_r * size.ends,
        activations=tokens * (_BYTES_ACTIVATION * size.layer_ends + _BYTES_16_BITS * size.inputs),
    )


# ---- the size ------------------------------------------------------------------------------------------------------------


def size_of(model: str, family: Family, parts: list[str]) -> ModelSize | None:
    """The size of a model with adapters on `parts`: from its config.json, in a folder or the Hub's cache, else from its name.

    The network is not used. None if its name states no size either.
    """
    config = Path(model) / "config.json" if Path(model).is_dir() else _cached_config(model)
    return size_from_config(config, family, parts) if config else size_from_name(model)


def _cached_config(model: str) -> Path | None:
    found = try_to_load_from_cache(model, "config.json") if model.count("/") == 1 else None
    return Path(found) if isinstance(found, str) else None


def size_from_config(config: Path, family: Family, parts: list[str]) -> ModelSize:
    """Counts the modules of the model without its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    with reading(str(config), "Download the model again."), torch.device("meta"):
        values = AutoConfig.for_model(**json.loads(config.read_text(encoding="utf-8")))
        model = AutoModelForImageTextToText.from_config(values)
    text = values.get_text_config()
    linears = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and f".{family.language_model}." in f".{path}"
    }
    places = re.compile("|".join(rf"(?:.*\.)?{family.lora_parts[part]}\..+" for part in parts))
    by_layer: dict[str, int] = {}
    for path, module in linears.items():
        if found := re.search(r"layers\.\d+", path):
            ends = by_layer.get(found.group(), 0)
            by_layer[found.group()] = ends + module.in_features + module.out_features
    experts = 3 * text.num_experts_per_tok * (text.hidden_size + text.moe_intermediate_size) if family.experts else 0
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        quantizable=sum(
            module.weight.numel() for path, module in linears.items() if not path.endswith(family.unquantized)
        ),
        ends=sum(
            module.in_features + module.out_features for path, module in linears.items() if places.fullmatch(path)
        ),
        layer_ends=max(by_layer.values()) + experts,
        inputs=text.hidden_size * len(by_layer),
        source=f"{config}",
    )


def size_from_name(model: str) -> ModelSize | None:
    """From "7B" or "30B-A3B" (3 billion weights for each token). The widths grow with the root of the size, as from 3B to 7B."""
    total = re.search(r"(?<![A-Za-z\d.])(\d+(?:\.\d+)?)B", model)
    if not total:
        return None
    active = re.search(r"-A(\d+(?:\.\d+)?)B", model) or total
    billions, width = float(total.group(1)), (float(active.group(1)) / 7) ** 0.5
    return ModelSize(
        parameters=(billions + 1) * 1e9,  # the name leaves out the vision tower and most embeddings
        quantizable=0.9 * billions * 1e9,
        ends=2.5e6 * width,
        layer_ends=9e4 * width,
        inputs=1e5 * width,
        source=f"the name {model}",
    )
