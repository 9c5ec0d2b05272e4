"""Write a recipe for a prepared data set: the values that follow from what the data holds, each
with its reason.

python -m data_prep recipe DATA --model Qwen/Qwen2.5-VL-3B-Instruct [--out recipes/NAME.yaml]
make recipe DATA=data/parts MODEL=Qwen/Qwen2.5-VL-3B-Instruct
"""

import argparse
import json
import math
import re
import shlex
from pathlib import Path

import numpy as np

from boxtune.answers.conversation import FORMAT_SENTENCES, SYSTEM_PROMPT
from boxtune.common.errors import UserError, reading
from boxtune.common.files import path_argument, write_whole
from boxtune.common.templates import text_template
from boxtune.data.questions import question
from boxtune.data.records import Record, read_info, read_splits
from boxtune.families import FAMILIES
from boxtune.families.family import Family
from data_prep.tools.findings import image_tokens, keeping_budget, too_small

# Tokens a picture gets at least, if it has as many pixels, and at most, whatever its objects: below, edges blur; above, an
# example no longer fits a 24 GB GPU beside its activations.
LEAST_TOKENS, MOST_TOKENS = 512, 2560
TINY_TOKENS = 49  # 224 × 224 pixels: the embedded model has seen no larger picture
LEAST_AREA = 4  # tokens to which the smallest picture is enlarged
# An object in JSON: 17 tokens of syntax, up to four digits a coordinate, and a name of about a token for three letters.
TOKENS_OF_OBJECT, LETTERS_OF_TOKEN = 17 + 4 * 4, 3
EFFECTIVE_BATCH, WANTED_STEPS = 16, 300


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", type=path_argument, help="a prepared data set")
    parser.add_argument("--model", metavar="ID", required=True, help="a Qwen-VL model: hub id or folder")
    parser.add_argument("--out", metavar="FILE", type=path_argument, help="the recipe (default recipes/NAME.yaml)")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")


def main(args: argparse.Namespace) -> None:
    family_name = family_of(args.model)
    info = read_info(args.data)
    out = args.out or Path("recipes") / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', args.data.resolve().name)}.yaml"
    if out.exists() and not args.overwrite:
        raise UserError(f"{out} exists. Use --overwrite to replace it, or another --out.")
    splits = read_splits(args.data)
    if not splits.get("train"):
        raise UserError(f"{args.data} has no training pictures; its splits: {', '.join(splits) or 'none'}.")
    is_tiny = Path(args.model).name.startswith("tiny_")
    values = suggest(splits, info["classes"], FAMILIES[family_name], TINY_TOKENS if is_tiny else MOST_TOKENS)
    # `make` looks for recipes by their names.
    is_named = out.parent == Path("recipes")
    check, train = (
        f"make {target} RECIPE={out.stem}"
        if is_named
        else f".venv/bin/python {script} --config {shlex.quote(str(out))}"
        for target, script in (("check", "check_recipe.py"), ("train", "train_sft.py"))
    )
    page = text_template(Path(__file__).with_suffix(".yaml.jinja")).render(
        values,
        name=out.stem,
        check=check,
        train=train,
        model=args.model,
        data=args.data,
        format=info["format"],
        on_cpu=is_tiny,
    )
    write_whole(out, page)
    print(f"written to {out}; next: {check}")


def family_of(model: str) -> str:
    """A model's family, by its config where it is a folder, else by its name. Raises UserError where neither tells."""
    config = Path(model) / "config.json"
    if config.is_file():
        with reading(str(config), "Get the model again."):
            values = json.loads(config.read_text(encoding="utf-8"))
        spelled = values.get("model_type") if isinstance(values, dict) else None
        if spelled in FAMILIES:
            return spelled
        raise UserError(f"{config}: model_type {spelled!r} is not supported; supported: {', '.join(FAMILIES)}.")
    found = [name for name, family in FAMILIES.items() if re.search(family.hub_name, model, re.IGNORECASE)]
    if len(found) != 1:
        raise UserError(
            f"--model {model}: its name tells none of {', '.join(FAMILIES)}, and it is no folder with a config."
        )
    return found[0]


def suggest(
    splits: dict[str, list[Record]], classes: list[str], family: Family, most_tokens: int = MOST_TOKENS
) -> dict:
    """The values of the recipe that depend on the data, and the facts that their comments tell."""
    records = [record for members in splits.values() for record in members]
    train = splits["train"]
    objects = sum(len(record["objects"]["bbox"]) for record in records)
    max_pixels = budget(records, family, most_tokens)
    tokens = image_tokens(records, family, max_pixels)
    most_objects = max(len(record["objects"]["bbox"]) for record in records)
    letters = max(len(name.encode()) for name in classes)
    answer = most_objects * (TOKENS_OF_OBJECT + math.ceil(letters / LETTERS_OF_TOKEN))
    asked = question(classes) + FORMAT_SENTENCES["json"] + SYSTEM_PROMPT
    length = int(tokens.max()) + answer + len(asked) // LETTERS_OF_TOKEN + 32
    accumulation = min(EFFECTIVE_BATCH, max(1, len(train) // 8))
    steps_of_epoch = max(1, math.ceil(len(train) / accumulation))
    epochs = min(max(round(WANTED_STEPS / steps_of_epoch), 3), 30)
    return {
        "pictures": len(records),
        "train_pictures": len(train),
        "objects": objects,
        "classes": classes,
        "max_pixels": max_pixels,
        "token_side": family.factor,
        "patch": family.patch_size,
        "min_pixels": LEAST_AREA * family.factor**2,
        "median_tokens": round(float(np.median(tokens))),
        "most_tokens": round(float(tokens.max())),
        "small": int(too_small(records, family, max_pixels).sum()),
        "most_objects": most_objects,
        "answer_tokens": answer,
        "max_length": 128 * math.ceil(length / 128),
        "accumulation": accumulation,
        "epochs": epochs,
        "steps": epochs * steps_of_epoch,
        "validation": "validation" in splits,
    }


def budget(records: list[Record], family: Family, most_tokens: int) -> int:
    """max_pixels: what keeps 99 % of the objects a patch thick, within bounds, and no more than the largest picture has."""
    token = family.factor**2
    largest = max(record["width"] * record["height"] for record in records)
    wanted = max(keeping_budget(records, family) or 0, LEAST_TOKENS * token)
    return max(min(wanted, most_tokens * token, token * math.ceil(largest / token)), LEAST_AREA * token)
