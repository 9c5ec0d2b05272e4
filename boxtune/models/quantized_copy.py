"""A copy of a whole model whose language model is quantized, as a folder that transformers loads like any other."""

from pathlib import Path

import torch
from transformers import BitsAndBytesConfig

from boxtune.common.errors import UserError
from boxtune.models.checkpoint import Checkpoint
from boxtune.models.config import family_of, load_config
from boxtune.models.loading import load_model
from boxtune.models.merging import write_beside_weights
from boxtune.models.quantization import nf4_config, require_dense

NF4, INT8 = "nf4", "int8"  # QLoRA, arXiv 2305.14314; LLM.int8(), arXiv 2208.07339
METHODS = (NF4, INT8)


def write_quantized(checkpoint: Checkpoint, out: Path, method: str) -> None:
    """Write the model of a checkpoint without adapter to the folder `out`, its language model quantized by bitsandbytes.

    method: one of METHODS. The vision tower and the LM head are in bf16. The folder has all that a merged model has.
    Raises UserError for a model that is quantized already, or of which bitsandbytes could quantize only a small part.
    """
    config = load_config(checkpoint.path)
    if getattr(config, "quantization_config", None):
        raise UserError(f"{checkpoint.path} is quantized already. Quantize the model in bf16.")
    family = family_of(config)
    require_dense(family, config, checkpoint.path)
    if method == NF4:
        quantization = nf4_config(family, torch.bfloat16)
    else:
        quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=family.unquantized_modules(False))
    load_model(checkpoint.path, dtype=torch.bfloat16, quantization=quantization).save_pretrained(out)
    write_beside_weights(checkpoint, out)
