"""Open a checkpoint in the setup that it was trained with: an adapter on its base, a merged model, or a model of the Hub."""

import hashlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import load_peft_weights
from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin

from boxtune.answers.codecs import CODECS
from boxtune.answers.conversation import SYSTEM_PROMPT, format_sentence
from boxtune.answers.grounding import FILE_NAME, Grounding
from boxtune.answers.stated import Stated
from boxtune.answers.virtual_tokens import split_soft_prompt
from boxtune.common.errors import UserError, reading
from boxtune.common.problems import Problem
from boxtune.families.family import Family
from boxtune.models.config import LOCAL_PREFIXES, codec_for, family_of, load_config
from boxtune.models.foreign import DEFAULT_MAX_PIXELS, has_processor, named_base, require_stated
from boxtune.models.head_files import has_head, head_weights, load_head
from boxtune.models.hub import download_if_trained_here
from boxtune.models.loading import load_model
from boxtune.models.processors import load_processor
from boxtune.models.quantization import nf4_config, require_dense
from boxtune.models.soft_prompt import FILE_NAME as SOFT_PROMPT_FILE
from boxtune.models.soft_prompt import SoftPrompt, attach, read_soft_prompt, virtual_token_ids

# For models that were not trained here: responses of about forty boxes.
DEFAULT_MAX_NEW_TOKENS = 1024
NOTHING_STATED = Stated()


@dataclass
class Checkpoint:
    """Everything of a checkpoint but its weights.

    path: the model's folder, or a Hub id. adapter: the folder of the LoRA weights; None for a whole model. head: the folder of
    the checkpoint if it has a detection head.
    """

    path: str
    adapter: Path | None
    grounding: Grounding
    processor: ProcessorMixin
    head: Path | None = None

    @property
    def folder(self) -> Path:
        """Where the files of the checkpoint are; for a Hub id that boxtune did not train, a folder that does not exist."""
        return self.adapter or Path(self.path)


# ---- opening -----------------------------------------------------------------------------------------------------------


def open_checkpoint(
    path: str,
    stated: Stated = NOTHING_STATED,
    max_new_tokens: int | None = None,
    command: list[str] | None = None,
) -> Checkpoint:
    """Read everything but the weights. Raises UserError if files are missing or corrupt.

    path: a local folder or a Hub id. stated: what the user says about a model without grounding.json; all others know it
    themselves. max_new_tokens: overrides the limit of the checkpoint. command: the words of the user's command, which the
    message completes if something must be stated.
    """
    folder = _local_folder(path)
    path = path if folder == Path(path) else str(folder)
    adapter = folder if (folder / "adapter_config.json").is_file() else None
    _require_files(path, folder, adapter)
    if (folder / FILE_NAME).is_file():
        grounding, processor = _read_trained_here(path, folder, stated)
    else:
        if folder.is_dir():
            require_stated(path, folder, stated, command)
        grounding, processor = _read_other_model(path, adapter, stated)
    if max_new_tokens:
        grounding = replace(grounding, max_new_tokens=max_new_tokens)
    return Checkpoint(path, adapter, grounding, processor, folder if has_head(folder) else None)


def _local_folder(path: str) -> Path:
    """The folder of a checkpoint. For a Hub id: its local copy if it was trained here, otherwise a path that does not exist."""
    folder = Path(path)
    is_hub_id = not folder.is_dir() and path.count("/") == 1 and not path.startswith(LOCAL_PREFIXES)
    return (download_if_trained_here(path) or folder) if is_hub_id else folder


def _require_files(path: str, folder: Path, adapter: Path | None) -> None:
    """Raises UserError if `folder` exists but is not a checkpoint, or is an adapter that lacks files."""
    if adapter is None:
        if folder.is_dir() and not (folder / "config.json").is_file():
            subfolders = [name for name in ("final", "final_merged") if (folder / name / FILE_NAME).is_file()]
            hint = f" Did you mean {folder / subfolders[0]}?" if subfolders else ""
            raise UserError(
                f"{path or '--ckpt'} is not a checkpoint: it has neither adapter_config.json nor config.json.{hint}"
            )
        return
    if not list(adapter.glob("adapter_model*")):
        raise UserError(
            f"{path} has no adapter weights (adapter_model.safetensors). Use another checkpoint of the run."
        )


def _read_trained_here(path: str, folder: Path, stated: Stated) -> tuple[Grounding, ProcessorMixin]:
    grounding = Grounding.load(folder)
    if stated.max_pixels and stated.max_pixels != grounding.max_pixels:
        raise UserError(
            f"{path} was trained with max_pixels {grounding.max_pixels}. Another budget ({stated.max_pixels}) would shift its "
            "boxes; omit --max-pixels."
        )
    if known := [name for name in stated.given() if name != "max_pixels"]:
        raise UserError(f"{path} was trained by boxtune, and its {FILE_NAME} states {', '.join(known)}; omit these.")
    processor = load_processor(str(folder), None, grounding.min_pixels, grounding.max_pixels)
    virtual_token_ids(processor.tokenizer, split_soft_prompt(grounding.system_prompt)[0], path)
    return grounding, processor


def _read_other_model(path: str, adapter: Path | None, stated: Stated) -> tuple[Grounding, ProcessorMixin]:
    """A model without grounding.json is asked as stated; one of the Hub, by default, with the default prompt and limits."""
    base = (stated.base_model or named_base(adapter)) if adapter else path
    own = codec_for(load_config(base))
    codec = CODECS[stated.family or own.name]
    if codec.name != own.name:
        print(f"note: reads boxes as {codec.name} writes them, although the model is a {own.name}", file=sys.stderr)
    source = (path if has_processor(adapter) else base) if adapter else stated.base_model or path
    processor = load_processor(source, None, None, stated.max_pixels or DEFAULT_MAX_PIXELS)
    size = processor.image_processor.size
    grounding = Grounding(
        codec=codec.name,
        system_prompt=SYSTEM_PROMPT if stated.system_prompt is None else stated.system_prompt,
        format_sentence=format_sentence(codec) if stated.format_sentence is None else stated.format_sentence,
        min_pixels=size["shortest_edge"],
        max_pixels=size["longest_edge"],
        max_new_tokens=DEFAULT_MAX_NEW_TOKENS,
        base_model=base,
    )
    return grounding, processor


def base_of(checkpoint: Checkpoint) -> Checkpoint:
    """The base of an adapter, asked in the same way but for what only the adapter knows. Raises UserError if it is no adapter."""
    if checkpoint.adapter is None:
        raise UserError(f"{checkpoint.path} is not an adapter, so it has no base.")
    return Checkpoint(checkpoint.grounding.base_model, None, checkpoint.grounding.of_base(), checkpoint.processor)


# ---- weights -----------------------------------------------------------------------------------------------------------


def weights_identity(checkpoint: Checkpoint) -> dict[str, str | list[int]]:
    """Values that differ between two sets of weights, by file name.

    Files of the adapter and of its soft prompt: their SHA-256. Model files: [size in bytes, modification time in ns]. A base on
    the Hub has no local files to list; `base_revision` in its grounding identifies it.
    """
    model = checkpoint.grounding.base_model if checkpoint.adapter else checkpoint.path
    trained = ("adapter_model*", SOFT_PROMPT_FILE) if checkpoint.adapter else ()
    identity: dict[str, str | list[int]] = {}
    for path in sorted(path for name in trained for path in checkpoint.adapter.glob(name)):
        identity[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    if checkpoint.head:
        identity["detection_head"] = hashlib.sha256(head_weights(checkpoint.head).read_bytes()).hexdigest()
    for path in sorted(Path(model).glob("*.safetensors")):
        identity[path.name] = [path.stat().st_size, path.stat().st_mtime_ns]
    return identity


def load_checkpoint_model(
    checkpoint: Checkpoint, precision: str | None = None, device: str | None = None
) -> PreTrainedModel | PeftModel:
    """The model, ready to generate. An adapter is not merged, so soft_prompt.without_adapter gives the base.

    precision: "nf4" or the name of a dtype; by default the precision of training. device: where the model runs; by default
    the device of this process.
    """
    grounding = checkpoint.grounding
    base = grounding.base_model if checkpoint.adapter else checkpoint.path
    revision = grounding.base_revision if base == grounding.base_model else None
    config = load_config(base, revision)
    if precision and getattr(config, "quantization_config", None):
        raise UserError(f"{base} was published quantized and cannot run in {precision}; omit --precision.")
    precision = precision or grounding.base_precision
    dtype = getattr(torch, grounding.compute_dtype if precision == "nf4" else precision)
    family = family_of(config)  # fails before any weights are downloaded
    soft_prompt = read_adapter_prompt(checkpoint, config)
    if precision == "nf4":
        require_dense(family, config, base)
    quantization = nf4_config(family, dtype, vision=grounding.quantized_vision) if precision == "nf4" else None
    base_model = load_model(base, dtype=dtype, quantization=quantization, revision=revision, device=device)
    model = _add_adapter(base_model, checkpoint.adapter, family, device) if checkpoint.adapter else base_model
    if checkpoint.head:  # after the adapter, so that PEFT does not take the head for a part of the base
        load_head(base_model, checkpoint.head)
    if soft_prompt:
        attach(model, soft_prompt)
    return model.eval()


def read_adapter_prompt(checkpoint: Checkpoint, config: PretrainedConfig) -> SoftPrompt | None:
    """The soft prompt of an adapter on a base with this config; None if it has none. A merged model has it in its weights.

    Raises UserError if its file is missing or corrupt, or does not fit the prompt.
    """
    tokens, _ = split_soft_prompt(checkpoint.grounding.system_prompt)
    folder = checkpoint.adapter
    if folder is None:
        return None
    if not tokens:
        if (folder / SOFT_PROMPT_FILE).is_file():
            raise UserError(
                f"{folder} has a soft prompt ({SOFT_PROMPT_FILE}), but the system prompt in its {FILE_NAME} does not begin with "
                f"virtual tokens. Take {FILE_NAME} from another checkpoint of the run."
            )
        return None
    token_ids = virtual_token_ids(checkpoint.processor.tokenizer, tokens, str(folder))
    return SoftPrompt(token_ids, read_soft_prompt(folder, len(tokens), config.get_text_config().hidden_size))


def _add_adapter(model: PreTrainedModel, folder: Path, family: Family, device: str | None) -> PeftModel:
    # By default PEFT loads the adapter onto a GPU, and moves a model that was placed on the CPU there as well.
    placement = {} if device is None else {"torch_device": device, "device_map": {"": device}}
    with reading(f"the adapter in {folder}", "Use another checkpoint of the run."):
        adapted = PeftModel.from_pretrained(model, folder, key_mapping=family.renamed_paths, **placement)
        weights = load_peft_weights(folder, device="cpu", key_mapping=family.renamed_paths)
    check_adapter(adapted, weights, folder)
    return adapted


def check_adapter(model: PeftModel, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Raises UserError if `weights` is not the complete, finite adapter of `model`.

    PEFT only warns about missing weights, and the model then responds like its base.
    """
    # The default save_embedding_layers="auto" would contact the Hub.
    expected = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    problems = [Problem(key, "missing") for key in sorted(expected - weights.keys())]
    problems += [Problem(key, "unexpected") for key in sorted(weights.keys() - expected)]
    problems += [Problem(key, "not finite") for key, tensor in sorted(weights.items()) if not tensor.isfinite().all()]
    if problems:
        raise UserError(
            f"{len(problems)} weights of the adapter in {folder} are unusable; use another checkpoint:",
            problems,
        )
