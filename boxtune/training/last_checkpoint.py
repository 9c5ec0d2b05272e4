"""The last checkpoint of a run that can be resumed from."""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


def last_whole_checkpoint(output_dir: Path) -> tuple[Path | None, list[str]]:
    """(the latest checkpoint whose files can all be read, one line for each later one that is corrupt).

    trainer_state.json is written last: a checkpoint without it is incomplete, and is passed over without a word.
    """
    steps = {}
    for state in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*/trainer_state.json"):
        step = state.parent.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if step.isdecimal():  # skips copies such as checkpoint-10-backup
            steps[int(step)] = state.parent
    corrupt = []
    for step in sorted(steps, reverse=True):
        problem = corrupt_file(steps[step])
        if not problem:
            return steps[step], corrupt
        corrupt.append(f"{steps[step]} is corrupt: {problem}")
    return None, corrupt


def corrupt_file(checkpoint: Path) -> str:
    """The first file of a checkpoint that is cut off or damaged, and why; "" if there is none.

    PyTorch's files hold checksums, which are compared. Of safetensors, only the header and the length can be checked.
    """
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="pt"):
                    pass
            elif path.suffix in (".pt", ".pth"):
                with zipfile.ZipFile(path) as archive:
                    if damaged := archive.testzip():
                        return f"{path.name}: {damaged} has another checksum"
        except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
            return f"{path.name}: {type(error).__name__}: {error}"
    return ""
