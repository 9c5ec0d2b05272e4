"""merge_adapter.py --require-guardrails: only a model that forgot little is merged."""

from pathlib import Path

from boxtune.common.errors import UserError
from boxtune.evaluation.folders import evaluation_folder
from boxtune.metrics.guardrail_rules import FILE_NAME, promotion_problems, read_guardrails


def require_guardrails(ckpt: str, folder: Path) -> None:
    """Raises UserError if the guardrails of the checkpoint's last evaluation fail, or were not measured with these weights.

    ckpt: as the user named it. folder: that of its weights.
    """
    path, command = evaluation_folder(ckpt) / FILE_NAME, f"python evaluate.py --ckpt {ckpt} --guardrails small"
    if not path.is_file():
        raise UserError(f"--require-guardrails: {path} does not exist. To make it: {command}")
    trained = max(file.stat().st_mtime for end in ("adapter_model*", "*.safetensors") for file in folder.glob(end))
    if path.stat().st_mtime < trained:
        raise UserError(f"--require-guardrails: {path} is older than the weights. Measure it again: {command}")
    if problems := promotion_problems(read_guardrails(path)):
        raise UserError(
            f"--require-guardrails: {ckpt} is not merged, because its guardrails fail ({path}). Use an earlier checkpoint, train "
            "with unrelated images (irrelevant_images), or merge without this option:",
            problems,
        )
