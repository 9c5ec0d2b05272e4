"""NF4 quantization (QLoRA, arXiv 2305.14314) of a model's linear layers."""

import re

import torch
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, PretrainedConfig

from boxtune.common.errors import UserError, accepting
from boxtune.families.family import Family


def nf4_config(
    family: Family,
    compute_dtype: torch.dtype,
    double_quant: bool = True,
    storage: str | None = None,
    vision: bool = False,
) -> BitsAndBytesConfig:
    """NF4 for the linear layers of the language model and, with `vision`, of the vision tower.

    The LM head always keeps its precision, and by default so does the vision tower: quantizing them costs box quality.
    Raises UserError if bitsandbytes rejects a setting.
    """
    with accepting(f"bnb_4bit_quant_storage {storage}, or another NF4 setting, is invalid"):
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=double_quant,
            bnb_4bit_compute_dtype=compute_dtype,
            bnb_4bit_quant_storage=storage,
            llm_int8_skip_modules=family.unquantized_modules(vision),
        )


def require_dense(family: Family, config: PretrainedConfig, model_id: str) -> None:
    """Raises UserError for a mixture of experts, most of which would stay unquantized.

    All experts of a layer are one 3-D parameter, and bitsandbytes quantizes linear layers only.
    """
    if not family.experts:
        return
    with torch.device("meta"):
        parameters = list(AutoModelForImageTextToText.from_config(config).named_parameters())
    below = re.compile(rf"(?:.*\.)?{family.experts}\..+")
    experts = sum(parameter.numel() for path, parameter in parameters if below.fullmatch(path))
    share = experts / sum(parameter.numel() for _, parameter in parameters)
    raise UserError(
        f"{model_id} is a mixture of experts and cannot be quantized to 4 bits: its experts ({share:.0%} of the weights) are not "
        f"linear layers, so {2 * experts:,} bytes would stay unquantized in 16 bits. Set load_in_4bit: false (in evaluation: "
        "--precision bfloat16), or use a dense model."
    )


def require_full_precision(config: PretrainedConfig, model_id: str) -> None:
    """Raises UserError for a model that was published quantized, because an adapter on it could not be merged."""
    if getattr(config, "quantization_config", None):
        raise UserError(
            f"{model_id} is already quantized, so an adapter trained on it could not be merged. Use the model that it was "
            "quantized from; load_in_4bit: true quantizes that while loading."
        )
