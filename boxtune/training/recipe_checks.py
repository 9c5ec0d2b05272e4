"""Checks of a recipe's values, individually and in combination."""

import math
from collections.abc import Iterator

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trl import ModelConfig, SFTConfig

from boxtune.answers.decoding import Decoding
from boxtune.common.errors import UserError
from boxtune.data.record_checks import breaks_turns, label_problem
from boxtune.families import FAMILIES
from boxtune.families.family import LORA_PARTS
from boxtune.inference.guardrail_suite import read_suite
from boxtune.models.placement import read_layers
from boxtune.training.arguments import BoxtuneArguments
from boxtune.training.box_validation import COSTS, HEAD_METRICS, LIBRARY_METRICS, METRICS
from boxtune.training.losses import LOSSES
from boxtune.training.phases import RATE_KEYS, ends_early, phase_problems, read_phases

# {TRL key: its only allowed value}. Other values would have no effect here or would invalidate checks made before training.
_FIXED = {
    "use_dora": False,
    "fsdp": None,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
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
    "trust_remote_code": False,
}
GUARDRAIL_LIMITS = (
    *("stop_pass_rate_drop", "stop_pass_rate_floor", "stop_hallucination_rise", "stop_caption_drop"),
    *("select_pass_rate_drop", "select_hallucination_rise"),
)
# (rule, test, keys): allowed ranges of numbers. NaN fails every comparison; None is not compared.
_RANGES = (
    ("must be at least 1", lambda value: value >= 1, (
        "lora_r", "lora_alpha", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
        "max_length", "min_pixels", "max_pixels", "early_stopping_patience", "save_total_limit", "dataset_num_proc",
        "eval_accumulation_steps", "torch_empty_cache_steps", "grounding_every", "detection_queries", "detection_caption_layers",
        "skipped_steps_limit", "num_teacher_samples", "guardrail_every", "tokens_per_batch",
    )),
    ("must be above 0, and finite", lambda value: 0 < value < math.inf, (
        "learning_rate", "num_train_epochs", "logging_steps", "eval_steps", "save_steps", "adam_epsilon", "vision_cache_gb",
    )),
    ("must be 0 or more, and finite", lambda value: 0 <= value < math.inf, (
        "weight_decay", "max_grad_norm", "warmup_steps", "dataloader_num_workers", "neftune_noise_alpha", "eval_images",
        "iou_loss_weight", "fp_loss_weight", "fn_loss_weight", "noise_objects", "end_token_weight",
        "detection_bbox_weight", "detection_giou_weight", "detection_objectness_weight",
        "detection_caption_weight", *RATE_KEYS, "detection_freeze_epochs", "vision_warmup_steps", "recovery_steps",
        "num_virtual_tokens", "train_images", "stop_loss_gap_rise",
    )),
    ("must be from 0 to 1", lambda value: 0 <= value <= 1, (
        "lora_dropout", "adam_beta1", "adam_beta2", "label_smoothing_factor", "teacher_ratio", *GUARDRAIL_LIMITS,
    )),
    ("must be above 0, at most 0.5", lambda value: 0 < value <= 0.5, ("irrelevant_share",)),
    ("must be above 0, at most 1", lambda value: 0 < value <= 1, ("llm_lr_tail", "recovery_factor")),
    ("must be at least 2, because each response is compared with the others", lambda value: value >= 2, ("grounding_samples",)),
    ("must be from 0 to 0.5", lambda value: 0 <= value <= 0.5, ("negative_questions",)),
    ("must be from 0 to 4294967295", lambda value: 0 <= value < 2**32, ("seed", "data_seed")),
    ("must be at least 1, or -1 to train for num_train_epochs", lambda value: value == -1 or value >= 1, ("max_steps",)),
)  # fmt: skip
_ATTENTION = ("eager", *(name for name in ALL_ATTENTION_FUNCTIONS.valid_keys() if not name.startswith("paged|")))
_DTYPES = ("bfloat16", "float16", "float32")


def check_values(options: BoxtuneArguments, training: SFTConfig, model: ModelConfig) -> None:
    """Raises UserError that lists all values that would be silently ignored or cannot work together."""
    problems = [
        *_fixed_or_out_of_range(vars(training) | vars(model) | vars(options)),
        *_of_the_model(options, model),
        *_of_the_layers(options),
        *_of_the_biases(options, model),
        *_of_the_soft_prompt(options, model),
        *_of_the_answer(options),
        *_of_the_negatives(options),
        *_of_the_teachers(options, training),
        *_of_the_losses(options, training),
        *_of_the_best_checkpoint(options, training),
        *_of_the_learning_rates(options, training),
        *_of_the_guardrails(options, training, model),
        *_of_the_batches(options, training),
        *_of_the_vision_cache(options),
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


def _of_the_model(options: BoxtuneArguments, model: ModelConfig) -> Iterator[str]:
    if not model.model_name_or_path:
        yield "model_name_or_path: no model given; use a folder or a Hub id"
    if model.dtype not in _DTYPES:
        yield f"dtype: {model.dtype!r} must be one of {', '.join(_DTYPES)}"
    attention = model.attn_implementation
    if attention and attention not in _ATTENTION and "/" not in attention:
        known = ", ".join(_ATTENTION)
        yield f"attn_implementation: {attention!r} must be one of {known}, or a kernel on the Hub (OWNER/NAME)"
    if options.detection_hidden_size < 16 or options.detection_hidden_size % 16:
        yield f"detection_hidden_size: {options.detection_hidden_size} must be a multiple of 16"
    if not 1 <= options.detection_decoder_layers <= 6:
        yield f"detection_decoder_layers: {options.detection_decoder_layers} must be from 1 to 6"
    if options.quantize_vision and not model.load_in_4bit:
        yield "quantize_vision: true has no effect without load_in_4bit: true"
    if model.load_in_4bit and not model.use_peft:
        yield "load_in_4bit: 4-bit weights cannot be trained; set use_peft: true or load_in_4bit: false"
    if options.continue_from is not None and not model.use_peft:
        yield "continue_from: continues an adapter; set use_peft: true, or name a whole model as model_name_or_path"
    if model.lora_target_modules == []:
        yield "lora_target_modules: name at least one module, or omit it for the attention projections"
    parts = options.lora_parts
    if parts is not None:
        rivals = {"lora_target_modules": model.lora_target_modules, "lora_vision": options.lora_vision}
        yield from (f"{key}: conflicts with lora_parts; omit one of them" for key, value in rivals.items() if value)
        if not parts or not set(parts) <= {*LORA_PARTS}:
            yield f"lora_parts: {parts!r} must name one or more of {', '.join(LORA_PARTS)}"


def _of_the_layers(options: BoxtuneArguments) -> Iterator[str]:
    """Whether the numbers exist is known with the model's config (placement.layers_of)."""
    towers = {"lora_llm_layers": "language", "lora_vision_blocks": "vision"}
    for key, tower in towers.items():
        words = getattr(options, key)
        if words is None:
            continue
        try:
            read_layers(words)
        except ValueError as error:
            yield f"{key}: {error}"
            continue
        parts = options.lora_parts or []
        if parts and words != ["0"] and not any(part.startswith(tower) for part in parts):
            yield f"{key}: has no effect, because lora_parts names no part of this tower; add {tower}_attention or {tower}_mlp"


def _of_the_biases(options: BoxtuneArguments, model: ModelConfig) -> Iterator[str]:
    """Trained biases are float32, as LoRA is, so that small updates are not lost. The layers' other weights must be, too."""
    if options.lora_bias == "none":
        return
    if model.load_in_4bit:
        yield (
            f"lora_bias: {options.lora_bias} cannot be trained with load_in_4bit: true, because each pass of a 4-bit layer "
            "rounds its bias to 16 bits; omit one of the two"
        )
    elif model.dtype != "float32":
        yield f"lora_bias: {options.lora_bias} needs dtype: float32, because a layer cannot mix it with {model.dtype}; or omit it"


def _of_the_soft_prompt(options: BoxtuneArguments, model: ModelConfig) -> Iterator[str]:
    has_text = bool(options.prompt_tuning_init_text.strip())
    if options.num_virtual_tokens and not model.use_peft:
        yield (
            "num_virtual_tokens: virtual tokens are trained together with LoRA; set use_peft: true, or omit them, because full "
            "fine-tuning trains every embedding"
        )
    if options.prompt_tuning_init == "text" and not has_text:
        yield "prompt_tuning_init: text needs prompt_tuning_init_text"
    if options.prompt_tuning_init != "text" and has_text:
        yield "prompt_tuning_init_text: has no effect without prompt_tuning_init: text"


def _of_the_answer(options: BoxtuneArguments) -> Iterator[str]:
    if breaks_turns(options.system_prompt):
        yield f"system_prompt: {options.system_prompt!r} contains a special token; remove it"
    if options.min_pixels and options.max_pixels and options.min_pixels > options.max_pixels:
        yield f"min_pixels: {options.min_pixels} must not exceed max_pixels, {options.max_pixels}"
    if options.codec is not None and options.codec not in FAMILIES:
        yield f"codec: {options.codec!r} must be one of {', '.join(FAMILIES)}, or null for the model's own"
    if breaks_turns(options.irrelevant_answer):
        yield f"irrelevant_answer: {options.irrelevant_answer!r} contains a special token; remove it"
    if options.irrelevant_images is None and options.irrelevant_share != BoxtuneArguments.irrelevant_share:
        yield "irrelevant_share: has no effect without irrelevant_images, a folder or `generated`"
    yield from (f"candidates: {problem}" for phrase in options.candidates or [] if (problem := label_problem(phrase)))
    if options.candidates == []:
        yield "candidates: name at least one phrase, or omit it"
    yield from Decoding(tiles=options.tiles).problems()
    if options.answer == "click":
        if options.tiles:
            yield "tiles: points of several tiles cannot be merged; omit it with answer: click"
        if options.codec is not None:
            yield "codec: has no effect with answer: click; omit it"
        if options.detection_head:
            yield "detection_head: finds boxes; omit it with answer: click"
        if options.iou_loss_weight:
            yield "iou_loss_weight: a point has no IoU; omit it with answer: click"
        if options.grounding_mode != "teacher_forced":
            yield "grounding_mode: only box responses can be sampled; use teacher_forced with answer: click"


def _of_the_negatives(options: BoxtuneArguments) -> Iterator[str]:
    if options.negative_sampling == "hard":
        if not options.negative_from:
            yield "negative_sampling: hard needs negative_from, the metrics.json of an evaluation on the same classes"
        if not options.negative_questions:
            yield "negative_sampling: hard has no effect while negative_questions is 0"
    elif options.negative_from:
        yield "negative_from: has no effect without negative_sampling: hard"


def _of_the_teachers(options: BoxtuneArguments, training: SFTConfig) -> Iterator[str]:
    if not options.teacher_ratio:
        if options.num_teacher_samples != 1:
            yield "num_teacher_samples: has no effect while teacher_ratio is 0"
        return
    if training.label_smoothing_factor or training.loss_type != "nll":
        yield "teacher_ratio: works with plain cross-entropy only; omit label_smoothing_factor and loss_type"
    if options.grounding_mode != "teacher_forced":
        yield "teacher_ratio: responses are sampled without teachers; use grounding_mode: teacher_forced, or set it to 0"
    if training.torch_compile:
        yield "teacher_ratio: its loss is read through a hook, which a compiled model may bypass; omit torch_compile"


def _of_the_batches(options: BoxtuneArguments, training: SFTConfig) -> Iterator[str]:
    strategy = training.train_sampling_strategy
    if strategy not in ("random", "group_by_length"):
        yield f"train_sampling_strategy: {strategy!r} has no effect in boxtune; use random or group_by_length"
    if strategy == "group_by_length":
        if options.tokens_per_batch:
            yield "train_sampling_strategy: tokens_per_batch already groups by length; omit one of them"
        if options.collator == "packed":
            yield "train_sampling_strategy: group_by_length has no effect on packed batches, which have no padding; omit it"


def _has_box_losses(options: BoxtuneArguments) -> bool:
    return any((options.iou_loss_weight, options.fp_loss_weight, options.fn_loss_weight))


def _of_the_losses(options: BoxtuneArguments, training: SFTConfig) -> Iterator[str]:
    weighs_ends = options.end_token_weight != 1
    if weighs_ends and (training.label_smoothing_factor or training.loss_type != "nll"):
        yield "end_token_weight: works with plain cross-entropy only; omit label_smoothing_factor and loss_type"
    if options.box_loss != "giou" and (not options.iou_loss_weight or options.grounding_mode == "policy"):
        yield f"box_loss: {options.box_loss} has no effect while iou_loss_weight is 0 or with grounding_mode: policy"
    if options.grounding_mode != "teacher_forced" and not _has_box_losses(options):
        yield (
            f"grounding_mode: {options.grounding_mode} has no effect while iou_loss_weight, fp_loss_weight and "
            "fn_loss_weight are 0"
        )
    if training.torch_compile and (_has_box_losses(options) or weighs_ends or options.detection_head):
        yield (
            "torch_compile: box losses and detection_head read hidden states through a hook, which a compiled model may bypass; "
            "omit one of the two"
        )


def _of_the_best_checkpoint(options: BoxtuneArguments, training: SFTConfig) -> Iterator[str]:
    if options.early_stopping_patience is not None and not training.load_best_model_at_end:
        yield "early_stopping_patience: needs load_best_model_at_end: true and metric_for_best_model"
    metric = (training.metric_for_best_model or "").removeprefix("eval_")
    if not metric:
        return
    logged = [*METRICS, *LIBRARY_METRICS]
    teacher_forced = options.grounding_mode != "policy" and _has_box_losses(options)
    if teacher_forced or options.end_token_weight != 1:
        logged += LOSSES
    if options.detection_head:
        logged += HEAD_METRICS
    if metric not in logged:
        yield f"metric_for_best_model: {metric!r} is not logged; choose one of {', '.join(logged)}"
    of_boxes = metric in (*METRICS, *HEAD_METRICS)
    if of_boxes and not options.eval_images:
        yield f"metric_for_best_model: {metric} is measured only if eval_images is above 0"
    if metric in ("AP", "AP50", "mean_iou") and options.answer == "click":
        yield f"metric_for_best_model: points have no {metric}; use f1 with answer: click"
    is_cost = metric in COSTS or metric.endswith("loss")
    is_gain = of_boxes or metric == "mean_token_accuracy"
    if (is_gain or is_cost) and training.greater_is_better != (not is_cost):
        right = str(not is_cost).lower()
        yield f"greater_is_better: set it to {right} with {metric}, otherwise the worst checkpoint would be kept as the best"


# Optimizers that change the weights during the backward pass, at one learning rate.
_LAYERWISE = ("lomo", "adalomo")


def _of_the_learning_rates(options: BoxtuneArguments, training: SFTConfig) -> Iterator[str]:
    problems = [*phase_problems(options.phases)]
    yield from problems
    # With max_steps, the number of epochs is known only when training begins.
    epochs = training.num_train_epochs if training.max_steps == -1 and not problems else 0
    if epochs and (problem := ends_early(read_phases(options.phases), epochs)):
        yield problem
    optimizer = str(getattr(training.optim, "value", training.optim))
    if optimizer in _LAYERWISE or optimizer.endswith("_layerwise"):
        yield f"optim: {optimizer} changes weights during the backward pass, so no step could be skipped; use another"


def _of_the_guardrails(options: BoxtuneArguments, training: SFTConfig, model: ModelConfig) -> Iterator[str]:
    for key in ("guardrails", "final_guardrails"):
        if name := getattr(options, key):
            try:
                read_suite(name)
            except UserError as error:
                yield f"{key}: {error} Leave the key empty for none."
    if options.guardrails and training.eval_strategy == "no":
        yield "guardrails: are asked at evaluations; set eval_strategy: steps or epoch, or omit it"
    if options.vision_stages is None:
        return
    if not options.guardrails:
        yield "vision_stages: goes on while the guardrails hold; set guardrails: small, or omit it"
    if not model.use_peft:
        yield "vision_stages: unfreezes adapters; set use_peft: true, or omit it"


def _of_the_vision_cache(options: BoxtuneArguments) -> Iterator[str]:
    if options.vision_cache and options.augment:
        yield "vision_cache: augment changes the images in each epoch, so no output is used twice; omit one of them"
    if options.vision_cache and options.vision_stages:
        yield "vision_cache: vision_stages trains the vision tower, so its output changes; omit one of them"
