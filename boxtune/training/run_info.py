"""The record of a run, saved next to its checkpoints: recipe.yaml (resolved), run.json and first_batch.txt."""

import json
import platform
import re
from itertools import groupby
from pathlib import Path

import torch
import yaml

from boxtune.batching.encoder import IGNORE_INDEX
from boxtune.common.environment import git_revision, versions
from boxtune.common.errors import reading
from boxtune.common.files import write_whole
from boxtune.data.dataset import data_hash, read_info
from boxtune.models.describing import quantized_modules, trainable_parameters
from boxtune.models.lora import adapted_layers, adapted_modules
from boxtune.models.whole_modules import whole_modules
from boxtune.training.recipe import Recipe, read_yaml


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"


def changed_keys(output_dir: Path, recipe: Recipe) -> list[str]:
    """The recipe keys whose values differ from those of the run that is already in `output_dir`."""
    path = output_dir / "recipe.yaml"
    if not path.is_file():
        return []
    before = read_yaml(path)
    now = yaml.safe_load(yaml.safe_dump(recipe.values))
    ignored = {"resume_from_checkpoint", "overwrite_output_dir"}
    return sorted(key for key in (before.keys() | now.keys()) - ignored if before.get(key) != now.get(key))


def changed_data(output_dir: Path, data_dir: Path) -> bool:
    """Whether the data in `data_dir` has changed since the run in `output_dir` started."""
    path = output_dir / "run.json"
    if not path.is_file():
        return False
    with reading(str(path), "Remove it to resume without comparing the data."):
        before = json.loads(path.read_text(encoding="utf-8"))["data"]["sha256"]
    return before != data_hash(data_dir)


def save_run_info(output_dir: Path, recipe: Recipe, model: torch.nn.Module, first_batch: str) -> None:
    """Write recipe.yaml, run.json and first_batch.txt. `first_batch`: the text of `describe_batch`."""
    write_whole(output_dir / "recipe.yaml", yaml.safe_dump(recipe.values, allow_unicode=True))
    trainable, total = trainable_parameters(model)
    data_dir = Path(recipe.options.data_dir)
    info = {
        "recipe": recipe.name,
        "versions": versions(),
        "device": device_name(),
        "git_revision": git_revision(Path(__file__).parent),
        "data": {"directory": str(data_dir), "sha256": data_hash(data_dir), "splits": read_info(data_dir)["splits"]},
        "modules": {
            "quantised": quantized_modules(model),
            "adapted": adapted_modules(model),
            "layers": adapted_layers(model),
            "whole": whole_modules(model),
        },
        "parameters": {"trainable": trainable, "all": total},
    }
    write_whole(output_dir / "run.json", json.dumps(info, ensure_ascii=False, indent=2) + "\n")
    write_whole(output_dir / "first_batch.txt", first_batch)


def describe_batch(processor, batch: dict) -> str:
    """The batch as text: each example's input, with its image tokens as a count, and its supervised part.

    What teachers' responses supervise comes in a part of its own.
    """
    sections = []
    pairs = zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    for i, (ids, mask, labels) in enumerate(pairs):
        text = processor.tokenizer.decode(ids[mask.bool()])
        text = _with_counted_images(text, processor.image_token)
        section = f"--- example {i}\n{text}\n"
        of_teachers = batch["teacher_tokens"][i] if "teacher_tokens" in batch else torch.zeros_like(mask).bool()
        if of_teachers.any():
            section += f"--- supervised, teachers\n{processor.tokenizer.decode(labels[of_teachers])}\n"
        supervised = processor.tokenizer.decode(labels[(labels != IGNORE_INDEX) & ~of_teachers])
        sections.append(f"{section}--- supervised\n{supervised}\n")
    return "\n".join(sections)


def _with_counted_images(text: str, token: str) -> str:
    """The text with a count in place of each run of image tokens."""
    return re.sub(f"(?:{re.escape(token)})+", lambda run: f"[{len(run[0]) // len(token)} image tokens]", text)


def describe_tokens(processor, batch: dict) -> str:
    """The tokens of the first example of a batch, one per line: position, id, whether it is supervised (+), text.

    Image tokens share a line.
    """
    length = int(batch["attention_mask"][0].sum())  # padding is on the right
    ids, labels = (batch[key][0, :length].tolist() for key in ("input_ids", "labels"))
    tokens = [processor.tokenizer.decode(torch.tensor([token])) for token in ids]
    images = sum(token == processor.image_token for token in tokens)
    supervised = sum(label != IGNORE_INDEX for label in labels)
    lines = [f"--- {length} tokens: {images} of images, {supervised} supervised"]
    for is_image, run in groupby(range(length), key=lambda position: tokens[position] == processor.image_token):
        first, *others = run
        shown = [first] if is_image else [first, *others]
        for position in shown:
            mark = " " if labels[position] == IGNORE_INDEX else "+"
            count = f" × {1 + len(others)}" if is_image else ""
            lines.append(f"{position:6} {ids[position]:7} {mark} {tokens[position]!r}{count}")
    return "\n".join(lines) + "\n"
