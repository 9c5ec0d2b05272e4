"""Open a checkpoint as it was trained: an adapter on its base, a merged model, or a model of the hub."""

import hashlib
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.errors import HTTPError
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import load_peft_weights
from transformers import PreTrainedModel, ProcessorMixin

from boxtune.answers.conversation import SYSTEM_PROMPT, format_sentence
from boxtune.answers.grounding import FILE_NAME, Grounding
from boxtune.common.errors import UserError, reading
from boxtune.models.loading import (
    codec_for,
    family_of,
    load_config,
    load_model,
    load_processor,
    nf4_config,
    require_hub_model,
)

# For a model that was not trained here: 1,280 image tokens, and answers of about forty boxes.
DEFAULT_MAX_PIXELS, DEFAULT_MAX_NEW_TOKENS = 1_003_520, 1024


@dataclass
class Checkpoint:
    """`adapter` is the folder of the LoRA weights, None for a whole model."""

    path: str
    adapter: Path | None
    grounding: Grounding
    processor: ProcessorMixin


def quiet_libraries() -> None:
    """Leave the terminal to what a user can act on; the libraries' notes to their own developers are not that."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Found missing adapter keys")  # an error here: check_adapter
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def open_checkpoint(path: str, max_pixels: int | None = None, max_new_tokens: int | None = None) -> Checkpoint:
    """Read everything but the weights. Raises UserError where files are missing or torn.

    The pixel budget is the checkpoint's own; `max_pixels` only serves models that carry no grounding.json.
    """
    folder = Path(path)
    if not folder.is_dir() and path.count("/") == 1 and not path.startswith("runs/"):
        folder = _hub_folder(path) or folder
        path = str(folder)
    adapter = folder if (folder / "adapter_config.json").is_file() else None
    if folder.is_dir() and adapter is None and not (folder / "config.json").is_file():
        inside = [name for name in ("final", "final_merged") if (folder / name / FILE_NAME).is_file()]
        hint = f" Did you mean {folder / inside[0]}?" if inside else ""
        raise UserError(
            f"{path or '--ckpt'} is no checkpoint: neither adapter_config.json nor config.json is there.{hint}"
        )
    if adapter and not list(folder.glob("adapter_model*")):
        raise UserError(
            f"{path} has no adapter weights (adapter_model.safetensors). Take another checkpoint of the run."
        )
    if adapter and not (folder / FILE_NAME).is_file():
        raise UserError(f"{path} has no {FILE_NAME}, so prompt and pixel budget are unknown. Was it trained elsewhere?")
    if (folder / FILE_NAME).is_file():
        grounding = Grounding.load(folder)
        if max_pixels and max_pixels != grounding.max_pixels:
            raise UserError(
                f"{path} was trained with max_pixels {grounding.max_pixels}; another budget ({max_pixels}) shifts boxes. "
                "Leave out --max-pixels."
            )
        processor = load_processor(str(folder), None, grounding.min_pixels, grounding.max_pixels)
    else:
        config = load_config(path)
        codec = codec_for(config)
        processor = load_processor(path, None, None, max_pixels or DEFAULT_MAX_PIXELS)
        size = processor.image_processor.size
        grounding = Grounding(
            codec=codec.name,
            system_prompt=SYSTEM_PROMPT,
            format_sentence=format_sentence(codec),
            min_pixels=size["shortest_edge"],
            max_pixels=size["longest_edge"],
            max_new_tokens=DEFAULT_MAX_NEW_TOKENS,
            base_model=path,
        )
    if max_new_tokens:
        grounding.max_new_tokens = max_new_tokens
    return Checkpoint(path, adapter, grounding, processor)


def _hub_folder(repo_id: str) -> Path | None:
    """The local copy of a hub repository that was trained here (adapter or merged), or None for any other model."""
    require_hub_model(repo_id)
    try:
        names = set(list_repo_files(repo_id))
    except (HTTPError, OSError):  # no network, or none wanted: it is in the cache, or the line before had raised
        names = {path.name for path in Path(snapshot_download(repo_id, local_files_only=True)).iterdir()}
    return Path(snapshot_download(repo_id)) if names & {"adapter_config.json", FILE_NAME} else None


def weights_identity(checkpoint: Checkpoint) -> dict:
    """What tells one set of weights from another: the adapter's hash, and names, sizes and times of the model's files.

    Of a base on the hub there are no files; `base_revision` of the grounding is its identity.
    """
    model = checkpoint.grounding.base_model if checkpoint.adapter else checkpoint.path
    adapter = sorted(checkpoint.adapter.glob("adapter_model*")) if checkpoint.adapter else []
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in adapter} | {
        path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(Path(model).glob("*.safetensors"))
    }


def load_checkpoint_model(checkpoint: Checkpoint, precision: str | None = None) -> PreTrainedModel | PeftModel:
    """The model ready to generate. `precision` is "nf4" or a dtype; by default that of training.

    An adapter stays an adapter, so that `disable_adapter()` gives the base.
    """
    grounding = checkpoint.grounding
    precision = precision or grounding.base_precision
    dtype = getattr(torch, grounding.compute_dtype if precision == "nf4" else precision)
    base = grounding.base_model if checkpoint.adapter else checkpoint.path
    revision = grounding.base_revision if checkpoint.adapter else None
    family = family_of(load_config(base, revision))  # names what is wrong before any weights are fetched
    quantization = nf4_config(family, dtype, vision=grounding.quantized_vision) if precision == "nf4" else None
    model = load_model(base, dtype=dtype, quantization=quantization, revision=revision)
    if checkpoint.adapter:
        with reading(f"the adapter in {checkpoint.adapter}", "Take another checkpoint of the run."):
            model = PeftModel.from_pretrained(model, checkpoint.adapter)
            weights = load_peft_weights(checkpoint.adapter, device="cpu")
        check_adapter(model, weights, checkpoint.adapter)
    return model.eval()


def check_adapter(model: PeftModel, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Raises UserError where `weights` is not the whole adapter of `model`; peft only warns, and answers as the base."""
    expected = get_peft_model_state_dict(model, save_embedding_layers=False).keys()  # "auto" would ask the hub
    wrong = [f"missing: {key}" for key in sorted(expected - weights.keys())]
    wrong += [f"not the model's: {key}" for key in sorted(weights.keys() - expected)]
    wrong += [f"not finite: {key}" for key, tensor in sorted(weights.items()) if not tensor.isfinite().all()]
    if wrong:
        raise UserError(
            f"the adapter in {folder} is not whole, {len(wrong)} of its weights; take another checkpoint:", wrong[:20]
        )
