"""Model and processor: families, loading, NF4, and what was really quantised and adapted."""

from collections import Counter
from pathlib import Path

import bitsandbytes as bnb
import jinja2
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from huggingface_hub import hf_hub_download, model_info
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of whichever HTTP client the hub library uses
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.utils import is_flash_attn_2_available

from boxtune.answers.codecs import CODECS, Codec
from boxtune.common.errors import UserError, accepting, reading
from boxtune.families import FAMILIES
from boxtune.families.family import Family
from boxtune.models.lora import adapted_modules, in_words


def family_of(config: PretrainedConfig) -> Family:
    """The family of a model. Raises UserError for an architecture that is not supported."""
    if config.model_type not in FAMILIES:
        raise UserError(f"model type {config.model_type!r} is not supported; supported: {', '.join(FAMILIES)}.")
    return FAMILIES[config.model_type]


def codec_for(config: PretrainedConfig, answer: str = "boxes", name: str | None = None) -> Codec:
    """The codec of a model's family for `answer` "boxes" or "click"; `name` is another family's that is wanted instead.

    Raises UserError for an architecture that has none.
    """
    family = family_of(config)
    return CODECS[name or family.name + ("_click" if answer == "click" else "")]


def load_config(model_id: str, revision: str | None = None) -> PretrainedConfig:
    """The config of a folder or hub model. Raises UserError that names what is missing and how to get it."""
    if Path(model_id).is_dir():
        if not (Path(model_id) / "config.json").is_file():
            raise UserError(f"{model_id} holds no model (no config.json).")
    elif model_id.startswith((".", "/", "assets/", "runs/")) or model_id.count("/") != 1:
        raise UserError(
            f"no model at {model_id!r}: the folder does not exist. Train first (make train RECIPE=NAME), or name another."
        )
    else:
        require_hub_model(model_id, revision)
    with reading(f"the config of {model_id}", "Get the model again."):
        return AutoConfig.from_pretrained(model_id, revision=revision)


def commit_of(model_id: str, revision: str | None = None) -> str | None:
    """The commit of a hub model that is in the local cache, rather than "main", so that evaluating and merging later use the
    same base; None for a folder."""
    if Path(model_id).is_dir():
        return None
    return Path(hf_hub_download(model_id, "config.json", revision=revision, local_files_only=True)).parent.name


def require_hub_model(model_id: str, revision: str | None = None) -> None:
    """Ask the hub once, without the retries of a download, unless the model is in the local cache."""
    for name in ("config.json", "adapter_config.json"):
        try:
            hf_hub_download(model_id, name, revision=revision, local_files_only=True)
            return
        except HFValidationError as error:
            raise UserError(f"{model_id!r} is no folder and no hub id: {error}") from None
        except LocalEntryNotFoundError:
            pass  # not in the cache: if the other is not either, the hub must be asked
    try:
        model_info(model_id, revision=revision, timeout=10)
    except GatedRepoError:
        raise UserError(
            f"{model_id} is gated. Accept its terms on its hub page, then set HF_TOKEN or run `hf auth login`."
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise UserError(
            f"the hub has no model {model_id} (revision {revision or 'main'}), or it is private: check the spelling, "
            "or set HF_TOKEN to a token that may read it."
        ) from None
    except (HfHubHTTPError, HTTPError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{model_id} must come from the Hugging Face hub, which cannot be reached ({reason[:160]}). Connect, or "
            "download it once with `hf download`. The embedded model (overlay tiny) needs no hub."
        ) from None


def set_pixel_budget(processor: ProcessorMixin, min_pixels: int | None, max_pixels: int | None) -> None:
    """Bound the resized input's area. Saved with the processor, so training, evaluation and serving agree."""
    size = processor.image_processor.size
    low = min_pixels or size["shortest_edge"]
    high = max_pixels or size["longest_edge"]
    smallest = (processor.image_processor.patch_size * processor.image_processor.merge_size) ** 2
    if not smallest <= low <= high:
        raise UserError(
            f"min_pixels {low} and max_pixels {high}: need {smallest} (one image token) ≤ min_pixels ≤ max_pixels."
        )
    processor.image_processor.size = {"shortest_edge": low, "longest_edge": high}


def load_processor(
    model_id: str, revision: str | None = None, min_pixels: int | None = None, max_pixels: int | None = None
) -> ProcessorMixin:
    """The processor with its pixel budget set. Raises UserError where it cannot be read or cannot put a question."""
    with reading(f"the processor of {model_id}", "Get it again, or copy its files from another checkpoint of the run."):
        processor = AutoProcessor.from_pretrained(model_id, revision=revision)
    if not getattr(processor, "chat_template", None):
        raise UserError(f"the processor of {model_id} has no chat template; use an Instruct model.")
    check_processor(processor, model_id)
    set_pixel_budget(processor, min_pixels, max_pixels)
    return processor


def check_processor(processor: ProcessorMixin, model_id: str) -> None:
    """Ask one question about one picture. Raises UserError where the chat template or the special tokens are not Qwen-VL's."""
    tokenizer, content = processor.tokenizer, [{"type": "image"}, {"type": "text", "text": "Where?"}]
    try:
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    except jinja2.TemplateError as error:
        raise UserError(f"the chat template of {model_id} is torn ({error}).") from None
    problems = []
    if text.count(processor.image_token) != 1 or "Where?" not in text:
        problems.append(f"the chat template makes {text!r} of one picture and the question 'Where?'")
    missing = [name for name in ("eos_token", "pad_token") if getattr(tokenizer, name) is None]
    problems += [f"the tokenizer has no {name}" for name in missing]
    if len(tokenizer(processor.image_token, add_special_tokens=False)["input_ids"]) != 1:
        problems.append(f"the tokenizer does not know {processor.image_token}")
    if problems:
        raise UserError(
            f"the processor of {model_id} cannot be used; take its files from another checkpoint:", problems
        )


def best_attention(dtype: torch.dtype) -> str:
    """FlashAttention 2 where it is installed and can run, PyTorch's own kernels otherwise."""
    half = dtype in {torch.bfloat16, torch.float16}
    recent = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    return "flash_attention_2" if half and recent and is_flash_attn_2_available() else "sdpa"


def nf4_config(
    family: Family,
    compute_dtype: torch.dtype,
    double_quant: bool = True,
    storage: str | None = None,
    vision: bool = False,
) -> BitsAndBytesConfig:
    """NF4 (QLoRA, arXiv 2305.14314) of the language model's linears, with `vision` of the vision tower's as well.

    The head stays as it is, and by default the vision tower: quantised towers and heads lose boxes.
    """
    with accepting(f"bnb_4bit_quant_storage {storage}, or another setting of NF4, is refused"):
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=double_quant,
            bnb_4bit_compute_dtype=compute_dtype,
            bnb_4bit_quant_storage=storage,
            llm_int8_skip_modules=family.unquantized_modules(vision),
        )


def require_full_precision(config: PretrainedConfig, model_id: str) -> None:
    """Raises UserError for a model that was quantised by whoever published it: which parts, and how, would be theirs to say."""
    if getattr(config, "quantization_config", None):
        raise UserError(
            f"{model_id} is quantised already, and its adapter could not be merged. Name the model that it was made of; "
            "load_in_4bit: true quantises that."
        )


def uses_fsdp() -> bool:
    """Whether accelerate shards the weights. (transformers' is_fsdp_enabled asks besides for one way to load them.)"""
    return parse_flag_from_env("ACCELERATE_USE_FSDP")


def load_model(
    model_id: str,
    *,
    dtype: torch.dtype,
    quantization: BitsAndBytesConfig | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
) -> PreTrainedModel:
    """Load a model onto this process's device. Raises UserError where the weights are torn, missing or misshapen."""
    # FSDP shares the weights out itself, from main memory; otherwise each process loads onto its own GPU.
    device_map = None
    if PartialState().device.type == "cuda":
        device_map = {"": "cpu" if uses_fsdp() else PartialState().local_process_index}
    with reading(f"the weights of {model_id}", "Get the model again."):
        try:
            model, report = AutoModelForImageTextToText.from_pretrained(
                model_id,
                revision=revision,
                dtype=dtype,
                quantization_config=quantization,
                attn_implementation=attn_implementation or best_attention(dtype),
                device_map=device_map,
                output_loading_info=True,
            )
        except ImportError as error:
            raise UserError(
                f"{error}. recipes/overlays/fast.yaml says how to install it; sdpa needs nothing."
            ) from None
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{model_id} does not fit this GPU ({error}). Try OVERLAY=small_gpu or a smaller model."
            ) from None
    wrong = [f"missing: {key}" for key in sorted(report["missing_keys"])]
    wrong += [f"of another shape: {key}" for key in sorted(map(str, report["mismatched_keys"]))]
    wrong += [f"not the model's: {key}" for key in sorted(report["unexpected_keys"])]
    if wrong:
        raise UserError(f"the weights of {model_id} do not fit its config, {len(wrong)} of them:", wrong[:20])
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # On a CPU with AVX512-BF16, bitsandbytes 0.50 packs the weights of a layer that answers for a kernel without a
            # gradient, and goes on with it in training: one answer in between, and most of the gradient is gone.
            module.support_avx512bf16_for_cpu = False
    return model


# ---- which parts were touched ------------------------------------------------------------------------------------------


def tower(module_name: str) -> str:
    """ "vision", "language" or "head" from a module's dotted path."""
    if "visual" in module_name.split("."):
        return "vision"
    return "language" if "language_model" in module_name.split(".") else "head"


def quantised_modules(model: torch.nn.Module) -> dict[str, dict[str, int]]:
    """{tower: {"nf4": n, "full": n}}: how many linears of each tower are 4-bit."""
    counts = {name: Counter(nf4=0, full=0) for name in ("vision", "language", "head")}
    for name, module in model.named_modules():
        if type(module) is bnb.nn.Linear4bit:
            counts[tower(name)]["nf4"] += 1
        elif type(module) is torch.nn.Linear and ".lora_" not in name:
            counts[tower(name)]["full"] += 1
    return {name: dict(count) for name, count in counts.items()}


def trainable_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters; a 4-bit weight counts its logical elements."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # Two 4-bit values share a byte, and bytes may be stored as wider numbers (bnb_4bit_quant_storage).
    return trainable, sum(
        p.numel() * (2 * p.element_size() if isinstance(p, bnb.nn.Params4bit) else 1) for p in model.parameters()
    )


def describe_modules(model: torch.nn.Module) -> str:
    """What was quantised and adapted, for a person to read before training starts."""
    lines = []
    for name, counts in quantised_modules(model).items():
        lines.append(f"  {name:9s} linears: {counts['nf4']} in NF4, {counts['full']} in full precision")
    for part, counts in adapted_modules(model).items():
        lines.append(f"  LoRA on {part}: {in_words(counts)}")
    trainable, total = trainable_parameters(model)
    lines.append(f"  trainable: {trainable:,} of {total:,} parameters ({100 * trainable / total:.2f} %)")
    return "\n".join(lines)
