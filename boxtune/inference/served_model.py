"""Which model a server offers, and whether it is the checkpoint.

A server responds under any name with any model, so a wrong model would only show up as poor scores. Hence it is refused here.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from boxtune.answers.grounding import FILE_NAME as GROUNDING_FILE
from boxtune.answers.grounding import Grounding
from boxtune.answers.virtual_tokens import split_soft_prompt
from boxtune.common.errors import UserError
from boxtune.families import FAMILIES
from boxtune.inference.server_connection import ServerConnection
from boxtune.models.checkpoint import Checkpoint, weights_identity

# What merging, the caller's own token limit, or tuning afterwards changes in the grounding of a checkpoint.
CHANGED_BY_MERGING = {"base_precision", "compute_dtype", "max_new_tokens", "decoding"}


def find_model(url: str, name: str | None, ckpt: str, checkpoint: Checkpoint, trust: bool = False) -> dict[str, Any]:
    """The entry of the server's /models list that is the checkpoint: {"id"; from vLLM also "root", for an adapter "parent"}.

    url: the server's address. name: the model's name on the server; None if the server has only one. ckpt: the checkpoint as the
    user named it, a folder or Hub id. trust: accept a model that cannot be recognized as the checkpoint.
    Raises UserError if the server is not reachable, has no model of that name, or has another model under it.
    """
    model = _choose(ServerConnection(url).list_models(), name, url)
    if not trust and (problem := _mismatch(model, ckpt, checkpoint)):
        raise UserError(f"{url}: {problem} To skip this check, add --trust-server.")
    return model


def _choose(reply: Any, name: str | None, url: str) -> dict[str, Any]:
    """The model called `name`, or the only one. `reply`: the JSON of /models."""
    models = reply.get("data") if isinstance(reply, dict) else None
    if not models or not all(isinstance(row, dict) and isinstance(row.get("id"), str) for row in models):
        raise UserError(f"{url}/models does not list any models: {str(models)[:200]}. Most addresses end in /v1.")
    names = [row["id"] for row in models]
    if name is None and len(models) > 1:
        raise UserError(f"{url} serves several models. Choose one with --served-model:", names)
    if name is not None and name not in names:
        raise UserError(f"{url} serves no model {name!r}. Choose one of these with --served-model:", names)
    return models[0] if name is None else models[names.index(name)]


# ---- is it the checkpoint? ---------------------------------------------------------------------------------------------


def _mismatch(model: dict[str, Any], ckpt: str, checkpoint: Checkpoint) -> str | None:
    """Why the served model is not, or cannot be recognized as, the checkpoint; None if it is."""
    if checkpoint.adapter and (served := _unmerged_prompt(model, ckpt, checkpoint)):
        return served
    if checkpoint.adapter is None:
        return _whole_model_mismatch(model, ckpt, checkpoint)
    if model.get("parent"):
        return _adapter_mismatch(model, ckpt, checkpoint, checkpoint.adapter)
    return _merged_model_mismatch(model, ckpt, checkpoint)


def _root_folder(model: dict[str, Any]) -> Path | None:
    """The folder that a model is served from. None if that is unknown, a Hub id or a folder of another machine."""
    root = model.get("root")
    return Path(root) if root and Path(root).is_dir() else None


def _whole_model_mismatch(model: dict[str, Any], ckpt: str, checkpoint: Checkpoint) -> str | None:
    folder, root = _root_folder(model), model.get("root")
    if root == ckpt or (folder and folder.resolve() == Path(checkpoint.path).resolve()):
        return None
    return f"{model['id']!r} is served from {root or 'a place that the server does not state'}, not from {ckpt}."


def _unmerged_prompt(model: dict[str, Any], ckpt: str, checkpoint: Checkpoint) -> str | None:
    """Why the served model has no soft prompt although the adapter has one; None if the adapter has none, or if both have it."""
    folder = _root_folder(model)
    is_merged = folder and not model.get("parent") and (folder / GROUNDING_FILE).is_file()
    if is_merged or not split_soft_prompt(checkpoint.grounding.system_prompt)[0]:
        return None
    return (
        f"the adapter {ckpt} has a soft prompt, which a server cannot add to {model['id']!r}. Merge it (merge_adapter.py) and "
        "serve the merged model."
    )


def _adapter_mismatch(model: dict[str, Any], ckpt: str, checkpoint: Checkpoint, adapter: Path) -> str | None:
    """An adapter whose folder is on another machine is recognized by its name alone."""
    folder = _root_folder(model)
    if folder:
        served = replace(checkpoint, path=str(folder), adapter=folder)
        if weights_identity(served) != weights_identity(checkpoint):
            return f"{model['id']!r} is the adapter in {model['root']}, and its weights differ from those of {ckpt}."
    if _adapter_config(adapter).get("modules_to_save"):
        return (
            f"the adapter {ckpt} has modules that were trained whole (lora_modules_to_save), which servers do not load. Serve "
            "the merged model instead (merge_adapter.py)."
        )
    if adapts_vision(adapter):
        return (
            f"the adapter {ckpt} adapts the vision tower, which vLLM ignores unless it is started with "
            "--enable-tower-connector-lora. Serve the merged model instead (merge_adapter.py)."
        )
    return None


def _merged_model_mismatch(model: dict[str, Any], ckpt: str, checkpoint: Checkpoint) -> str | None:
    """A merged model has the same grounding as the adapter that it was merged from."""
    folder, root = _root_folder(model), model.get("root")
    if folder and (folder / GROUNDING_FILE).is_file():
        if _unchanged_by_merging(Grounding.load(folder)) == _unchanged_by_merging(checkpoint.grounding):
            return None
        return f"{model['id']!r} is the model in {root}, which was not merged from {ckpt}."
    return (
        f"{model['id']!r} is not an adapter but {root or 'a model that the server does not describe'}, so the adapter "
        f"{ckpt} would have no effect. Start the server with --enable-lora --lora-modules NAME=DIR and pass "
        "--served-model NAME, or serve the merged model (merge_adapter.py)."
    )


def adapts_vision(adapter: Path) -> bool:
    """Whether the adapter's target modules include some of the vision tower."""
    tower_names = {family.vision_tower.split(".")[-1] for family in FAMILIES.values()}
    return any(name in str(_adapter_config(adapter)["target_modules"]) for name in tower_names)


def _adapter_config(adapter: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return config


def _unchanged_by_merging(grounding: Grounding) -> dict[str, Any]:
    return {key: value for key, value in vars(grounding).items() if key not in CHANGED_BY_MERGING}
