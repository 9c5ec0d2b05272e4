"""The GPU memory that a recipe needs, computed before any weight is loaded: python -m boxtune.training.memory_plan

    make plan RECIPE=nutrition_qlora [GPU_GB=24] [ARGS="--per_device_train_batch_size 4"]

Counts the parameters of the model on torch's meta device, and the activations in one layer of the real size on the CPU. Nothing
is downloaded but the model's config. The figures are for one process; FSDP and DeepSpeed ZeRO divide some of them.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from peft import get_peft_model
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoModelForImageTextToText, PretrainedConfig

from boxtune.common.errors import UserError, command
from boxtune.models.activations import LayerBytes, language_layer_bytes, vision_block_bytes
from boxtune.models.config import family_of, load_config
from boxtune.models.language_states import below_adapter
from boxtune.models.libraries import quiet_libraries
from boxtune.training.recipe import Recipe, load_recipe
from boxtune.training.setup import make_lora_config

GPUS = (16, 24, 40, 80, 141)  # GB: T4, RTX 4090, A100, H100, H200
USABLE = 0.9  # of a GPU's memory; the rest is lost to fragmentation
CUDA = 1.0e9  # bytes of the CUDA context and its kernels
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
# NF4: half a byte for each weight, and for each block of 64 weights its scale in 32 bits or, with double quantization, in 8 bits
# and a 32-bit scale for 256 blocks (bitsandbytes).
NF4, NF4_DOUBLE = 0.5 + 4 / 64, 0.5 + 1 / 64 + 4 / (64 * 256)
# TRL computes the LM head in tiles of the vocabulary: logits in 32 bits and their gradient.
TILE, TILE_BYTES = 32768, 8


@dataclass(frozen=True)
class Cost:
    """Bytes of a model in training, apart from the batch. Activations are for each token (language) and patch (vision).

    quantizable: number of weights that NF4 quantizes; largest: of the largest such matrix, which is expanded to 16 bits while it
    is used. others: bytes of all other weights. trained: of trained weights, their gradients and the optimizer's moments.
    language, vision: activations of all layers, and with gradient checkpointing. cache: keys and values of one token. merged:
    patches in an image token.
    """

    quantizable: int
    largest: int
    others: float
    trained: float
    language: tuple[float, float]
    vision: tuple[float, float]
    vocab_size: int
    cache: float
    merged: int


@dataclass(frozen=True)
class Batch:
    """What a step holds. tokens: of the longest example, `patches` of its images before merging, `response` of its answer.

    size: how many such examples a micro-batch holds at most. limits_tokens: the recipe limits it by `tokens_per_batch`.
    """

    size: float
    tokens: int
    patches: int
    response: int
    eval_size: int
    in_4_bits: bool
    double_quant: bool
    checkpointing: bool
    limits_tokens: bool = False

    def size_key(self) -> str:
        """The recipe key, with its value, that gives this size."""
        if self.limits_tokens:
            return f"tokens_per_batch: {round(self.size * self.tokens)}"
        return f"per_device_train_batch_size: {self.size}"


def plan(cost: Cost, batch: Batch) -> dict[str, float]:
    """{what: bytes}. Activations of training and the cache of evaluation are never held together, so the larger one counts."""
    per_weight = NF4_DOUBLE if batch.double_quant else NF4
    language, vision = cost.language[batch.checkpointing], cost.vision[batch.checkpointing]
    activations = {
        "activations, language model": batch.size * batch.tokens * language,
        "activations, vision tower": batch.size * batch.patches * vision,
        "LM head": batch.size * batch.response * min(TILE, cost.vocab_size) * TILE_BYTES,
    }
    cache = {"keys and values in evaluation": batch.eval_size * (batch.tokens + batch.response) * cost.cache}
    return {
        "frozen weights": cost.others + cost.quantizable * (per_weight if batch.in_4_bits else 2),
        "a weight while it is expanded to 16 bits": 2 * cost.largest if batch.in_4_bits else 0,
        "trained weights, gradients and optimizer": cost.trained,
        **max(activations, cache, key=lambda parts: sum(parts.values())),
        "CUDA": CUDA,
    }


def fits(cost: Cost, batch: Batch, gpu_gb: float) -> bool:
    return sum(plan(cost, batch).values()) <= USABLE * gpu_gb * 1e9


def largest_batch(cost: Cost, batch: Batch, gpu_gb: float) -> int:
    """The largest of BATCH_SIZES that fits; 0 if none does."""
    return max((size for size in BATCH_SIZES if fits(cost, replace(batch, size=size), gpu_gb)), default=0)


def remedy(cost: Cost, batch: Batch, gpu_gb: float) -> str:
    """The least change with which the recipe fits, tried in this order; "" if it fits as it is."""
    if fits(cost, batch, gpu_gb):
        return ""
    if size := largest_batch(cost, replace(batch, size=1), gpu_gb):
        return replace(batch, size=min(size, batch.size)).size_key()
    changes: list[tuple[str, Batch]] = [("gradient_checkpointing: true", replace(batch, size=1, checkpointing=True))]
    changes.append(("load_in_4bit: true", replace(changes[0][1], in_4_bits=True)))
    half = replace(changes[1][1], tokens=batch.tokens // 2, patches=batch.patches // 2)
    changes.append(("half of max_pixels and max_length", half))
    needed = [replace(batch, size=1).size_key()]
    for words, changed in changes:
        needed.append(words)
        if fits(cost, changed, gpu_gb):
            return ", ".join(needed)
    return "a smaller model"


def savings(cost: Cost, batch: Batch) -> list[str]:
    """The three changes that save the most memory, with what each of them alone saves."""
    changes: dict[str, Batch] = {}
    if batch.size > 1:
        half = replace(batch, size=max(1, batch.size / 2 if batch.limits_tokens else batch.size // 2))
        changes[f"{half.size_key()} with gradient_accumulation_steps × 2"] = half
    if not batch.checkpointing:
        changes["gradient_checkpointing: true"] = replace(batch, checkpointing=True)
    if not batch.in_4_bits and cost.quantizable:
        changes["load_in_4bit: true"] = replace(batch, in_4_bits=True)
    changes["half of max_pixels"] = replace(
        batch, tokens=batch.tokens - batch.patches // (2 * cost.merged), patches=batch.patches // 2
    )
    if batch.eval_size > 1:
        words = "per_device_eval_batch_size: {}"
        changes[words.format(batch.eval_size // 2)] = replace(batch, eval_size=batch.eval_size // 2)
    now = sum(plan(cost, batch).values())
    saved = {words: now - sum(plan(cost, changed).values()) for words, changed in changes.items()}
    best = sorted(saved, key=lambda words: -saved[words])[:3]
    return [f"{words} (saves about {saved[words] / 1e9:.1f} GB)" for words in best if saved[words] > 0]


# ---- from a recipe -----------------------------------------------------------------------------------------------------


def cost_of(recipe: Recipe, config: PretrainedConfig) -> Cost:
    """Raises UserError for a recipe whose placement does not fit the model."""
    family, options = family_of(config), recipe.model
    dtype = getattr(torch, options.dtype)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
        peft_config = make_lora_config(recipe, model)
        trained = get_peft_model(model, peft_config, low_cpu_mem_usage=True) if peft_config else model
    for parameter in trained.parameters():
        if parameter.requires_grad and peft_config:
            parameter.data = parameter.data.to(getattr(torch, recipe.options.adapter_dtype))
    base = below_adapter(trained)
    skipped = family.unquantized_modules(recipe.options.quantize_vision)
    matrices = [] if family.experts else _quantizable(base, skipped)
    quantizable = {id(matrix) for matrix in matrices}
    frozen = [weight for weight in trained.parameters() if not weight.requires_grad and id(weight) not in quantizable]
    tuned = [weight for weight in trained.parameters() if weight.requires_grad]
    moments = 2 if "8bit" in str(recipe.training.optim) else 8
    text = config.get_text_config()
    head_size = text.head_dim if "head_dim" in vars(text) else text.hidden_size // text.num_attention_heads
    vision = config.vision_config
    # transformers calls the width of the tower embed_dim in Qwen2-VL, where hidden_size is that of the language model.
    width = vision.embed_dim if config.model_type == "qwen2_vl" else vision.hidden_size
    compute = torch.bfloat16 if recipe.training.bf16 or recipe.training.fp16 else dtype
    layers = base.base_model.get_submodule(family.language_model).layers
    blocks = base.base_model.get_submodule(family.vision_blocks)
    tower_is_trained = any(weight.requires_grad for weight in blocks.parameters())
    return Cost(
        quantizable=sum(matrix.numel() for matrix in matrices),
        largest=max((matrix.numel() for matrix in matrices), default=0),
        others=sum(weight.numel() * weight.element_size() for weight in frozen),
        trained=sum(weight.numel() * (2 * weight.element_size() + moments) for weight in tuned),
        language=_of_all(
            layers, lambda layer: language_layer_bytes(layer, text.hidden_size, head_size, compute), tower_is_trained
        ),
        vision=_of_all(
            blocks, lambda block: vision_block_bytes(block, width, width // vision.num_heads, compute), False
        ),
        vocab_size=text.vocab_size,
        cache=2 * len(layers) * text.num_key_value_heads * head_size * dtype.itemsize,
        merged=vision.spatial_merge_size**2,
    )


def _quantizable(base: nn.Module, skipped: list[str]) -> list[nn.Parameter]:
    """The weights that NF4 quantizes. A name of `skipped` matches the start of a path or its end."""
    return [
        module.weight
        for path, module in base.named_modules()
        if isinstance(module, nn.Linear)
        and not any(part in path for part in (".lora_A.", ".lora_B."))
        and not any(path.startswith(name) or path.removesuffix(".base_layer").endswith(name) for name in skipped)
    ]


def _of_all(layers: nn.ModuleList, count: Callable[[nn.Module], LayerBytes], from_below: bool) -> tuple[float, float]:
    """(bytes for each token without gradient checkpointing, with it: the inputs of all layers, and one layer's activations).

    A layer keeps nothing if neither it nor anything below it is trained. from_below: whether something below the first is.
    """
    counted: dict[tuple, LayerBytes] = {}
    kept: list[LayerBytes] = []
    for layer in layers:
        shapes = [(name, weight.shape, weight.requires_grad) for name, weight in layer.named_parameters()]
        from_below = from_below or any(is_trained for *_, is_trained in shapes)
        if from_below:
            signature = (type(layer), *shapes)
            if signature not in counted:  # most layers are alike
                counted[signature] = count(layer)
            kept.append(counted[signature])
    if not kept:
        return 0.0, 0.0
    return sum(layer.saved for layer in kept), sum(layer.inputs for layer in kept) + max(layer.saved for layer in kept)


def batch_of(
    recipe: Recipe, config: PretrainedConfig, max_pixels: int, tokens: int | None = None, response: int | None = None
) -> Batch:
    """The largest batch of a recipe. tokens, response: of the longest example; by default max_length with a full image.

    With `tokens_per_batch`, the batch has that many tokens, with as many patches and response tokens each as in that example.
    """
    patch = config.vision_config.patch_size
    patches = max_pixels // patch**2
    tokens = tokens or recipe.training.max_length or 2048
    limit = recipe.options.tokens_per_batch
    return Batch(
        size=max(1, limit / tokens) if limit else recipe.training.per_device_train_batch_size,
        tokens=tokens,
        patches=patches,
        response=response or max(1, tokens - patches // config.vision_config.spatial_merge_size**2),
        eval_size=recipe.training.per_device_eval_batch_size,
        in_4_bits=recipe.model.load_in_4bit,
        double_quant=recipe.model.use_bnb_nested_quant,
        checkpointing=bool(recipe.training.gradient_checkpointing),
        limits_tokens=bool(limit),
    )


# ---- shown -------------------------------------------------------------------------------------------------------------


def show(cost: Cost, batch: Batch, gpu_gb: float | None) -> None:
    """Print the parts, and for each GPU size whether they fit, the largest batch size, and what would make them fit."""
    parts = plan(cost, batch)
    console = Console()
    table = Table("memory", "GB")
    for name, size in parts.items():
        table.add_row(name, f"{size / 1e9:.2f}")
    table.add_row("together", f"{sum(parts.values()) / 1e9:.2f}")
    console.print(table)
    largest_key = "tokens_per_batch" if batch.limits_tokens else "per_device_train_batch_size"
    table = Table("GPU, GB", "fits", f"largest {largest_key}", "to make it fit")
    for size in sorted({*GPUS, *([gpu_gb] if gpu_gb else [])}):
        change = remedy(cost, batch, size)
        largest = largest_batch(cost, batch, size)
        value = replace(batch, size=largest).size_key().removeprefix(f"{largest_key}: ") if largest else "–"
        table.add_row(f"{size:g}", "no" if change else "yes", value, change)
    console.print(table)
    print(
        f"batch size {batch.size:g}, {batch.tokens} tokens and {batch.patches} patches in the longest example; an estimate for "
        f"one process, of which {USABLE:.0%} of a GPU may be used"
    )


@command
def main(argv: list[str] | None = None) -> None:
    quiet_libraries()
    words = list(sys.argv[1:] if argv is None else argv)
    gpu_gb = None
    if "--gpu_gb" in words:
        at = words.index("--gpu_gb")
        gpu_gb = _number(words[at + 1 : at + 2])
        del words[at : at + 2]
    recipe = load_recipe(words, needs_gpu=False, purpose=__doc__)
    config = load_config(recipe.model.model_name_or_path, recipe.model.model_revision)
    if not recipe.options.max_pixels:
        raise UserError("max_pixels: the recipe does not set it, so the largest image is unknown; add --max_pixels N.")
    show(cost_of(recipe, config), batch_of(recipe, config, recipe.options.max_pixels), gpu_gb)


def _number(words: list[str]) -> float:
    try:
        return float(words[0])
    except (IndexError, ValueError):
        raise UserError(f"--gpu_gb: {' '.join(words) or 'nothing'} is no number of gigabytes.") from None


if __name__ == "__main__":
    main()
