"""Train a recipe: python train_sft.py --config recipes/NAME.yaml [--overlay recipes/overlays/tiny.yaml] [--key value …]

Prepares the data once when absent, checks every length, trains with TRL's SFTTrainer and leaves
runs/NAME/{checkpoint-N,final} with everything that evaluation and merging need.
"""

import shlex
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate import PartialState

from boxtune.answers.calibration import fit
from boxtune.answers.conversation import format_sentence
from boxtune.answers.grounding import Grounding
from boxtune.answers.noise import NOISE_LABEL, require_free_label
from boxtune.batching.collator import DetectionCollator
from boxtune.batching.lengths import answer_budget, as_dataset, describe_overlong, measure, overlong
from boxtune.batching.variation import Variation
from boxtune.common.errors import UserError, accepting, command
from boxtune.data.questions import first_question, is_standard
from boxtune.data.records import Record, image_path, in_order, read_arguments, read_info, read_splits, write_arguments
from boxtune.metrics.matching import match_images, scored_hits
from boxtune.models.checkpoint import quiet_libraries
from boxtune.models.hub import LOG_IN, is_logged_in, push_folder
from boxtune.models.loading import (
    codec_for,
    commit_of,
    describe_modules,
    family_of,
    load_config,
    load_model,
    load_processor,
    nf4_config,
    require_full_precision,
    uses_fsdp,
)
from boxtune.models.lora import lora_config, lora_targets
from boxtune.reports.model_card import model_name
from boxtune.training.box_validation import METRICS, BoxValidation, require_objects
from boxtune.training.callbacks import BeginCallback, EpochCallback, InterruptCallback
from boxtune.training.losses import BoxLosses
from boxtune.training.machine import fit_workers, require_machine
from boxtune.training.policy import PolicyLoss
from boxtune.training.recipe import Recipe, load_recipe
from boxtune.training.run_folder import resolve_output, save_final
from boxtune.training.run_info import changed_data, changed_keys, save_run_info
from boxtune.training.trackers import usable_trackers
from boxtune.training.trainer import DetectionTrainer
from data_prep.__main__ import main as prepare

# ImageFinder of validation, at most, that scores are calibrated on.
CALIBRATION_IMAGES = 100


def say(message: str) -> None:
    """Print once, however many processes train."""
    if PartialState().is_main_process:
        print(message, flush=True)


def prepare_data(recipe: Recipe) -> Path:
    """The recipe's prepared data set, made by its converter when absent."""
    options = recipe.options
    data_dir = Path(options.data_dir)
    source = [options.data_source] if options.data_source else []
    arguments = [options.data_format, *source, *map(str, options.data_args or [])]
    with PartialState().main_process_first():
        if not (data_dir / "dataset.json").is_file():
            if not options.data_format:
                raise UserError(
                    f"{data_dir} is no prepared data set and recipe {recipe.name} names no converter. "
                    f"Run `python -m data_prep FORMAT SOURCE --out {data_dir}`, or set data_format and data_source."
                )
            command_line = [*arguments, "--out", str(data_dir)]
            say(f"preparing the data: python -m data_prep {shlex.join(command_line)}")
            prepare(command_line)
            write_arguments(data_dir, arguments)
    prepared_from, prepared_with = read_info(data_dir)["format"], read_arguments(data_dir)
    if options.data_format not in (None, "auto", prepared_from):
        say(f"note: {data_dir} was prepared from {prepared_from}, not {options.data_format}; it is used as it is")
    elif options.data_format and prepared_with not in (None, arguments):
        say(
            f"note: {data_dir} was prepared with `{shlex.join(prepared_with)}`, not `{shlex.join(arguments)}`; "
            "it is used as it is. Remove the folder to prepare it anew."
        )
    say(f"data: {data_dir}  {read_info(data_dir)['splits']}")
    return data_dir


def read_examples(data_dir: Path, object_order: str) -> dict[str, list[Record]]:
    """The records of train and, where there is one, validation. Raises UserError where nothing can be trained on."""
    splits = read_splits(data_dir, ("train", "validation"))
    splits = {split: [in_order(record, object_order) for record in records] for split, records in splits.items()}
    if not splits.get("train"):
        raise UserError(f"{data_dir} has no training images.")
    paths = [image_path(record, data_dir) for records in splits.values() for record in records]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise UserError(f"{len(missing)} of {len(paths)} pictures are gone. Prepare the data again:", missing)
    return splits


def make_grounding(recipe: Recipe, config, processor, splits: dict[str, list[Record]], classes: list[str]) -> Grounding:
    """What the checkpoint will remember; the answer budget is set once the lengths are known."""
    codec = codec_for(config, recipe.options.answer, recipe.options.codec)
    if recipe.options.noise_objects:
        require_free_label(classes)
    size = processor.image_processor.size
    sides = np.array([(record["width"], record["height"]) for record in splits["train"]], dtype=float)
    return Grounding(
        codec=codec.name,
        system_prompt=recipe.options.system_prompt,
        format_sentence=format_sentence(codec),
        min_pixels=size["shortest_edge"],
        max_pixels=size["longest_edge"],
        max_new_tokens=0,
        base_model=recipe.model.model_name_or_path,
        base_revision=commit_of(recipe.model.model_name_or_path, recipe.model.model_revision),
        base_precision="nf4" if recipe.model.load_in_4bit else recipe.model.dtype,
        quantized_vision=recipe.options.quantize_vision,
        compute_dtype=recipe.model.dtype,
        classes=classes,
        questions=sorted({first_question(record) for record in splits["train"]}),
        data_dir=recipe.options.data_dir,
        seen_pixels=np.percentile(sides[:, 0] * sides[:, 1], (5, 95)).tolist(),
        seen_aspects=np.percentile(sides[:, 0] / sides[:, 1], (5, 95)).tolist(),
        noise_label=NOISE_LABEL if recipe.options.noise_objects else "",
    )


def build_variation(recipe: Recipe, grounding: Grounding, records: list[Record]) -> Variation | None:
    """How training examples vary, or None where the recipe says they do not."""
    options = recipe.options
    if not (options.augment or options.negative_questions or options.prompt_variety or options.noise_objects):
        return None
    if options.negative_questions and len(grounding.classes) < 2:
        say("note: negative_questions has no effect on data with one class")
    standard = [record for record in records if is_standard(record)]
    own = len(records) - len(standard)
    if own and (options.negative_questions or options.prompt_variety or options.noise_objects):
        if not any(record["objects"]["bbox"] for record in standard):
            here = (
                "here nothing that shows an object does: other words would come to mean that there is none"
                if standard
                else "here no example does: they would change nothing"
            )
            raise UserError(
                f"negative_questions, prompt_variety and noise_objects vary what asks once for all classes, and {here}. "
                "Leave them out, or prepare the data with --questions all."
            )
        say(
            f"note: {own} of {len(records)} examples do not ask once for all classes; negative_questions, prompt_variety and "
            "noise_objects leave them as they are"
        )
    return Variation(
        operations=options.augment or [],
        negative_questions=options.negative_questions,
        prompt_variety=options.prompt_variety,
        noise_objects=options.noise_objects,
        object_order=options.object_order,
        classes=grounding.classes,
        max_pixels=grounding.max_pixels,
        max_length=recipe.training.max_length,
        seed=recipe.training.seed,
    )


def fit_lengths(recipe: Recipe, splits: dict, collator: DetectionCollator) -> dict[str, list[Record]]:
    """The examples within max_length; sets the answer budget. All over-long ones are listed, none is cut."""
    limit, fitting = recipe.training.max_length, {}
    for split, records in splits.items():
        noise_objects = recipe.options.noise_objects if split == "train" else 0.0
        lengths = measure(records, collator, noise_objects)
        too_long = overlong(lengths, limit)
        if too_long and recipe.options.overlong == "error":
            raise UserError(
                f"{len(too_long)} of {len(records)} examples of {split} exceed max_length {limit}. Raise max_length, lower "
                f"max_pixels{f' or noise_objects, {noise_objects}' if noise_objects else ''}, or set `overlong: drop`:",
                describe_overlong(too_long),
            )
        for line in describe_overlong(too_long):
            say(f"dropped from {split}, over max_length {limit}: {line}")
        dropped = {entry.id for entry in too_long}
        fitting[split] = [record for record in records if record["id"] not in dropped]
        if records and not fitting[split]:
            raise UserError(f"no example of {split} fits max_length {limit}.")
        if split == "train":
            lengths = [entry for entry in lengths if entry.id not in dropped]
            collator.grounding.max_new_tokens = answer_budget(lengths)
            widened = sum(entry.widened for entry in lengths)
            say(
                f"tokens: longest example {max(e.total for e in lengths)} of max_length {limit}, "
                f"longest answer {max(e.answer for e in lengths)}; {widened} boxes widened to one coordinate step"
            )
    return fitting


def build_model(recipe: Recipe, config):
    options = recipe.model
    dtype = getattr(torch, options.dtype)
    quantization = (
        nf4_config(
            family_of(config),
            dtype,
            options.use_bnb_nested_quant,
            options.bnb_4bit_quant_storage,
            recipe.options.quantize_vision,
        )
        if options.load_in_4bit
        else None
    )
    return load_model(
        options.model_name_or_path,
        dtype=dtype,
        quantization=quantization,
        attn_implementation=options.attn_implementation,
        revision=options.model_revision,
    )


def choose_losses(recipe: Recipe) -> tuple[BoxLosses | None, PolicyLoss | None]:
    """The teacher-forced and the sampled losses on boxes; neither where the weights ask for SFTTrainer's own loss.

    Raises UserError where the model will be sharded.
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
            "iou_loss_weight, fp_loss_weight, fn_loss_weight and end_token_weight need the whole LM head in each process. "
            "Launch with recipes/accelerate/ddp.yaml or zero2.yaml, or leave them out."
        )
    return chosen


def build_trainer(
    recipe: Recipe,
    model,
    processor,
    collator: DetectionCollator,
    splits: dict,
    box_losses: BoxLosses | None,
    policy_loss: PolicyLoss | None,
) -> DetectionTrainer:
    options, training = recipe.model, recipe.training
    peft_config = None
    if options.use_peft:
        own = recipe.options
        targets = lora_targets(model, own.lora_parts, options.lora_target_modules, own.lora_vision)
        peft_config = lora_config(options.lora_r, options.lora_alpha, options.lora_dropout, targets, options.use_rslora)
    # The collator reads whole records; lengths were checked above, so nothing may be cut here.
    training.remove_unused_columns = False
    training.max_length = None
    if not splits.get("validation") and training.eval_strategy != "no":
        say("no validation split: training without evaluation loss, best checkpoint or early stopping")
        training.eval_strategy = "no"
        training.load_best_model_at_end = False
        recipe.options.early_stopping_patience = None
    box_validation = None
    if splits.get("validation") and recipe.options.eval_images and uses_fsdp():
        # Each process would answer other pictures with weights of which it holds a part.
        if (training.metric_for_best_model or "").removeprefix("eval_") in METRICS:
            raise UserError(
                f"metric_for_best_model: {training.metric_for_best_model} is not measured under FSDP; use eval_loss."
            )
        say("note: under FSDP no boxes are generated while training")
    elif splits.get("validation") and recipe.options.eval_images:
        box_validation = BoxValidation(
            collator, splits["validation"], recipe.options.eval_images, training.per_device_eval_batch_size
        )
    callbacks = [InterruptCallback()]
    if collator.variation:
        callbacks.append(EpochCallback(collator.variation))
    if recipe.options.early_stopping_patience is not None:
        callbacks.append(transformers.EarlyStoppingCallback(recipe.options.early_stopping_patience))
        training.restore_callback_states_from_checkpoint = True  # a resumed run has the evaluations before it behind it
    with accepting(f"{recipe.name}: the trainer refuses a value"):
        return DetectionTrainer(
            model=model,
            args=training,
            grounding=collator.grounding,
            adapter_dtype=getattr(torch, recipe.options.adapter_dtype),
            box_validation=box_validation,
            box_losses=box_losses,
            policy_loss=policy_loss,
            data_collator=collator.for_losses(teacher_forced=box_losses is not None, sampled=policy_loss is not None),
            train_dataset=as_dataset(splits["train"], collator.data_dir, varied=True),
            eval_dataset=as_dataset(splits["validation"], collator.data_dir) if splits.get("validation") else None,
            processing_class=processor,
            peft_config=peft_config,
            callbacks=callbacks,
        )


def calibrate(trainer: DetectionTrainer, collator: DetectionCollator, records: list[Record]) -> None:
    """Learn, on validation, how often boxes of a score are right; evaluation then gives scores that say so."""
    validation = BoxValidation(collator, records, CALIBRATION_IMAGES, trainer.args.per_device_eval_batch_size)
    trainer.model.eval()
    predictions = validation.predict(trainer.model)
    scores, hits = scored_hits(match_images(validation.records, predictions), predictions)
    collator.grounding.calibration = fit(scores, hits)
    if not collator.grounding.calibration:
        say(f"note: scores stay uncalibrated: {sum(hits)} of {len(hits)} boxes found in validation are right")


def push_final(recipe: Recipe, final: Path) -> None:
    """The finished model to the hub. Where that fails, a warning: the training was worth its time all the same."""
    training = recipe.training
    repo = training.hub_model_id or model_name(final)
    try:
        url = push_folder(final, repo, private=training.hub_private_repo, token=recipe.hub_token)
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)
    else:
        say(f"pushed: {url}")


@command
def main(argv: list[str] | None = None) -> None:
    quiet_libraries()
    recipe = load_recipe(sys.argv[1:] if argv is None else argv)
    for note in recipe.notes:
        say(f"note: {note}")
    require_machine(recipe.training.n_gpu)
    config = load_config(recipe.model.model_name_or_path, recipe.model.model_revision)
    codec_for(config)
    require_full_precision(config, recipe.model.model_name_or_path)
    losses = choose_losses(recipe)
    resume_from, replaced = resolve_output(recipe)
    data_dir = prepare_data(recipe)
    splits = read_examples(data_dir, recipe.options.object_order)

    options = recipe.options
    processor = load_processor(
        recipe.model.model_name_or_path, recipe.model.model_revision, options.min_pixels, options.max_pixels
    )
    grounding = make_grounding(recipe, config, processor, splits, read_info(data_dir)["classes"])
    if note := fit_workers(recipe.training, grounding.max_pixels):
        say(f"note: {note}")
    variation = build_variation(recipe, grounding, splits["train"])
    if variation:
        grounding.questions = variation.questions(splits["train"])
    collator = DetectionCollator(processor, grounding, data_dir, variation)
    splits = fit_lengths(recipe, splits, collator)
    if splits.get("validation") and recipe.training.eval_strategy != "no":
        metric = (recipe.training.metric_for_best_model or "").removeprefix("eval_")
        require_objects(metric, splits["validation"], options.eval_images)

    if PartialState().is_main_process:
        recipe.training.report_to, notes = usable_trackers(recipe.training.report_to, "boxtune", recipe.name)
        for note in notes:
            say(f"note: {note}")
    else:
        recipe.training.report_to = []
    # The trainer would push checkpoints and a card of its own; what the hub gets is the finished model with ours.
    push, recipe.training.push_to_hub = recipe.training.push_to_hub, False
    if push and not is_logged_in(recipe.hub_token):
        say(f"note: push_to_hub: you are not logged in, so the model will stay here. {LOG_IN}")
        push = False
    model = build_model(recipe, config)
    trainer = build_trainer(recipe, model, processor, collator, splits, *losses)
    say(describe_modules(trainer.model))
    output_dir = Path(recipe.training.output_dir)
    if resume_from:
        changed = changed_keys(output_dir, recipe) + (["the data"] if changed_data(output_dir, data_dir) else [])
        if changed:
            say(f"note: the resumed run differs from before in: {', '.join(changed)}")
    if trainer.is_world_process_zero():
        for path in replaced:
            path.unlink() if path.is_symlink() else shutil.rmtree(path)
        first_batch = next(iter(trainer.get_train_dataloader()))
        record = partial(save_run_info, output_dir, recipe, trainer.model, processor, first_batch)
        trainer.add_callback(BeginCallback(record))

    try:
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    except torch.OutOfMemoryError as error:
        fewer = "fewer grounding_samples, " if trainer.policy_loss else ""
        raise UserError(
            f"out of GPU memory ({error}). Try {fewer}OVERLAY=small_gpu, then a lower max_pixels; where an evaluation ran out, "
            "a lower per_device_eval_batch_size."
        ) from None
    except ImportError as error:  # an optional package that a value asks for
        raise UserError(f"{recipe.name}: {error}") from None
    interrupt = next(c for c in trainer.callback_handler.callbacks if isinstance(c, InterruptCallback))
    if interrupt.interrupted:
        say(f"stopped at step {trainer.state.global_step}; go on with --resume_from_checkpoint true")
        sys.exit(130)
    if trainer.box_validation:
        calibrate(trainer, collator, splits["validation"])
    save_final(trainer, output_dir)
    say(f"trained: {output_dir / 'final'}")
    if push and trainer.is_world_process_zero():
        push_final(recipe, output_dir / "final")


if __name__ == "__main__":
    main()
