"""Train a recipe: python train_sft.py --config recipes/NAME.yaml [--overlay recipes/overlays/tiny.yaml] [--key value …]

Prepares the dataset if it does not exist, checks the length of every example, and trains with TRL's SFTTrainer. Writes
runs/NAME/{checkpoint-N,final} with everything that evaluation and merging need.
"""

import sys
from dataclasses import replace
from pathlib import Path

from boxtune.common.spinning import limit_spinning

if __name__ == "__main__":  # before torch is imported
    limit_spinning()

from accelerate import PartialState

from boxtune.batching.collator import DetectionCollator
from boxtune.common.errors import command
from boxtune.data.dataset import read_info
from boxtune.models.config import family_of, load_config
from boxtune.models.describing import describe_modules
from boxtune.models.libraries import quiet_libraries
from boxtune.models.processors import load_processor
from boxtune.models.quantization import require_dense, require_full_precision
from boxtune.training import setup, setup_examples, setup_losses
from boxtune.training.batches import require_packing
from boxtune.training.console import say
from boxtune.training.continuing import check_start, start_from
from boxtune.training.examples import fit_lengths, open_examples
from boxtune.training.irrelevant import with_irrelevant
from boxtune.training.machine import flush_denormals, require_machine
from boxtune.training.recipe import load_recipe
from boxtune.training.run import (
    fit_calibration,
    fit_thresholds,
    push_final,
    record_start,
    require_promotion,
    run_training,
    say_changes,
    will_push,
)
from boxtune.training.run_folder import resolve_output, save_final
from boxtune.training.soft_prompt import require_whole_embeddings
from boxtune.training.trackers import start_trackers
from data_prep.prepare_once import prepare_once


@command
def main(argv: list[str] | None = None) -> None:
    quiet_libraries()

    # ---- Recipe
    recipe = load_recipe(sys.argv[1:] if argv is None else argv, purpose=__doc__)
    options, model_options = recipe.options, recipe.model
    for note in recipe.notes:
        say(f"note: {note}")

    # ---- Checks that need neither data nor weights
    require_machine(recipe.training.n_gpu)
    config = load_config(model_options.model_name_or_path, model_options.model_revision)
    family = family_of(config)
    require_full_precision(config, model_options.model_name_or_path)
    if model_options.load_in_4bit:
        require_dense(family, config, model_options.model_name_or_path)
    require_whole_embeddings(recipe)
    check_start(recipe)
    require_packing(recipe, family)
    box_losses, policy_loss = setup_losses.choose_losses(recipe)
    rates = setup_losses.choose_rates(recipe)

    # ---- Run folder
    output_dir = Path(recipe.training.output_dir)
    resume_from, replaced = resolve_output(recipe)

    # ---- Data
    data_dir = Path(options.data_dir)
    with PartialState().main_process_first():
        prepare_once(data_dir, options.data_format, options.data_source, options.data_args, say)
    info = read_info(data_dir)
    classes, descriptions = info["classes"], info.get("descriptions", {})
    splits, shards = open_examples(recipe)

    # ---- Examples and their lengths
    processor = load_processor(
        model_options.model_name_or_path, model_options.model_revision, options.min_pixels, options.max_pixels
    )
    encoder = setup_examples.make_encoder(recipe, config, processor, classes)
    max_pixels = processor.image_processor.size["longest_edge"]
    variation = setup_examples.make_variation(recipe, splits["train"], classes, max_pixels, descriptions)
    own = splits["train"]
    examples = fit_lengths(
        recipe, splits | {"train": with_irrelevant(recipe, own, encoder)}, encoder, can_drop=not shards
    )
    grounding = setup_examples.make_grounding(
        recipe, encoder, own, classes, variation, examples.max_new_tokens, descriptions
    )
    teachers = setup_examples.make_teachers(recipe, examples.splits["train"])
    collator = DetectionCollator(processor, grounding, data_dir, variation, teachers=teachers)
    box_validation = setup.make_box_validation(recipe, collator, examples.splits)

    # ---- Model and trainer
    trackers = start_trackers(recipe.training.report_to, "boxtune", recipe.name)
    push = will_push(recipe)
    arguments = setup.trainer_arguments(recipe, examples.splits, max_pixels, trackers)
    model = setup.build_model(recipe, config)
    trainer = setup.build_trainer(
        recipe, arguments, model, collator, examples, box_validation, box_losses, policy_loss, rates, shards
    )
    say(describe_modules(trainer.model))
    if options.continue_from and not resume_from:
        start_from(trainer.model, recipe)

    # ---- Train
    if resume_from:
        say_changes(recipe, data_dir)
    record_start(trainer, recipe, replaced)
    run_training(trainer, recipe, resume_from)
    require_promotion(trainer)

    # ---- Calibrate scores
    if box_validation:
        calibration = fit_calibration(trainer, collator, examples.splits["validation"])
        trainer.grounding = replace(grounding, calibration=calibration)
        if options.detection_head:
            thresholds = fit_thresholds(trainer, collator, examples.splits["validation"])
            trainer.grounding = replace(trainer.grounding, **thresholds)

    # ---- Save and push
    save_final(trainer, output_dir)
    say(f"trained: {output_dir / 'final'}")
    if push and trainer.is_world_process_zero():
        push_final(recipe, output_dir / "final")


if __name__ == "__main__":
    flush_denormals()
    main()
