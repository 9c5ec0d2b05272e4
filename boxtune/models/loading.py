"""Load a model's weights: device, precision, attention kernels, and a check that every weight was found."""

from typing import Any

import bitsandbytes as bnb
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from boxtune.common.errors import UserError, reading
from boxtune.common.problems import Problem
from boxtune.models.patch_embedding import use_matrix_products


def load_model(
    model_id: str,
    *,
    dtype: torch.dtype,
    quantization: BitsAndBytesConfig | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    device: str | None = None,
) -> PreTrainedModel:
    """Load a model onto `device`; by default onto the device of this process.

    Raises UserError if the weights are corrupt, missing or of the wrong shape, or do not fit the GPU.
    """
    # None would hide the quantization of a model that was published quantized.
    quantized = {"quantization_config": quantization} if quantization else {}
    with reading(f"the weights of {model_id}", "Download the model again."):
        try:
            model, report = AutoModelForImageTextToText.from_pretrained(
                model_id,
                revision=revision,
                dtype=dtype,
                **quantized,
                attn_implementation=attn_implementation or best_attention(dtype),
                device_map=_device_map(device),
                output_loading_info=True,
            )
        except ImportError as error:
            raise UserError(
                f"{str(error).rstrip('.')}. recipes/overlays/fast.yaml explains how to install it; sdpa needs no installation."
            ) from None
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{model_id} does not fit into the memory of this GPU ({error}). Try OVERLAY=small_gpu or a smaller model."
            ) from None
    _require_all_weights(report, model_id)
    _keep_gradients_on_cpu(model)
    use_matrix_products(model)
    return model


def best_attention(dtype: torch.dtype) -> str:
    """The attention implementation: FlashAttention 2 if it is installed and runs here, otherwise PyTorch's own kernels."""
    is_half = dtype in {torch.bfloat16, torch.float16}
    is_recent_gpu = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    return "flash_attention_2" if is_half and is_recent_gpu and is_flash_attn_2_available() else "sdpa"


def uses_fsdp() -> bool:
    """Whether accelerate shards the weights. transformers' own is_fsdp_enabled also depends on how weights are loaded."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP")


def uses_deepspeed() -> bool:
    """Whether accelerate was launched with DeepSpeed."""
    return parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")


def _device_map(device: str | None) -> dict[str, str | int] | None:
    """FSDP distributes the weights itself, from main memory; otherwise each process loads onto its own GPU."""
    if device is not None:
        return {"": device}
    if PartialState().device.type != "cuda":
        return None
    return {"": "cpu" if uses_fsdp() else PartialState().local_process_index}


def _require_all_weights(report: dict[str, Any], model_id: str) -> None:
    """`report`: the loading info of transformers. Raises UserError if weights and config disagree."""
    problems = [Problem(key, "missing") for key in sorted(report["missing_keys"])]
    problems += [Problem(key, "wrong shape") for key in sorted(map(str, report["mismatched_keys"]))]
    problems += [Problem(key, "unexpected") for key in sorted(report["unexpected_keys"])]
    if problems:
        raise UserError(
            f"{len(problems)} weights of {model_id} do not match its config; download the model again:",
            problems,
        )


def _keep_gradients_on_cpu(model: PreTrainedModel) -> None:
    """Turn off a CPU kernel of bitsandbytes that has no gradient.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 repacks the weights of a 4-bit layer for that kernel when the layer is first
    used for inference, and keeps using it in training. A single generation between two steps would lose most of the gradient.
    """
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
