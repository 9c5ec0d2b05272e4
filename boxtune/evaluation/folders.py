"""Where an evaluation writes its results, and where it finds the predictions of runs."""

import json
from pathlib import Path

from boxtune.common.errors import UserError, reading
from boxtune.common.files import named
from boxtune.common.json_lines import read_json_lines

# ---- results -------------------------------------------------------------------------------------------------------------


def evaluation_folder(ckpt: str) -> Path:
    """runs/NAME/eval for runs/NAME/final, runs/NAME/eval_checkpoint-30 for a checkpoint, runs/MODEL/eval for a Hub id."""
    folder = named(ckpt)
    if not folder.is_dir():
        return Path("runs") / ckpt.replace("/", "--") / "eval"
    return folder.parent / ("eval" if folder.name == "final" else f"eval_{folder.name}")


def images_folder(ckpt: str) -> Path:
    """runs/NAME/eval_images for runs/NAME/final: next to the evaluation, whose metrics belong to its own predictions."""
    evaluated = evaluation_folder(ckpt)
    return evaluated.with_name(f"{evaluated.name}_images")


def tuning_folder(ckpt: str) -> Path:
    """runs/NAME/eval_tuning for runs/NAME/final: the predictions of --tune are not those of the evaluation."""
    evaluated = evaluation_folder(ckpt)
    return evaluated.with_name(f"{evaluated.name}_tuning")


def rescored_folder(folder: Path) -> Path:
    """The folder of the predictions, or `rescored` in it if it contains metrics of the model itself."""
    path = folder / "metrics.json"
    if not path.is_file():
        return folder
    with reading(str(path), "Write the new results to another folder: --out DIR."):
        is_evaluation = "checkpoint" in json.loads(path.read_text(encoding="utf-8"))["provenance"]
    return folder / "rescored" if is_evaluation else folder


# ---- predictions ---------------------------------------------------------------------------------------------------------


def find_predictions(option: str, runs: list[Path]) -> list[Path]:
    """predictions.jsonl of each run: the path itself, or in this folder, or in eval/ below it.

    Raises UserError that names every run without predictions. `option`: the option of the command line that names the runs.
    """
    found = {run: _predictions_of(run) for run in runs}
    if lost := [run for run, path in found.items() if path is None]:
        problems = "; ".join(f"{option} {str(run)!r}: {_why_no_predictions(run)}" for run in lost)
        raise UserError(f"{problems}. To create predictions: evaluate.py --ckpt DIR")
    return [path for run in runs if (path := found[run])]


def _predictions_of(run: Path) -> Path | None:
    places = (run, run / "predictions.jsonl", run / "eval" / "predictions.jsonl")
    return next((path for path in places if path.is_file()), None)


def _why_no_predictions(run: Path) -> str:
    return f"neither {run} nor {run / 'eval'} contains predictions.jsonl" if run.exists() else "no such file or folder"


def common_ids(files: list[Path]) -> set[str]:
    """The ids in two predictions files. Raises UserError if there are none, or if the files differ, with every such id."""
    ids = [
        {line["id"] for _, line in read_json_lines(path) if isinstance(line, dict) and isinstance(line.get("id"), str)}
        for path in files
    ]
    problems = [
        f"{name}: not in {path}"
        for path, own in zip(files, ids, strict=True)
        for name in sorted((ids[0] | ids[1]) - own)
    ]
    if problems:
        raise UserError("only runs on the same images can be compared; evaluate both on one split:", problems)
    if not ids[0]:
        raise UserError(f"{files[0]} and {files[1]} contain no predictions; evaluate both on one split.")
    return ids[0]
