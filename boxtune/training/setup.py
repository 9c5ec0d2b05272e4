"""Builds the parts of a run from its recipe: encoder, variation, grounding, losses, model, trainer arguments and trainer."""

import copy
import math
from pathlib import Path

import numpy as np
import torch
from transformers import EarlyStoppingCallback, PretrainedConfig, PreTrainedModel, ProcessorMixin, ProgressCallback
from trl import SFTConfig

from boxtune.answers.candidates import candidate_sentence
from boxtune.answers.codecs import with_captions
from boxtune.answers.conversation import format_sentence
from boxtune.answers.decoding import Decoding
from boxtune.answers.grounding import Grounding
from boxtune.answers.noise import NOISE_LABEL, require_free_label
from boxtune.batching.collator import DetectionCollator
from boxtune.batching.encoder import Encoder
from boxtune.batching.hard_negatives import read_confused
from boxtune.batching.lengths import as_dataset
from boxtune.batching.teachers import Teachers
from boxtune.batching.variation import Variation
from boxtune.common.errors import UserError, accepting
from boxtune.data.questions import NO_DESCRIPTIONS, Descriptions, first_question, is_standard
from boxtune.data.records import Record
from boxtune.data.tiles import tile_of
from boxtune.models.config import codec_for, family_of
from boxtune.models.detection_head import HeadShape
from boxtune.models.hub import commit_of
from boxtune.models.loading import load_model, uses_deepspeed, uses_fsdp
from boxtune.models.lora import lora_config, lora_targets, present_parts
from boxtune.models.quantization import nf4_config
from boxtune.models.soft_prompt import add_virtual_tokens
from boxtune.training.arguments import CLASSES, BoxtuneArguments
from boxtune.training.box_validation import HEAD_METRICS, METRICS, BoxValidation, require_objects
from boxtune.training.callbacks import (
    EpochCallback,
    InterruptCallback,
    ProgressLine,
    ShortRunCallback,
)
from boxtune.training.console import say
from boxtune.training.detection_loss import DetectionLoss
from boxtune.training.examples import Examples, Splits
from boxtune.training.losses import BoxLosses
from boxtune.training.machine import workers_that_fit
from boxtune.training.phases import PARTS, PEFT, LearningRates, read_phases
from boxtune.training.policy import PolicyLoss
from boxtune.training.recipe import Recipe
from boxtune.training.skipped_steps import SkippedSteps
from boxtune.training.soft_prompt import make_soft_prompt
from boxtune.training.trainer import DetectionTrainer

# ---- How examples are written --------------------------------------------------------------------------------------------


def make_encoder(recipe: Recipe, config: PretrainedConfig, processor: ProcessorMixin, classes: list[str]) -> Encoder:
    """Adds the virtual tokens of a soft prompt to the tokenizer. Raises UserError if the model has no rows for them, if a class
    could be mistaken for the noise label, or if the model's answers cannot hold captions."""
    options = recipe.options
    if options.noise_objects:
        require_free_label(classes)
    codec = codec_for(config, options.answer, options.codec)
    if options.captions:
        codec = with_captions(codec)
    noise_label = NOISE_LABEL if options.noise_objects else ""
    vocab_size = config.get_text_config().vocab_size
    virtual_tokens = add_virtual_tokens(processor.tokenizer, options.num_virtual_tokens, vocab_size)
    system_prompt = options.system_prompt
    if candidates := choose_candidates(options, classes):
        system_prompt = f"{system_prompt} {candidate_sentence(candidates)}".strip()
    return Encoder(processor, codec, "".join(virtual_tokens) + system_prompt, format_sentence(codec), noise_label)


def choose_candidates(options: BoxtuneArguments, classes: list[str]) -> list[str]:
    """The candidate phrases of the recipe; empty if it has none. Raises UserError if they lack a class of the data."""
    candidates = list(dict.fromkeys(options.candidates or []))
    if candidates == [CLASSES]:
        return classes
    if candidates and (missing := [name for name in classes if name not in candidates]):
        raise UserError(
            "candidates: classes of the data are not among them. Add them, or use `candidates: true`:", missing
        )
    return candidates


def make_variation(
    recipe: Recipe,
    records: list[Record],
    classes: list[str],
    max_pixels: int,
    descriptions: Descriptions = NO_DESCRIPTIONS,
) -> Variation | None:
    """How training examples vary from epoch to epoch; None if the recipe does not vary them."""
    options = recipe.options
    varies_questions = options.negative_questions or options.prompt_variety or options.noise_objects
    if not options.augment and not varies_questions:
        return None
    if options.negative_questions and len(classes) < 2:
        say("note: negative_questions has no effect on data with one class")
    if varies_questions:
        _check_standard_questions(records)
    return Variation(
        operations=options.augment or [],
        negative_questions=options.negative_questions,
        prompt_variety=options.prompt_variety,
        noise_objects=options.noise_objects,
        object_order=options.object_order,
        classes=classes,
        max_pixels=max_pixels,
        max_length=recipe.training.max_length,
        seed=recipe.training.seed,
        descriptions=dict(descriptions),
        confused=read_confused(Path(options.negative_from), classes) if options.negative_from else None,
    )


def make_teachers(recipe: Recipe, records: list[Record]) -> Teachers | None:
    """Draws the examples that precede others, from the training `records`; None if the recipe has none.

    Raises UserError if there are too few.
    """
    options = recipe.options
    if not options.teacher_ratio:
        return None
    pool = [record for record in records if not tile_of(record)]
    if len(pool) <= options.num_teacher_samples:
        raise UserError(
            f"num_teacher_samples: {options.num_teacher_samples} other training images must precede an example, but there are "
            f"{len(pool)} training images in all. Lower it, or set teacher_ratio: 0."
        )
    return Teachers(pool, options.teacher_ratio, options.num_teacher_samples, recipe.training.seed)


def _check_standard_questions(records: list[Record]) -> None:
    """Raises UserError if no example with objects asks one question about all classes. Only such examples can be varied."""
    standard = [record for record in records if is_standard(record)]
    if len(standard) == len(records):
        return
    if not any(record["objects"]["bbox"] for record in standard):
        consequence = (
            "none of these examples contains an object, so the model would learn that other wordings mean an empty image"
            if standard
            else "this dataset has no such example, so they would have no effect"
        )
        raise UserError(
            "negative_questions, prompt_variety and noise_objects change only examples that ask one question about all classes; "
            f"{consequence}. Omit them, or prepare the data with --questions all."
        )
    say(
        f"note: {len(records) - len(standard)} of {len(records)} examples do not ask one question about all classes; "
        "negative_questions, prompt_variety and noise_objects leave these unchanged"
    )


def make_grounding(
    recipe: Recipe,
    encoder: Encoder,
    records: list[Record],
    classes: list[str],
    variation: Variation | None,
    max_new_tokens: int,
    descriptions: Descriptions = NO_DESCRIPTIONS,
) -> Grounding:
    """The settings saved with each checkpoint. `records`: the training records. `max_new_tokens`: from their lengths."""
    model, options = recipe.model, recipe.options
    size = encoder.processor.image_processor.size
    sides = np.array([(record["width"], record["height"]) for record in records], dtype=float)
    own_questions = sorted({first_question(record) for record in records})
    return Grounding(
        codec=encoder.codec.name,
        system_prompt=encoder.system_prompt,
        format_sentence=encoder.format_sentence,
        min_pixels=size["shortest_edge"],
        max_pixels=size["longest_edge"],
        max_new_tokens=max_new_tokens,
        base_model=model.model_name_or_path,
        base_revision=commit_of(model.model_name_or_path, model.model_revision),
        base_precision="nf4" if model.load_in_4bit else model.dtype,
        quantized_vision=options.quantize_vision,
        compute_dtype=model.dtype,
        classes=classes,
        descriptions=dict(descriptions),
        questions=variation.questions(records) if variation else own_questions,
        data_dir=options.data_dir,
        seen_pixels=np.percentile(sides[:, 0] * sides[:, 1], (5, 95)).tolist(),
        seen_aspects=np.percentile(sides[:, 0] / sides[:, 1], (5, 95)).tolist(),
        noise_label=encoder.noise_label,
        irrelevant_answer=options.irrelevant_answer,
        candidates=choose_candidates(options, classes),
        think_prefix=encoder.think_prefix,
        decoding=Decoding(tiles=options.tiles),
    )


# ---- Losses and model ----------------------------------------------------------------------------------------------------


def choose_losses(recipe: Recipe) -> tuple[BoxLosses | None, PolicyLoss | None]:
    """(teacher-forced losses, policy loss), each None if the recipe does not use it; SFTTrainer's own loss is always used.

    Raises UserError if they are used under FSDP, which shards the model, because they need the whole LM head in each process.
    """
    options = recipe.options
    weights = BoxLosses(
        options.iou_loss_weight,
        options.fp_loss_weight,
        options.fn_loss_weight,
        options.box_loss,
        options.end_token_weight,
    )
    sampled = PolicyLoss(weights, options.grounding_samples, options.grounding_every)
    if options.grounding_mode == "policy":
        weights = BoxLosses(0, 0, 0, end_token=options.end_token_weight)
    chosen = weights or None, None if options.grounding_mode == "teacher_forced" else sampled
    if any(chosen) and uses_fsdp():
        raise UserError(
            "iou_loss_weight, fp_loss_weight, fn_loss_weight and end_token_weight need the whole LM head in each process, but "
            "FSDP shards it. Launch with recipes/accelerate/ddp.yaml or zero2.yaml, or omit these weights."
        )
    return chosen


def head_shape(recipe: Recipe, model: PreTrainedModel) -> HeadShape | None:
    """The detection head that the recipe asks for; None if it asks for none. Raises UserError under FSDP."""
    options = recipe.options
    if not options.detection_head:
        return None
    if uses_fsdp():
        raise UserError(
            "detection_head needs the last hidden states of whole layers, but FSDP shards the model. Launch with "
            "recipes/accelerate/ddp.yaml, or omit it."
        )
    size = model.get_input_embeddings().embedding_dim
    return HeadShape(
        llm_hidden_size=size,
        hidden_size=options.detection_hidden_size,
        queries=options.detection_queries,
        decoder_layers=options.detection_decoder_layers,
        caption_layers=options.detection_caption_layers if options.detection_caption_weight else 0,
    )


def make_detection_loss(options: BoxtuneArguments) -> DetectionLoss | None:
    """The loss of the detection head; None if the recipe asks for none."""
    if not options.detection_head:
        return None
    return DetectionLoss(
        bbox=options.detection_bbox_weight,
        giou=options.detection_giou_weight,
        objectness=options.detection_objectness_weight,
        caption=options.detection_caption_weight,
        trains_model=options.detection_trains_model,
    )


def choose_rates(recipe: Recipe) -> LearningRates:
    """The learning rates of the model's parts. Raises UserError if the recipe has any under FSDP or DeepSpeed.

    FSDP replaces the weights, and DeepSpeed makes its step before the rates of the parts could be set.
    """
    options = recipe.options
    stated = {name: getattr(options, f"{name}_lr") for name in (*PARTS, PEFT)}
    rates = LearningRates(
        recipe.training.learning_rate,
        {name: rate for name, rate in stated.items() if rate is not None},
        read_phases(options.phases),
        options.detection_freeze_epochs,
        options.vision_warmup_steps,
        options.llm_lr_tail,
    )
    if rates and (uses_fsdp() or uses_deepspeed() or recipe.training.deepspeed):
        raise UserError(
            "learning rates by part (keys ending in _lr, phases, detection_freeze_epochs, vision_warmup_steps and llm_lr_tail) "
            "work in one process or under DDP. Launch with recipes/accelerate/ddp.yaml, or omit these keys."
        )
    return rates


def build_model(recipe: Recipe, config: PretrainedConfig) -> PreTrainedModel:
    """The base model, quantized if the recipe has `load_in_4bit: true`."""
    options = recipe.model
    dtype = getattr(torch, options.dtype)
    quantization = None
    if options.load_in_4bit:
        quantization = nf4_config(
            family_of(config),
            dtype,
            options.use_bnb_nested_quant,
            options.bnb_4bit_quant_storage,
            recipe.options.quantize_vision,
        )
    return load_model(
        options.model_name_or_path,
        dtype=dtype,
        quantization=quantization,
        attn_implementation=options.attn_implementation,
        revision=options.model_revision,
    )


# ---- Trainer -------------------------------------------------------------------------------------------------------------


def trainer_arguments(recipe: Recipe, splits: Splits, max_pixels: int, report_to: list[str]) -> SFTConfig:
    """The trainer's arguments: the recipe's, adapted to data and machine. The recipe itself stays unchanged."""
    arguments = copy.copy(recipe.training)
    # The collator reads whole records. fit_lengths has already checked their lengths, so the trainer must not truncate.
    arguments.remove_unused_columns = False
    arguments.max_length = None
    # The trainer would push checkpoints and its own model card; train_sft.py pushes the final model with our card instead.
    arguments.push_to_hub = False
    arguments.report_to = report_to
    if arguments.ddp_find_unused_parameters is None:
        # TRL turns this on for text-only batches. Here each example has an image, so each step uses every trained weight.
        arguments.ddp_find_unused_parameters = False
    _keep_batch(arguments)
    if not splits.get("validation") and arguments.eval_strategy != "no":
        say("no validation split: training without evaluation loss, best checkpoint or early stopping")
        arguments.eval_strategy = "no"
        arguments.load_best_model_at_end = False
    if stops_early(recipe, splits):
        arguments.restore_callback_states_from_checkpoint = True  # a resumed run continues the count of evaluations
    arguments.dataloader_num_workers, note = workers_that_fit(arguments, max_pixels)
    if note:
        say(f"note: {note}")
    return arguments


def _keep_batch(arguments: SFTConfig) -> None:
    """Divide gradient accumulation by the number of processes, so that a step has as many examples as with one process.

    Otherwise eight processes would make an eighth of the steps, too few for the recipe's warm-up and learning rate.
    """
    processes, accumulation = arguments.world_size, arguments.gradient_accumulation_steps
    if processes == 1:
        return
    divided = math.ceil(accumulation / processes)
    arguments.gradient_accumulation_steps = divided
    wanted = accumulation * arguments.per_device_train_batch_size
    examples = divided * processes * arguments.per_device_train_batch_size
    change = f"{processes} processes: gradient_accumulation_steps {accumulation} → {divided}"
    if examples == wanted:
        say(f"note: {change}, so each step has {examples} examples, as with one process")
    else:
        say(
            f"warning: {change}, but each step has {examples} examples instead of {wanted}, because the accumulation is not a "
            f"multiple of {processes}; the run has fewer steps. Use another number of processes, or change "
            "per_device_train_batch_size"
        )


def stops_early(recipe: Recipe, splits: Splits) -> bool:
    return recipe.options.early_stopping_patience is not None and bool(splits.get("validation"))


def make_box_validation(recipe: Recipe, collator: DetectionCollator, splits: Splits) -> BoxValidation | None:
    """Box metrics at every evaluation; None if they are turned off or cannot be computed.

    Raises UserError if the metric that selects the best checkpoint would be undefined.
    """
    training, count, records = recipe.training, recipe.options.eval_images, splits.get("validation")
    metric = (training.metric_for_best_model or "").removeprefix("eval_")
    if records and training.eval_strategy != "no":
        require_objects(metric, records, count)
    if not records or not count:
        return None
    if uses_fsdp():  # each process would generate for different images but hold only a part of the weights
        if metric in (*METRICS, *HEAD_METRICS):
            raise UserError(
                f"metric_for_best_model: {training.metric_for_best_model} is not measured under FSDP; use eval_loss."
            )
        say("note: box metrics are not measured under FSDP")
        return None
    with_head = recipe.options.detection_head
    return BoxValidation(collator, records, count, training.per_device_eval_batch_size, with_head)


def _lora_parts(options: BoxtuneArguments, model: PreTrainedModel) -> list[str] | None:
    """The parts to adapt: all that the recipe names or, with `skip_missing_parts`, those of them that the model has."""
    parts = options.lora_parts or []
    present = present_parts(model, parts) if options.skip_missing_parts else parts
    if not present:  # lora_targets says what the model has
        return options.lora_parts
    if missing := [part for part in parts if part not in present]:
        say(f"note: this model has no {', '.join(missing)}; LoRA adapts {', '.join(present)} only")
    return present


def build_trainer(
    recipe: Recipe,
    arguments: SFTConfig,
    model: PreTrainedModel,
    collator: DetectionCollator,
    examples: Examples,
    box_validation: BoxValidation | None,
    box_losses: BoxLosses | None,
    policy_loss: PolicyLoss | None,
    rates: LearningRates,
) -> DetectionTrainer:
    options, splits = recipe.options, examples.splits
    callbacks = [InterruptCallback(), ShortRunCallback()]
    if varying := [part for part in (collator.variation, collator.teachers) if part]:
        callbacks.append(EpochCallback(*varying))
    if stops_early(recipe, splits):
        callbacks.append(EarlyStoppingCallback(options.early_stopping_patience))
    peft_config = None
    if recipe.model.use_peft:
        lora = recipe.model
        targets = lora_targets(model, _lora_parts(options, model), lora.lora_target_modules, options.lora_vision)
        peft_config = lora_config(
            lora.lora_r, lora.lora_alpha, lora.lora_dropout, targets, lora.use_rslora, options.lora_bias
        )
    validation = splits.get("validation")
    detection_loss = make_detection_loss(options)
    with accepting(f"{recipe.name}: the trainer rejects a value"):
        trainer = DetectionTrainer(
            model=model,
            args=arguments,
            grounding=collator.grounding,
            learning_rates=rates,
            skipped_steps=SkippedSteps(options.skipped_steps_limit, options.recovery_steps, options.recovery_factor),
            adapter_dtype=getattr(torch, options.adapter_dtype),
            soft_prompt=make_soft_prompt(recipe, model, collator.tokenizer),
            box_validation=box_validation,
            box_losses=box_losses,
            policy_loss=policy_loss,
            detection_loss=detection_loss,
            head_shape=head_shape(recipe, model),
            data_collator=collator.for_losses(
                teacher_forced=box_losses is not None, sampled=policy_loss is not None, head=detection_loss is not None
            ),
            train_dataset=as_dataset(splits["train"], collator.data_dir, varied=True),
            eval_dataset=as_dataset(validation, collator.data_dir) if validation else None,
            processing_class=collator.processor,
            peft_config=peft_config,
            callbacks=callbacks,
        )
    if trainer.is_deepspeed_enabled and (box_losses or policy_loss):
        say("note: grad_share is not measured under DeepSpeed")
    if not arguments.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ProgressLine())
    return trainer
