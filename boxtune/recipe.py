"""A recipe: flat YAML, overlays and command line → the dataclasses of TRL and the fields that they lack."""

import difflib
import math
import sys
import typing
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path

import torch
import yaml
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trl import ModelConfig, SFTConfig, TrlParser

from boxtune.augmentation import OPERATIONS
from boxtune.box_validation import COSTS, LIBRARY_METRICS, METRICS
from boxtune.codecs import BOX_CODECS
from boxtune.errors import UserError, accepting
from boxtune.lora import PARTS
from boxtune.losses import BOX_LOSSES, LOSSES
from boxtune.prompts import SYSTEM_PROMPT
from boxtune.records import breaks_turns

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
GROUNDING_MODES = ("teacher_forced", "policy", "both")


@dataclass
class GroundingArguments:
    """What boxtune adds to TRL's SFTConfig and ModelConfig."""

    data_dir: str = field(default="", metadata={"help": "Prepared data set; made once when absent."})
    data_format: str | None = field(default=None, metadata={"help": "Converter that makes data_dir, as in data_prep."})
    data_source: str | None = field(default=None, metadata={"help": "What the converter reads: a path or a hub id."})
    data_args: list[str] | None = field(default=None, metadata={"help": "Further data_prep options, one item each."})
    answer: str = field(default="boxes", metadata={"help": "Answer form.", "choices": ["boxes", "click"]})
    codec: str | None = field(
        default=None,
        metadata={"help": "Box text of another family, such as qwen3_vl for 0…1000; default: the model's own."},
    )
    object_order: str = field(
        default="source",
        metadata={
            "help": "Order of the objects in an answer: as annotated, in lines of print, largest first, or drawn once.",
            "choices": ["source", "raster", "area", "random"],
        },
    )
    augment: list[str] | None = field(
        default=None,
        metadata={
            "help": "What changes a training picture, and its boxes with it, each time it is shown. flip mirrors print too.",
            "choices": list(OPERATIONS),
        },
    )
    negative_questions: float = field(
        default=0.0,
        metadata={
            "help": "Share of training examples that ask for one class which the picture lacks; as many ask for one it shows."
        },
    )
    prompt_variety: bool = field(
        default=False, metadata={"help": "Half of the training questions in other neutral words than the record's own."}
    )
    noise_objects: float = field(
        default=0.0,
        metadata={"help": "Wrong boxes, labelled noise, for each true one at the end of a training answer (Pix2Seq)."},
    )
    system_prompt: str = field(default=SYSTEM_PROMPT, metadata={"help": "System turn; saved with the checkpoint."})
    min_pixels: int | None = field(default=None, metadata={"help": "Smallest area of the resized picture."})
    max_pixels: int | None = field(default=None, metadata={"help": "Largest area of the resized picture."})
    lora_parts: list[str] | None = field(
        default=None,
        metadata={"help": f"What LoRA adapts, of {', '.join(PARTS)}; instead of lora_target_modules and lora_vision."},
    )
    lora_vision: bool = field(
        default=False, metadata={"help": "Beside lora_target_modules, adapt the linears of the vision tower's blocks."}
    )
    quantize_vision: bool = field(default=False, metadata={"help": "With load_in_4bit: the vision tower in NF4 too."})
    adapter_dtype: str = field(
        default="float32",
        metadata={"help": "What trained weights are kept in.", "choices": ["float32", "bfloat16"]},
    )
    overlong: str = field(
        default="error",
        metadata={"help": "Examples above max_length: stop, or drop and list them.", "choices": ["error", "drop"]},
    )
    eval_images: int = field(
        default=32,
        metadata={
            "help": "Pictures of validation that are answered at every evaluation, for eval_AP50 and its like; 0: never."
        },
    )
    iou_loss_weight: float = field(
        default=0.0, metadata={"help": "Weight of box_loss, beside the LM's loss; 0: plain fine-tuning."}
    )
    fp_loss_weight: float = field(
        default=0.0, metadata={"help": "Weight of stopping where no object follows (docs/losses.md)."}
    )
    fn_loss_weight: float = field(default=0.0, metadata={"help": "Weight of going on where another object follows."})
    box_loss: str = field(
        default="giou",
        metadata={
            "help": "What iou_loss_weight weighs: GIoU or L1 of the expected box, or W1 of its digits.",
            "choices": BOX_LOSSES,
        },
    )
    end_token_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the tokens that end answers in the LM's loss, against 1 of all others."},
    )
    grounding_mode: str = field(
        default="teacher_forced",
        metadata={
            "help": "Where the three weights apply: to the true answer's tokens, to the cost of sampled answers, or both.",
            "choices": GROUNDING_MODES,
        },
    )
    grounding_every: int = field(default=10, metadata={"help": "Steps from one sampling of answers to the next."})
    grounding_samples: int = field(default=4, metadata={"help": "Answers that are sampled to each question."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Evaluations without improvement before training stops."}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Delete the run that output_dir holds."})
    requires_gpu: bool = field(default=False, metadata={"help": "Stop at once where there is no CUDA GPU."})

    def __post_init__(self):
        # argparse checks the choices of what the command line says, not of what a recipe does.
        for f in fields(self):
            choices, value = f.metadata.get("choices"), getattr(self, f.name)
            items = value if isinstance(value, list) else [value]
            if choices and value is not None and not set(items) <= set(choices):
                raise ValueError(f"{f.name} must be one of {', '.join(choices)}, got {value!r}.")


@dataclass
class Recipe:
    """`values` is the merged flat mapping that was parsed; `notes` says what was changed to fit this machine. `hub_token` is
    in neither `values` nor `training`, which are saved with every checkpoint."""

    name: str
    values: dict
    notes: list[str]
    grounding: GroundingArguments
    training: SFTConfig
    model: ModelConfig
    hub_token: str | None


# Keys of TRL's dataclasses that would do nothing here, or break what was checked before training, and their only value.
_FIXED = {
    "use_dora": False,
    "fsdp": None,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "lora_modules_to_save": None,
    "lora_target_parameters": None,
    "lora_task_type": "CAUSAL_LM",
    "completion_only_loss": None,
    "assistant_only_loss": False,
    "pad_to_multiple_of": None,
    "model_init_kwargs": None,
    "chat_template_path": None,
    "eos_token": None,
    "pad_token": None,
    "packing": False,
    "eval_packing": None,
    "padding_free": False,
    "dataset_kwargs": None,
    "hub_strategy": "every_save",
    "hub_always_push": False,
    "hub_revision": None,
    "train_sampling_strategy": "random",
    "trust_remote_code": False,
}
# What numbers may be, beyond their type. NaN fails every comparison; None is not compared.
_RANGES = {
    "must be at least 1": (
        lambda value: value >= 1,
        *("lora_r", "lora_alpha", "per_device_train_batch_size", "per_device_eval_batch_size"),
        *("gradient_accumulation_steps", "max_length", "min_pixels", "max_pixels", "early_stopping_patience"),
        *("save_total_limit", "dataset_num_proc", "eval_accumulation_steps", "torch_empty_cache_steps"),
        "grounding_every",
    ),
    "must be above 0, and finite": (
        lambda value: 0 < value < math.inf,
        *("learning_rate", "num_train_epochs", "logging_steps", "eval_steps", "save_steps", "adam_epsilon"),
    ),
    "must be 0 or more, and finite": (
        lambda value: 0 <= value < math.inf,
        *("weight_decay", "max_grad_norm", "warmup_steps", "dataloader_num_workers", "neftune_noise_alpha"),
        *("eval_images", "iou_loss_weight", "fp_loss_weight", "fn_loss_weight", "noise_objects"),
        "end_token_weight",
    ),
    "must be from 0 to 1": (
        lambda value: 0 <= value <= 1,
        *("lora_dropout", "adam_beta1", "adam_beta2", "label_smoothing_factor"),
    ),
    "must be at least 2, each being compared with the others": (lambda value: value >= 2, "grounding_samples"),
    "must be from 0 to 0.5": (lambda value: 0 <= value <= 0.5, "negative_questions"),
    "must be from 0 to 4294967295": (lambda value: 0 <= value < 2**32, "seed", "data_seed"),
    "must be at least 1, or -1 to count epochs instead": (lambda value: value == -1 or value >= 1, "max_steps"),
}
_ATTENTION = ("eager", *(name for name in ALL_ATTENTION_FUNCTIONS.valid_keys() if not name.startswith("paged|")))
_DTYPES = ("bfloat16", "float16", "float32")


class _RecipeParser(TrlParser):
    """TrlParser whose complaints become one UserError instead of a usage page."""

    def error(self, message: str):
        raise UserError(f"{message}. Values come from the recipe, its overlays or the command line.")


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice; plain YAML would silently keep the last."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"key given twice: {', '.join(repeated)}", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


def find_recipe(name: str, folder: Path = RECIPES) -> Path:
    """A recipe by path, or by its bare name in `folder`. Raises UserError that lists what there is."""
    for path in (Path(name), folder / f"{name}.yaml"):
        if path.is_file():
            return path
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    close = difflib.get_close_matches(Path(name).stem, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    kind = "overlay" if folder.name == "overlays" else "recipe"
    raise UserError(f"no {kind} {name!r}.{hint} There are: {', '.join(known) or 'none'}.")


def read_yaml(path: Path) -> dict:
    """A flat YAML mapping. Raises UserError with the line where it is broken."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: bytes that are no text, impossible dates
        raise UserError(f"{path} is broken YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(
            f"{path} must hold `key: value` lines, got {'nothing' if values is None else type(values).__name__}."
        )
    return values


def _split_command_line(argv: list[str]) -> tuple[str, list[str], list[str]]:
    """(recipe, overlays, remaining arguments)."""
    config, overlays, rest = None, [], []
    arguments = iter(argv)
    for argument in arguments:
        flag, _, value = argument.partition("=")
        if flag not in {"--config", "--overlay"}:
            rest.append(argument)
            continue
        value = value or next(arguments, "")
        if not value:
            raise UserError(f"{flag} needs the name of a YAML file.")
        if flag == "--config":
            config = value
        else:
            overlays += [name for name in value.split(",") if name]
    if config is None:
        known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
        if {"-h", "--help"} & {*rest}:
            _print_help(known)
            sys.exit()
        raise UserError(f"name a recipe: --config recipes/NAME.yaml. There are: {known}.")
    return config, overlays, rest


def _print_help(recipes: str) -> None:
    """What there is to choose from, and boxtune's own keys; those of SFTConfig and ModelConfig are TRL's to explain."""
    overlays = ", ".join(sorted(path.stem for path in (RECIPES / "overlays").glob("*.yaml")))
    _RecipeParser(
        [GroundingArguments],
        usage="%(prog)s --config NAME [--overlay NAME,NAME] [--key value ...]",
        description=f"Recipes: {recipes}. Overlays, of which later ones win: {overlays}. Below are boxtune's own keys; all of "
        "TRL's SFTConfig and ModelConfig are keys as well (--config NAME --help lists them).",
    ).print_help()


def _check_keys(sources: dict[str, dict], rest: list[str], parser: TrlParser) -> None:
    known = _declared_types()
    problems = []
    for source, values in sources.items():
        for key, value in values.items():
            if key not in known:
                problems.append(f"{source}: unknown key {key!r}{_did_you_mean(key, known)}")
            elif problem := _shape_problem(value, known[key]):
                problems.append(f"{source}: {key}: {problem}")
    options = parser._option_string_actions
    flags = [argument.partition("=")[0] for argument in rest if argument.startswith("--")]
    problems += [f"command line: unknown option {f}{_did_you_mean(f, options)}" for f in flags if f not in options]
    if problems:
        raise UserError("unknown or malformed keys:", problems)


def _declared_types() -> dict[str, set[type]]:
    """{key: the types that its dataclass names}; list, dict and NoneType say what a recipe may write beside plain values."""
    types = {}
    for cls in (GroundingArguments, SFTConfig, ModelConfig):
        hints = typing.get_type_hints(cls)
        for key in (f.name for f in fields(cls) if f.init):
            types[key] = {typing.get_origin(kind) or kind for kind in typing.get_args(hints[key]) or [hints[key]]}
    return types


def _shape_problem(value, types: set[type]) -> str | None:
    """Why a value of YAML cannot be one of `types`, or None. Plain values are converted, and checked, by the parser."""
    names = {list: "a list", dict: "a mapping", type(None): "null"}
    if isinstance(value, str | int | float) or type(value) in types & names.keys():
        return None
    allowed = ["one plain value", *(name for kind, name in names.items() if kind in types)]
    return f"{value!r} must be {' or '.join(allowed)}"


def _did_you_mean(word, known) -> str:
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _check_values(grounding: GroundingArguments, training: SFTConfig, model: ModelConfig) -> None:
    """Refuse what would be ignored in silence, and combinations that cannot work."""
    values = vars(training) | vars(model) | vars(grounding)
    problems = [
        f"{key}: {values[key]!r} has no effect in boxtune; leave it at {fixed!r}"
        for key, fixed in _FIXED.items()
        if values[key] != fixed
    ]
    for rule, (holds, *keys) in _RANGES.items():
        found = {key: values[key] for key in keys if values[key] is not None}
        problems += [f"{key}: {value!r} {rule}" for key, value in found.items() if not holds(value)]
    if model.lora_target_modules == []:
        problems.append("lora_target_modules: name at least one module, or leave it out for the attention projections")
    if breaks_turns(grounding.system_prompt):
        problems.append(f"system_prompt: {grounding.system_prompt!r} holds a special token; take it out")
    if grounding.min_pixels and grounding.max_pixels and grounding.min_pixels > grounding.max_pixels:
        problems.append(f"min_pixels: {grounding.min_pixels} must not exceed max_pixels, {grounding.max_pixels}")
    if model.dtype not in _DTYPES:
        problems.append(f"dtype: {model.dtype!r} must be one of {', '.join(_DTYPES)}")
    attention = model.attn_implementation
    if attention and attention not in _ATTENTION and "/" not in attention:
        known = ", ".join(_ATTENTION)
        problems.append(
            f"attn_implementation: {attention!r} must be one of {known}, or a kernel of the hub (OWNER/NAME)"
        )
    if grounding.codec is not None and grounding.codec not in BOX_CODECS:
        problems.append(
            f"codec: {grounding.codec!r} must be one of {', '.join(BOX_CODECS)}, or null for the model's own"
        )
    if grounding.codec is not None and grounding.answer == "click":
        problems.append("codec: has no effect with answer: click; leave it out")
    if grounding.iou_loss_weight and grounding.answer == "click":
        problems.append("iou_loss_weight: a point has no IoU; leave it out with answer: click")
    if grounding.grounding_mode != "teacher_forced" and grounding.answer == "click":
        problems.append("grounding_mode: only answers in boxes can be sampled; use teacher_forced with answer: click")
    if grounding.end_token_weight != 1 and (training.label_smoothing_factor or training.loss_type != "nll"):
        problems.append("end_token_weight: weighs plain cross-entropy; leave out label_smoothing_factor and loss_type")
    if grounding.box_loss != "giou" and (not grounding.iou_loss_weight or grounding.grounding_mode == "policy"):
        problems.append(
            f"box_loss: {grounding.box_loss} has no effect while iou_loss_weight is 0, and in grounding_mode: policy"
        )
    weights = (grounding.iou_loss_weight, grounding.fp_loss_weight, grounding.fn_loss_weight)
    if grounding.grounding_mode != "teacher_forced" and not any(weights):
        problems.append(
            f"grounding_mode: {grounding.grounding_mode} has no effect while iou_loss_weight, fp_loss_weight and "
            "fn_loss_weight are 0"
        )
    if grounding.lora_parts is not None:
        rivals = {"lora_target_modules": model.lora_target_modules, "lora_vision": grounding.lora_vision}
        problems += [f"{key}: lora_parts says it all; leave one out" for key, value in rivals.items() if value]
        if not grounding.lora_parts or not set(grounding.lora_parts) <= PARTS.keys():
            problems.append(
                f"lora_parts: {grounding.lora_parts!r} must name at least one, and only, of {', '.join(PARTS)}"
            )
    if grounding.quantize_vision and not model.load_in_4bit:
        problems.append("quantize_vision: true has no effect without load_in_4bit: true")
    if model.load_in_4bit and not model.use_peft:
        problems.append("load_in_4bit: 4-bit weights cannot be trained; set use_peft: true or load_in_4bit: false")
    if not model.model_name_or_path:
        problems.append("model_name_or_path: name a model")
    metric = (training.metric_for_best_model or "").removeprefix("eval_")
    if metric in METRICS and not grounding.eval_images:
        problems.append(f"metric_for_best_model: {metric} is measured only where eval_images is above 0")
    logged = [*METRICS, *LIBRARY_METRICS]
    if (any(weights) and grounding.grounding_mode != "policy") or grounding.end_token_weight != 1:
        logged += LOSSES
    if metric and metric not in logged:
        problems.append(f"metric_for_best_model: {metric!r} is not logged; choose from {', '.join(logged)}")
    if metric in ("AP", "AP50", "mean_iou") and grounding.answer == "click":
        problems.append(f"metric_for_best_model: points have no {metric}; use f1 with answer: click")
    is_cost = metric in COSTS or metric.endswith("loss")
    is_gain = metric in METRICS or metric == "mean_token_accuracy"
    if (is_gain or is_cost) and training.greater_is_better != (not is_cost):
        right = str(not is_cost).lower()
        problems.append(
            f"greater_is_better: set it to {right} with {metric}, or the worst checkpoint is taken for the best"
        )
    if training.torch_compile and (any(weights) or grounding.end_token_weight != 1):
        problems.append(
            "torch_compile: the losses on boxes read hidden states through a hook, which a compiled model may pass by; leave out "
            "either"
        )
    if grounding.early_stopping_patience is not None and not training.load_best_model_at_end:
        problems.append("early_stopping_patience: needs load_best_model_at_end: true and metric_for_best_model")
    if problems:
        raise UserError("values that cannot be used:", problems)


def _as_default(value, types: set[type]):
    """argparse checks and converts a default only when it is text. A list of one may be written without brackets."""
    if not isinstance(value, str | int | float):
        return value
    return [str(value)] if list in types and str not in types else str(value)


# Where data lie, and how they are made: one without the others would make one data set in the folder of another.
_DATA_KEYS = {"data_dir", "data_format", "data_source", "data_args"}


def _without_rivals(values: dict, later: Iterable[str]) -> dict:
    """The values that a later source's keys leave in force: lora_parts and lora_target_modules replace each other."""
    rivals = set()
    if "lora_parts" in later:
        rivals |= {"lora_target_modules", "lora_vision"}
    if "lora_target_modules" in later:
        rivals |= {"lora_parts"}
    return {key: value for key, value in values.items() if key not in rivals}


def fit_to_machine(values: dict, overridden: Collection[str] = ()) -> tuple[dict, list[str]]:
    """The values this machine can run, and one sentence for every change. A precision of the command line is left alone."""
    values, notes = dict(values), []
    wants_bf16 = bool(values.get("bf16")) or values.get("dtype") == "bfloat16"
    wants_bf16 = wants_bf16 and not {"dtype", "bf16", "fp16"} & set(overridden)
    if not torch.cuda.is_available():
        values["use_cpu"] = not torch.backends.mps.is_available()
    elif wants_bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        values |= {"bf16": False, "fp16": True, "dtype": "float16"}
        notes.append("this GPU has no bf16: training with fp32 adapters under fp16 instead")
    return values, notes


def load_recipe(argv: list[str], needs_gpu: bool = True) -> Recipe:
    """Read `--config FILE [--overlay FILE …] [--key value …]`. Later sources win; every unknown key is reported.

    With `needs_gpu` False a recipe that requires a GPU may be read without one, to check its data."""
    config, overlay_names, rest = _split_command_line(argv)
    recipe_path = find_recipe(config)
    overlay_paths = [find_recipe(name, RECIPES / "overlays") for name in overlay_names]
    sources = {str(path): read_yaml(path) for path in [recipe_path, *overlay_paths]}
    parser = _RecipeParser([GroundingArguments, SFTConfig, ModelConfig], allow_abbrev=False)
    _check_keys(sources, rest, parser)
    # What the command line changes belongs to the record of the run as much as the YAML does.
    options = parser._option_string_actions  # a flag such as --no_gradient_checkpointing sets another key than its own
    overridden = {options[word.partition("=")[0]].dest for word in rest if word.startswith("--")}
    values, *changes = sources.values()
    if "data_dir" in overridden:  # the recipe's own data at that place, not what an overlay would draw there
        changes = [{key: value for key, value in change.items() if key not in _DATA_KEYS} for change in changes]
    for change in changes:
        values = _without_rivals(values, change) | change
    values = _without_rivals(values, overridden)
    name = "-".join([recipe_path.stem, *(path.stem for path in overlay_paths)])
    values.setdefault("output_dir", f"runs/{name}")
    values.setdefault("data_dir", f"data/{recipe_path.stem}")
    values.setdefault("run_name", name)
    values.setdefault("disable_tqdm", False)  # transformers drops the bar with its notes, which scripts silence
    values, notes = fit_to_machine(values, overridden)
    types = _declared_types()
    parser.set_defaults_with_config(**{key: _as_default(value, types[key]) for key, value in values.items()})
    with accepting(f"recipe {name} has a value that cannot be used"):
        grounding, training, model, *stray = parser.parse_args_into_dataclasses(rest, return_remaining_strings=True)
    if words := [word for part in stray for word in part]:
        raise UserError(
            f"no key stands before {', '.join(map(repr, words))}: write --key value, and commas, no spaces, between overlays."
        )
    _check_values(grounding, training, model)
    for part in (grounding, training, model):
        for f in fields(part):
            if f.name in overridden:
                value = getattr(part, f.name)
                values[f.name] = value.value if isinstance(value, Enum) else value
    if idle := [key for key in values if key.startswith("lora_") and not model.use_peft]:
        notes.append(f"use_peft: false trains every weight; without effect: {', '.join(idle)}")
    sampling = [key for key in values if key in ("grounding_every", "grounding_samples")]
    if sampling and grounding.grounding_mode == "teacher_forced":
        notes.append(f"grounding_mode: teacher_forced samples no answers; without effect: {', '.join(sampling)}")
    if needs_gpu and grounding.requires_gpu and not torch.cuda.is_available():
        raise UserError(
            f"recipe {name} needs a CUDA GPU and this machine has none. On generated pictures the embedded model runs here: "
            f"make train RECIPE={recipe_path.stem} OVERLAY=tiny. On its own: add "
            f'ARGS="--data_dir {grounding.data_dir}".'
        )
    hub_token, training.hub_token = training.hub_token, None
    values.pop("hub_token", None)
    return Recipe(name, values, notes, grounding, training, model, hub_token)
