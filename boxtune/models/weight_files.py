"""The files that hold a model's weights: those that transformers reads, in its order of preference."""

import json
from pathlib import Path

from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from boxtune.common.errors import UserError, reading


def weight_files(folder: Path) -> dict[str, Path]:
    """{key of a tensor: the safetensors file from which transformers reads it}, files in the order in which it reads them.

    A folder may hold several complete sets of weights, and transformers reads one of them: the file or index that config.json
    names (`transformers_weights`), else model.safetensors, else the shards that model.safetensors.index.json names. Other
    files, such as consolidated.safetensors, are never read. Raises UserError if there are no such files, or one is corrupt.
    """
    entry = _entry(folder)
    files = [entry]
    if entry.name.endswith(".index.json"):
        with reading(str(entry), "Download the model again."):
            files = [folder / name for name in sorted(set(json.loads(entry.read_bytes())["weight_map"].values()))]
    found = {}
    for file in files:
        with reading(str(file), "Download the model again."), safe_open(file, framework="pt") as weights:
            found |= dict.fromkeys(weights.keys(), file)  # a key in several shards is read from the last
    return found


def _entry(folder: Path) -> Path:
    """The file that transformers opens first: the weights, or their index."""
    with reading(str(folder / "config.json"), "Download the model again."):
        named = json.loads((folder / "config.json").read_bytes()).get("transformers_weights")
    names = [named] if named else [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} contains no {' or '.join(names)}. Merging needs the base in the format safetensors.")
