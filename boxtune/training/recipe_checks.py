"""What the values of a recipe may be, alone and together."""

import math
from collections.abc import Iterator

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trl import ModelConfig, SFTConfig

from boxtune.common.errors import UserError
from boxtune.data.records import breaks_turns
from boxtune.families import FAMILIES
from boxtune.families.family import LORA_PARTS
from boxtune.training.arguments import BoxtuneArguments
from boxtune.training.box_validation import COSTS, LIBRARY_METRICS, METRICS
from boxtune.training.losses import LOSSES

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
# (rule, its test, keys): what numbers may be, beyond their type. NaN fails every comparison; None is not compared.
_RANGES = (
    ("must be at least 1", lambda value: value >= 1, (
        "lora_r", "lora_alpha", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
        "max_length", "min_pixels", "max_pixels", "early_stopping_patience", "save_total_limit", "dataset_num_proc",
        "eval_accumulation_steps", "torch_empty_cache_steps", "grounding_every",
    )),
    ("must be above 0, and finite", lambda value: 0 < value < math.inf, (
        "learning_rate", "num_train_epochs", "logging_steps", "eval_steps", "save_steps", "adam_epsilon",
    )),
    ("must be 0 or more, and finite", lambda value: 0 <= value < math.inf, (
        "weight_decay", "max_grad_norm", "warmup_steps", "dataloader_num_workers", "neftune_noise_alpha", "eval_images",
        "iou_loss_weight", "fp_loss_weight", "fn_loss_weight", "noise_objects", "end_token_weight",
    )),
    ("must be from 0 to 1", lambda value: 0 <= value <= 1, (
        "lora_dropout", "adam_beta1", "adam_beta2", "label_smoothing_factor",
    )),
    ("must be at least 2, each being compared with the others", lambda value: value >= 2, ("grounding_samples",)),
    ("must be from 0 to 0.5", lambda value: 0 <= value <= 0.5, ("negative_questions",)),
    ("must be from 0 to 4294967295", lambda value: 0 <= value < 2**32, ("seed", "data_seed")),
    ("must be at least 1, or -1 to count epochs instead", lambda value: value == -1 or value >= 1, ("max_steps",)),
)  # fmt: skip
_ATTENTION = ("eager", *(name for name in ALL_ATTENTION_FUNCTIONS.valid_keys() if not name.startswith("paged|")))
_DTYPES = ("bfloat16", "float16", "float32")


def check_values(grounding: BoxtuneArguments, training: SFTConfig, model: ModelConfig) -> None:
    """Refuse what would be ignored in silence, and combinations that cannot work. Raises UserError that lists them all."""
    problems = [
        *_fixed_or_out_of_range(vars(training) | vars(model) | vars(grounding)),
        *_of_the_model(grounding, model),
        *_of_the_answer(grounding),
        *_of_the_losses(grounding, training),
        *_of_the_best_checkpoint(grounding, training),
    ]
    if problems:
        raise UserError("values that cannot be used:", problems)


def _fixed_or_out_of_range(values: dict) -> Iterator[str]:
    for key, fixed in _FIXED.items():
        if values[key] != fixed:
            yield f"{key}: {values[key]!r} has no effect in boxtune; leave it at {fixed!r}"
    for rule, holds, keys in _RANGES:
        for key in keys:
            if values[key] is not None and not holds(values[key]):
                yield f"{key}: {values[key]!r} {rule}"


def _of_the_model(grounding: BoxtuneArguments, model: ModelConfig) -> Iterator[str]:
    if not model.model_name_or_path:
        yield "model_name_or_path: name a model"
    if model.dtype not in _DTYPES:
        yield f"dtype: {model.dtype!r} must be one of {', '.join(_DTYPES)}"
    attention = model.attn_implementation
    if attention and attention not in _ATTENTION and "/" not in attention:
        known = ", ".join(_ATTENTION)
        yield f"attn_implementation: {attention!r} must be one of {known}, or a kernel of the hub (OWNER/NAME)"
    if grounding.quantize_vision and not model.load_in_4bit:
        yield "quantize_vision: true has no effect without load_in_4bit: true"
    if model.load_in_4bit and not model.use_peft:
        yield "load_in_4bit: 4-bit weights cannot be trained; set use_peft: true or load_in_4bit: false"
    if model.lora_target_modules == []:
        yield "lora_target_modules: name at least one module, or leave it out for the attention projections"
    parts = grounding.lora_parts
    if parts is not None:
        rivals = {"lora_target_modules": model.lora_target_modules, "lora_vision": grounding.lora_vision}
        yield from (f"{key}: lora_parts says it all; leave one out" for key, value in rivals.items() if value)
        if not parts or not set(parts) <= {*LORA_PARTS}:
            yield f"lora_parts: {parts!r} must name at least one, and only, of {', '.join(LORA_PARTS)}"


def _of_the_answer(grounding: BoxtuneArguments) -> Iterator[str]:
    if breaks_turns(grounding.system_prompt):
        yield f"system_prompt: {grounding.system_prompt!r} holds a special token; take it out"
    if grounding.min_pixels and grounding.max_pixels and grounding.min_pixels > grounding.max_pixels:
        yield f"min_pixels: {grounding.min_pixels} must not exceed max_pixels, {grounding.max_pixels}"
    if grounding.codec is not None and grounding.codec not in FAMILIES:
        yield f"codec: {grounding.codec!r} must be one of {', '.join(FAMILIES)}, or null for the model's own"
    if grounding.answer == "click":
        if grounding.codec is not None:
            yield "codec: has no effect with answer: click; leave it out"
        if grounding.iou_loss_weight:
            yield "iou_loss_weight: a point has no IoU; leave it out with answer: click"
        if grounding.grounding_mode != "teacher_forced":
            yield "grounding_mode: only answers in boxes can be sampled; use teacher_forced with answer: click"


def _has_box_losses(grounding: BoxtuneArguments) -> bool:
    return any((grounding.iou_loss_weight, grounding.fp_loss_weight, grounding.fn_loss_weight))


def _of_the_losses(grounding: BoxtuneArguments, training: SFTConfig) -> Iterator[str]:
    weighs_ends = grounding.end_token_weight != 1
    if weighs_ends and (training.label_smoothing_factor or training.loss_type != "nll"):
        yield "end_token_weight: weighs plain cross-entropy; leave out label_smoothing_factor and loss_type"
    if grounding.box_loss != "giou" and (not grounding.iou_loss_weight or grounding.grounding_mode == "policy"):
        yield f"box_loss: {grounding.box_loss} has no effect while iou_loss_weight is 0, and in grounding_mode: policy"
    if grounding.grounding_mode != "teacher_forced" and not _has_box_losses(grounding):
        yield (
            f"grounding_mode: {grounding.grounding_mode} has no effect while iou_loss_weight, fp_loss_weight and "
            "fn_loss_weight are 0"
        )
    if training.torch_compile and (_has_box_losses(grounding) or weighs_ends):
        yield (
            "torch_compile: the losses on boxes read hidden states through a hook, which a compiled model may pass by; leave out "
            "either"
        )


def _of_the_best_checkpoint(grounding: BoxtuneArguments, training: SFTConfig) -> Iterator[str]:
    if grounding.early_stopping_patience is not None and not training.load_best_model_at_end:
        yield "early_stopping_patience: needs load_best_model_at_end: true and metric_for_best_model"
    metric = (training.metric_for_best_model or "").removeprefix("eval_")
    if not metric:
        return
    logged = [*METRICS, *LIBRARY_METRICS]
    teacher_forced = grounding.grounding_mode != "policy" and _has_box_losses(grounding)
    if teacher_forced or grounding.end_token_weight != 1:
        logged += LOSSES
    if metric not in logged:
        yield f"metric_for_best_model: {metric!r} is not logged; choose from {', '.join(logged)}"
    if metric in METRICS and not grounding.eval_images:
        yield f"metric_for_best_model: {metric} is measured only where eval_images is above 0"
    if metric in ("AP", "AP50", "mean_iou") and grounding.answer == "click":
        yield f"metric_for_best_model: points have no {metric}; use f1 with answer: click"
    is_cost = metric in COSTS or metric.endswith("loss")
    is_gain = metric in METRICS or metric == "mean_token_accuracy"
    if (is_gain or is_cost) and training.greater_is_better != (not is_cost):
        right = str(not is_cost).lower()
        yield f"greater_is_better: set it to {right} with {metric}, or the worst checkpoint is taken for the best"
