"""Suggest a recipe for a prepared dataset: values that follow from the data, each with its reason.

python -m data_prep recipe DATA --model Qwen/Qwen2.5-VL-3B-Instruct [--out recipes/NAME.yaml]
make recipe DATA=data/parts MODEL=Qwen/Qwen2.5-VL-3B-Instruct GPU_GB=24
"""

import argparse
import math
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from boxtune.answers.conversation import FORMAT_SENTENCES, SYSTEM_PROMPT
from boxtune.common.errors import UserError
from boxtune.common.files import path_argument, write_whole
from boxtune.common.templates import text_template
from boxtune.data.dataset import DatasetInfo, read_info, read_splits
from boxtune.data.questions import question
from boxtune.data.records import Record
from boxtune.families import FAMILIES
from boxtune.families.family import Family
from boxtune.families.recognise import recognise_family
from data_prep.tools.fit_gpu import LORA_R, Fit, fit_gpu, on_cpu
from data_prep.tools.object_sizes import image_tokens, keeping_budget, too_small

# Bounds on the image tokens of the suggested budget. With fewer, edges blur; with more, an example and its activations do
# not fit a 24 GB GPU.
_MIN_BUDGET_TOKENS, MAX_BUDGET_TOKENS = 512, 2560
# 224 × 224 pixels: the embedded tiny models have not seen larger images.
_TINY_BUDGET_TOKENS = 49
# min_pixels in tokens; smaller images are enlarged.
_MIN_IMAGE_TOKENS = 4
# An object in JSON takes 17 tokens of syntax, up to four digits for each of four coordinates, and its class name.
_TOKENS_PER_OBJECT = 17 + 4 * 4
_BYTES_PER_TOKEN = 3
# Chat markup around the turns, in tokens.
_MARKUP_TOKENS = 32
_EFFECTIVE_BATCH, _TARGET_STEPS = 16, 300
_MIN_EPOCHS, _MAX_EPOCHS = 3, 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", type=path_argument, help="a prepared dataset")
    parser.add_argument("--model", metavar="ID", required=True, help="a Qwen-VL model: Hub id or folder")
    parser.add_argument("--gpu-gb", metavar="GB", type=float, default=24, help="memory of the GPU (default 24)")
    parser.add_argument("--out", metavar="FILE", type=path_argument, help="the recipe (default recipes/NAME.yaml)")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")


def main(args: argparse.Namespace) -> None:
    """Write the recipe, and print what it is for and the command to check it."""
    family = FAMILIES[recognise_family(args.model)]
    info = read_info(args.data)
    out = args.out or Path("recipes") / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', args.data.resolve().name)}.yaml"
    if out.exists() and not args.overwrite:
        raise UserError(f"{out} exists. Use --overwrite to replace it, or another --out.")
    splits = read_splits(args.data)
    if not splits.get("train"):
        raise UserError(f"{args.data} has no training images; its splits: {', '.join(splits) or 'none'}.")
    is_tiny = Path(args.model).name.startswith("tiny_")
    values = suggest(splits, info, family, _TINY_BUDGET_TOKENS if is_tiny else MAX_BUDGET_TOKENS)
    check = _command("check", "check_recipe.py", out)
    effective, max_length = values["examples_per_step"], values["max_length"]
    fit = on_cpu(family, max_length) if is_tiny else fit_gpu(args.model, family, args.gpu_gb, max_length, effective)
    budget = ["--family", family.name, "--max-pixels", str(values["max_pixels"])]
    recipe = text_template(Path(__file__).with_suffix(".yaml.jinja")).render(
        values,
        show=f"python -m data_prep show {shlex.join([str(args.data), *budget])}",
        name=out.stem,
        check=check,
        train=_command("train", "train_sft.py", out),
        model=args.model,
        data=args.data,
        format=info["format"],
        on_cpu=is_tiny,
        fit=fit,
        family=family,
        lora_r=LORA_R,
        gpu_gb=f"{args.gpu_gb:g}",
        gb=lambda count: f"{count / 1e9:.1f}",
        accumulation=effective // fit.batch_size,
    )
    write_whole(out, recipe)
    print(_summary(args.model, family, fit))
    print(f"written to {out}; next: {check}")


def _summary(model: str, family: Family, fit: Fit) -> str:
    size = f"{fit.size.parameters / 1e9:.1f} billion parameters" if fit.size else "size unknown"
    memory = f", about {fit.memory.total / 1e9:.1f} GB" if fit.memory else ""
    return f"{model}: family {family.name}, {size}; LoRA in {fit.precision}, batch size {fit.batch_size}{memory}"


def _command(target: str, script: str, recipe: Path) -> str:
    """The command that runs a script on the recipe. `make` finds recipes in recipes/ by their names."""
    if recipe.parent == Path("recipes"):
        return f"make {target} RECIPE={recipe.stem}"
    return f".venv/bin/python {script} --config {shlex.quote(str(recipe))}"


def suggest(
    splits: dict[str, list[Record]], info: DatasetInfo, family: Family, max_tokens: int = MAX_BUDGET_TOKENS
) -> dict[str, Any]:
    """The values of the recipe that depend on the data, and the figures in its comments.

    `max_tokens` limits the image tokens of the budget.
    """
    classes = info["classes"]
    records = [record for members in splits.values() for record in members]
    max_pixels = suggest_max_pixels(records, family, max_tokens)
    tokens = image_tokens(records, family, max_pixels)
    most_objects = max(len(record["objects"]["bbox"]) for record in records)
    answer_tokens = _answer_tokens(most_objects, classes)
    return {
        "num_images": len(records),
        "num_train_images": len(splits["train"]),
        "objects": sum(len(record["objects"]["bbox"]) for record in records),
        "classes": classes,
        "max_pixels": max_pixels,
        "token_side": family.factor,
        "patch": family.patch_size,
        "min_pixels": _MIN_IMAGE_TOKENS * family.factor**2,
        "median_tokens": round(float(np.median(tokens))),
        "most_tokens": round(float(tokens.max())),
        "small": int(too_small(records, family, max_pixels).sum()),
        "most_objects": most_objects,
        "answer_tokens": answer_tokens,
        "max_length": _suggest_max_length(int(tokens.max()), answer_tokens, info),
        **_suggest_schedule(len(splits["train"])),
        "validation": "validation" in splits,
    }


def suggest_max_pixels(records: list[Record], family: Family, max_tokens: int) -> int:
    """The budget that keeps 99 % of the objects at least a patch thick, within bounds and not above the largest image."""
    token = family.factor**2
    largest = max(record["width"] * record["height"] for record in records)
    wanted = max(keeping_budget(records, family) or 0, _MIN_BUDGET_TOKENS * token)
    bounded = min(wanted, max_tokens * token, token * math.ceil(largest / token))
    return max(bounded, _MIN_IMAGE_TOKENS * token)


def _answer_tokens(num_objects: int, classes: list[str]) -> int:
    """An estimate of the tokens of a response with so many objects of the class with the longest name."""
    longest_name = max(len(name.encode()) for name in classes)
    return num_objects * (_TOKENS_PER_OBJECT + math.ceil(longest_name / _BYTES_PER_TOKEN))


def _suggest_max_length(most_image_tokens: int, answer_tokens: int, info: DatasetInfo) -> int:
    """An estimate of the longest example in tokens, rounded up to a multiple of 128."""
    asked = question(info["classes"], descriptions=info.get("descriptions", {}))
    prompt = asked + FORMAT_SENTENCES["json_boxes"] + SYSTEM_PROMPT  # the longer one of the box formats
    length = most_image_tokens + answer_tokens + len(prompt) // _BYTES_PER_TOKEN + _MARKUP_TOKENS
    return 128 * math.ceil(length / 128)


def _suggest_schedule(num_train_images: int) -> dict[str, int]:
    """Examples of a step and epochs for about 300 steps, with at least 8 steps per epoch if possible."""
    examples = min(_EFFECTIVE_BATCH, max(1, num_train_images // 8))
    steps_per_epoch = max(1, math.ceil(num_train_images / examples))
    epochs = min(max(round(_TARGET_STEPS / steps_per_epoch), _MIN_EPOCHS), _MAX_EPOCHS)
    return {"examples_per_step": examples, "epochs": epochs, "steps": epochs * steps_per_epoch}
