"""The folder of a run: whether a new run may start there, which checkpoint to resume from, and saving the final model."""

import shutil
from pathlib import Path

from peft import PeftModel
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from boxtune.common.errors import UserError, reading
from boxtune.common.files import replace_folder
from boxtune.common.problems import join_names
from boxtune.models.generation_config import greedy_config
from boxtune.reports.model_card import model_name, write_card
from boxtune.training.checkpoint_trainer import RESUME_REMEDY
from boxtune.training.console import say
from boxtune.training.last_checkpoint import last_whole_checkpoint
from boxtune.training.recipe import Recipe
from boxtune.training.trainer import DetectionTrainer

# Subfolders that a run creates.
RUN_FOLDERS = (f"{PREFIX_CHECKPOINT_DIR}-*", "final", "final_merged", "eval", "eval_*")


def resolve_output(recipe: Recipe) -> tuple[Path | None, list[Path]]:
    """(checkpoint to resume from, folders that a new run replaces). Raises UserError instead of mixing two runs in one folder."""
    output_dir = Path(recipe.training.output_dir)
    wanted = recipe.training.resume_from_checkpoint or "false"
    old = [path for pattern in RUN_FOLDERS for path in sorted(output_dir.glob(pattern)) if path.is_dir()]
    checkpoint = None
    if wanted.lower() in {"true", "1", "yes", "last"}:
        checkpoint, corrupt = last_whole_checkpoint(output_dir)
        if checkpoint is None:
            raise UserError(
                f"{output_dir} contains no complete checkpoint to resume from; start over with --overwrite_output_dir true "
                "instead of --resume_from_checkpoint.",
                corrupt,
            )
        for line in corrupt:
            say(f"warning: {line}. Resuming from {checkpoint} instead")
    elif wanted.lower() not in {"false", "0", "no"}:
        checkpoint = Path(wanted)
        if not (checkpoint / "trainer_state.json").is_file():
            raise UserError(
                f"--resume_from_checkpoint {wanted} is not a complete checkpoint: trainer_state.json is missing there."
            )
    if checkpoint:
        with reading(str(checkpoint / "trainer_state.json"), RESUME_REMEDY):
            state = TrainerState.load_from_json(checkpoint / "trainer_state.json")
        if state.global_step >= state.max_steps:  # transformers would take one more step, at the last learning rate
            raise UserError(
                f"{checkpoint} is the end of a finished run: {state.global_step} of {state.max_steps} steps are done, and its "
                f"learning rate schedule has ended. {_how_to_train_on(checkpoint, recipe)}"
            )
        if checkpoint.resolve().parent == output_dir.resolve():
            return checkpoint, []
    if old and not recipe.options.overwrite_output_dir:
        raise UserError(
            f"{output_dir} already contains a run ({join_names(path.name for path in old)}). Continue it with "
            "--resume_from_checkpoint true, start over with --overwrite_output_dir true, or choose another --output_dir."
        )
    return checkpoint, old


def _how_to_train_on(checkpoint: Path, recipe: Recipe) -> str:
    final = checkpoint.parent / "final"
    result = final if final.is_dir() else checkpoint  # saving the final model may have failed
    first = ""
    if recipe.model.use_peft:
        first = f"merge its adapter (make merge CKPT={result}) and "
        result = result.with_name(f"{result.name}_merged")
    return (
        f"To train on, {first}start a new run with --model_name_or_path {result} and another --output_dir. To train for more "
        "steps from the start, raise max_steps or num_train_epochs and use --overwrite_output_dir true."
    )


def save_final(trainer: DetectionTrainer, output_dir: Path) -> None:
    """Save the final model to output_dir/final, completely or not at all."""
    trainer.require_finite()
    partial = output_dir / "final.partial"
    if trainer.is_world_process_zero():
        shutil.rmtree(partial, ignore_errors=True)  # left behind by an interrupted save, possibly of other weights
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(partial))
    if trainer.is_world_process_zero():
        for name in ("recipe.yaml", "run.json", "first_batch.txt"):
            shutil.copyfile(output_dir / name, partial / name)
        if not isinstance(trainer.model, PeftModel):
            # Servers follow this file, and the base model's version turns on sampling and a repetition penalty.
            tokenizer = trainer.processing_class.tokenizer
            greedy_config(tokenizer, trainer.grounding.max_new_tokens).save_pretrained(partial)
        write_card(partial, model_name(output_dir / "final"))
        replace_folder(partial, output_dir / "final")  # final exists if a run that had stopped early was resumed
