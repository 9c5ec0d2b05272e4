"""The last checkpoint of a run."""

from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


def last_whole_checkpoint(output_dir: Path) -> Path | None:
    """The latest complete checkpoint. trainer_state.json is written last, so a checkpoint that has it is complete."""
    steps = {}
    for state in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*/trainer_state.json"):
        step = state.parent.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if step.isdecimal():  # skips copies such as checkpoint-10-backup
            steps[int(step)] = state.parent
    return steps[max(steps)] if steps else None
