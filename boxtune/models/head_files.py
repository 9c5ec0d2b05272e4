"""A detection head in a model and in a checkpoint: attach, save, and load strictly.

It is saved in a folder of its own, because programs such as vLLM read every safetensors file next to a model's config.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from boxtune.common.errors import UserError, reading
from boxtune.common.problems import Problem
from boxtune.models.detection_head import DetectionHead, HeadShape

HEAD_FOLDER = "detection_head"
WEIGHTS, SHAPE = "model.safetensors", "config.json"
# The attribute of the model that holds the head; also the folder's name.
_ATTRIBUTE = "detection_head"
_REMEDY = "Use another checkpoint of the run."


def has_head(folder: Path) -> bool:
    """Whether a checkpoint has a detection head."""
    return (folder / HEAD_FOLDER).is_dir()


def head_weights(folder: Path) -> Path:
    """The file with the weights of a checkpoint's head."""
    return folder / HEAD_FOLDER / WEIGHTS


def attach_head(base: PreTrainedModel, shape: HeadShape) -> DetectionHead:
    """Make a new head a part of the model, on its device. `base`: the model below its adapters."""
    head = DetectionHead(shape).to(base.device)
    base.add_module(_ATTRIBUTE, head)
    return head


def detection_head(base: PreTrainedModel) -> DetectionHead:
    """The head of a model that has one."""
    return base.get_submodule(_ATTRIBUTE)


def is_of_head(path: str) -> bool:
    """Whether a module or parameter belongs to the head. `path` may have prefixes, as under PEFT."""
    return f".{_ATTRIBUTE}." in f".{path}."


def without_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the model alone, which other programs read."""
    return {key: value for key, value in state.items() if not is_of_head(key)}


def save_head(base: PreTrainedModel, folder: Path) -> None:
    head = detection_head(base)
    target = folder / HEAD_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    (target / SHAPE).write_text(json.dumps(asdict(head.shape), indent=2) + "\n", encoding="utf-8")
    save_file({key: value.contiguous().cpu() for key, value in head.state_dict().items()}, target / WEIGHTS)


def load_head(base: PreTrainedModel, folder: Path) -> None:
    """Read the head of a checkpoint into the model, and attach it if the model has none.

    Raises UserError if its weights are missing, unexpected, of the wrong shape or not finite.
    """
    source = folder / HEAD_FOLDER
    with reading(str(source), _REMEDY):
        shape = HeadShape(**json.loads((source / SHAPE).read_text(encoding="utf-8")))
        weights = load_file(source / WEIGHTS)
    existing = dict(base.named_children()).get(_ATTRIBUTE)
    head = existing if existing is not None else attach_head(base, shape)
    if head.shape != shape:
        raise UserError(f"{source} has {shape}, but the recipe asks for {head.shape}. {_REMEDY}")
    if shape.llm_hidden_size != base.get_input_embeddings().embedding_dim:
        raise UserError(f"{source} is the head of another model: {shape}. {_REMEDY}")
    _check(head, weights, source)
    head.load_state_dict(weights)


def _check(head: DetectionHead, weights: Mapping[str, Tensor], source: Path) -> None:
    expected = head.state_dict()
    problems = [Problem(key, "missing") for key in sorted(expected.keys() - weights.keys())]
    problems += [Problem(key, "unexpected") for key in sorted(weights.keys() - expected.keys())]
    for key in sorted(expected.keys() & weights.keys()):
        if weights[key].shape != expected[key].shape:
            problems.append(Problem(key, f"shape {list(weights[key].shape)}, expected {list(expected[key].shape)}"))
        elif not torch.isfinite(weights[key]).all():
            problems.append(Problem(key, "not finite"))
    if problems:
        raise UserError(f"{len(problems)} weights of the detection head in {source} are unusable. {_REMEDY}", problems)
