"""From a recipe: the model, the trainer arguments and the trainer."""

import copy
import math
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from peft import LoraConfig, PeftModel
from transformers import EarlyStoppingCallback, PretrainedConfig, PreTrainedModel, ProgressCallback
from trl import SFTConfig

from boxtune.batching.collator import DetectionCollator
from boxtune.batching.lengths import as_dataset
from boxtune.common.errors import UserError, accepting
from boxtune.data.shards import Shards
from boxtune.inference.guardrail_suite import read_suite
from boxtune.inference.guardrails import run_guardrails
from boxtune.metrics.guardrail_rules import Probe
from boxtune.models.config import family_of
from boxtune.models.loading import load_model, uses_fsdp
from boxtune.models.lora import lora_config
from boxtune.models.placement import Layers, layers_of, lora_targets, present_parts
from boxtune.models.quantization import nf4_config
from boxtune.models.whole_modules import whole_module_paths
from boxtune.training.arguments import BoxtuneArguments
from boxtune.training.batches import plan_batches
from boxtune.training.box_validation import HEAD_METRICS, METRICS, BoxValidation, require_objects
from boxtune.training.callbacks import (
    EpochCallback,
    InterruptCallback,
    ProgressLine,
    ShortRunCallback,
)
from boxtune.training.console import say
from boxtune.training.examples import Examples, Splits
from boxtune.training.guardrail_stops import StopLimits
from boxtune.training.guardrails import Guardrails
from boxtune.training.losses import BoxLosses
from boxtune.training.machine import workers_that_fit
from boxtune.training.phases import LearningRates
from boxtune.training.policy import PolicyLoss
from boxtune.training.recipe import Recipe
from boxtune.training.setup_losses import head_shape, make_detection_loss
from boxtune.training.sharded import sharded_dataset
from boxtune.training.skipped_steps import SkippedSteps
from boxtune.training.soft_prompt import make_soft_prompt
from boxtune.training.trainer import DetectionTrainer
from boxtune.training.unfreezing import Unfreezing


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
    # plan_batches groups by length itself: the trainer's sampler depends on global random numbers, and groups evaluation too.
    arguments.train_sampling_strategy = "random"
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
    arguments.dataloader_num_workers, note = workers_that_fit(
        arguments, max_pixels, tokens_per_batch=recipe.options.tokens_per_batch
    )
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


def make_guardrails(
    recipe: Recipe, model: PreTrainedModel, collator: DetectionCollator, splits: Splits
) -> Guardrails | None:
    """The guardrails of the run; None if the recipe names none. Raises UserError without validation data or under FSDP."""
    options, records = recipe.options, splits.get("validation")
    if not options.guardrails:
        return None
    if not records:
        raise UserError("guardrails: are asked about validation images, and this dataset has none; omit the key.")
    if uses_fsdp():
        raise UserError(
            "guardrails: cannot be asked under FSDP; launch with recipes/accelerate/ddp.yaml, or omit the key."
        )
    suite, base_answers = read_suite(options.guardrails), {}

    def ask(asked: PreTrainedModel | PeftModel) -> dict[str, Probe]:
        batch_size = recipe.training.per_device_eval_batch_size
        probes = run_guardrails(asked, collator, suite, records, batch_size, base_answers=base_answers)
        return broadcast_object_list([probes])[0]  # rounding may differ between GPUs, and all must decide alike

    limits = StopLimits(
        pass_rate_drop=options.stop_pass_rate_drop,
        pass_rate_floor=options.stop_pass_rate_floor,
        hallucination_rise=options.stop_hallucination_rise,
        caption_drop=options.stop_caption_drop,
        loss_gap_rise=options.stop_loss_gap_rise,
    )
    unfreezing = None
    if options.vision_stages:
        path = family_of(model.config).vision_blocks
        unfreezing = Unfreezing(options.vision_stages, path, len(model.base_model.get_submodule(path)))
    return Guardrails(
        ask,
        options.guardrail_every,
        limits,
        options.select_pass_rate_drop,
        options.select_hallucination_rise,
        unfreezing,
    )


def _lora_parts(options: BoxtuneArguments, model: PreTrainedModel, layers: Layers) -> list[str] | None:
    """The parts to adapt: all that the recipe names or, with `skip_missing_parts`, those that the model has in `layers`."""
    parts = [part for part in options.lora_parts or [] if layers.of(part) != ()]
    present = present_parts(model, parts, layers) if options.skip_missing_parts else parts
    if not present:  # lora_targets says what the model has
        return options.lora_parts
    if missing := [part for part in parts if part not in present]:
        say(f"note: this model has no {', '.join(missing)}; LoRA adapts {', '.join(present)} only")
    return present


def make_lora_config(recipe: Recipe, model: PreTrainedModel) -> LoraConfig | None:
    """What LoRA adapts and what is trained whole beside it; None with `use_peft: false`."""
    options, lora = recipe.options, recipe.model
    if not lora.use_peft:
        return None
    layers = layers_of(model.config, options.lora_llm_layers, options.lora_vision_blocks)
    parts = _lora_parts(options, model, layers)
    targets = lora_targets(model, parts, lora.lora_target_modules, options.lora_vision, layers)
    whole = whole_module_paths(model, lora.lora_modules_to_save or [], targets)
    return lora_config(
        lora.lora_r, lora.lora_alpha, lora.lora_dropout, targets, lora.use_rslora, options.lora_bias, whole
    )


def vision_cache_of(options: BoxtuneArguments) -> tuple[Path, float] | None:
    """(folder, GB) of the vision tower's outputs; None without `vision_cache`. Raises UserError under FSDP."""
    if not options.vision_cache:
        return None
    if uses_fsdp():  # its processes gather the weights together, and one that reads an output would not take part
        raise UserError("vision_cache: cannot be used under FSDP; launch with recipes/accelerate/ddp.yaml, or omit it.")
    return Path(options.vision_cache), options.vision_cache_gb


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
    shards: Shards | None = None,
) -> DetectionTrainer:
    """shards: the training records, if they are in shards; `examples` has a sample of them then."""
    options, splits = recipe.options, examples.splits
    batches = plan_batches(recipe, arguments, family_of(model.config), examples.lengths, shards)
    arguments.learning_rate *= batches.rate_factor
    callbacks = [InterruptCallback(), ShortRunCallback()]
    varying = [part for part in (collator.variation, collator.teachers, batches.sampler) if part is not None]
    if varying:
        callbacks.append(EpochCallback(*varying))
    if stops_early(recipe, splits):
        callbacks.append(EarlyStoppingCallback(options.early_stopping_patience))
    validation = splits.get("validation")
    detection_loss = make_detection_loss(options)
    training_rows = (
        sharded_dataset(recipe, shards, collator.encoder)
        if shards
        else as_dataset(splits["train"], collator.data_dir, varied=True)
    )
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
            guardrails=make_guardrails(recipe, model, collator, splits),
            head_shape=head_shape(recipe, model),
            data_collator=collator.for_losses(
                teacher_forced=box_losses is not None,
                sampled=policy_loss is not None,
                head=detection_loss is not None,
                packs=batches.packs,
                names_images=options.vision_cache is not None,
            ),
            vision_cache=vision_cache_of(options),
            sampler=batches.sampler,
            train_dataset=training_rows,
            eval_dataset=as_dataset(validation, collator.data_dir) if validation else None,
            processing_class=collator.processor,
            peft_config=make_lora_config(recipe, model),
            callbacks=callbacks,
        )
    if trainer.is_deepspeed_enabled and (box_losses or policy_loss):
        say("note: grad_share is not measured under DeepSpeed")
    if not arguments.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ProgressLine())
    return trainer
