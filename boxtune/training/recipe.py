"""A recipe: flat YAML, overlays and command line → the dataclasses of TRL and the fields that they lack."""

import difflib
import sys
import typing
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path

import torch
import yaml
from trl import ModelConfig, SFTConfig, TrlParser

from boxtune.common.errors import UserError, accepting
from boxtune.training.arguments import BoxtuneArguments
from boxtune.training.recipe_checks import check_values

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@dataclass
class Recipe:
    """`values` is the merged flat mapping that was parsed; `notes` says what was changed to fit this machine. `hub_token` is
    in neither `values` nor `training`, which are saved with every checkpoint."""

    name: str
    values: dict
    notes: list[str]
    options: BoxtuneArguments
    training: SFTConfig
    model: ModelConfig
    hub_token: str | None


class _RecipeParser(TrlParser):
    """TrlParser whose complaints become one UserError instead of a usage page."""

    def error(self, message: str):
        raise UserError(f"{message}. Values come from the recipe, its overlays or the command line.")


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice; plain YAML would silently keep the last."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"key given twice: {', '.join(repeated)}", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


def find_recipe(name: str, folder: Path = RECIPES) -> Path:
    """A recipe by path, or by its bare name in `folder`. Raises UserError that lists what there is."""
    for path in (Path(name), folder / f"{name}.yaml"):
        if path.is_file():
            return path
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    close = difflib.get_close_matches(Path(name).stem, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    kind = "overlay" if folder.name == "overlays" else "recipe"
    raise UserError(f"no {kind} {name!r}.{hint} There are: {', '.join(known) or 'none'}.")


def read_yaml(path: Path) -> dict:
    """A flat YAML mapping. Raises UserError with the line where it is broken."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: bytes that are no text, impossible dates
        raise UserError(f"{path} is broken YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(
            f"{path} must hold `key: value` lines, got {'nothing' if values is None else type(values).__name__}."
        )
    return values


def _split_command_line(argv: list[str]) -> tuple[str, list[str], list[str]]:
    """(recipe, overlays, remaining arguments)."""
    config, overlays, rest = None, [], []
    arguments = iter(argv)
    for argument in arguments:
        flag, _, value = argument.partition("=")
        if flag not in {"--config", "--overlay"}:
            rest.append(argument)
            continue
        value = value or next(arguments, "")
        if not value:
            raise UserError(f"{flag} needs the name of a YAML file.")
        if flag == "--config":
            config = value
        else:
            overlays += [name for name in value.split(",") if name]
    if config is None:
        known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
        if {"-h", "--help"} & {*rest}:
            _print_help(known)
            sys.exit()
        raise UserError(f"name a recipe: --config recipes/NAME.yaml. There are: {known}.")
    return config, overlays, rest


def _print_help(recipes: str) -> None:
    """What there is to choose from, and boxtune's own keys; those of SFTConfig and ModelConfig are TRL's to explain."""
    overlays = ", ".join(sorted(path.stem for path in (RECIPES / "overlays").glob("*.yaml")))
    _RecipeParser(
        [BoxtuneArguments],
        usage="%(prog)s --config NAME [--overlay NAME,NAME] [--key value ...]",
        description=f"Recipes: {recipes}. Overlays, of which later ones win: {overlays}. Below are boxtune's own keys; all of "
        "TRL's SFTConfig and ModelConfig are keys as well (--config NAME --help lists them).",
    ).print_help()


def _check_keys(sources: dict[str, dict], rest: list[str], parser: TrlParser) -> None:
    known = _declared_types()
    problems = []
    for source, values in sources.items():
        for key, value in values.items():
            if key not in known:
                problems.append(f"{source}: unknown key {key!r}{_did_you_mean(key, known)}")
            elif problem := _shape_problem(value, known[key]):
                problems.append(f"{source}: {key}: {problem}")
    options = parser._option_string_actions
    flags = [argument.partition("=")[0] for argument in rest if argument.startswith("--")]
    problems += [f"command line: unknown option {f}{_did_you_mean(f, options)}" for f in flags if f not in options]
    if problems:
        raise UserError("unknown or malformed keys:", problems)


def _declared_types() -> dict[str, set[type]]:
    """{key: the types that its dataclass names}; list, dict and NoneType say what a recipe may write beside plain values."""
    types = {}
    for cls in (BoxtuneArguments, SFTConfig, ModelConfig):
        hints = typing.get_type_hints(cls)
        for key in (f.name for f in fields(cls) if f.init):
            types[key] = {typing.get_origin(kind) or kind for kind in typing.get_args(hints[key]) or [hints[key]]}
    return types


def _shape_problem(value, types: set[type]) -> str | None:
    """Why a value of YAML cannot be one of `types`, or None. Plain values are converted, and checked, by the parser."""
    names = {list: "a list", dict: "a mapping", type(None): "null"}
    if isinstance(value, str | int | float) or type(value) in types & names.keys():
        return None
    allowed = ["one plain value", *(name for kind, name in names.items() if kind in types)]
    return f"{value!r} must be {' or '.join(allowed)}"


def _did_you_mean(word, known) -> str:
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _as_default(value, types: set[type]):
    """argparse checks and converts a default only when it is text. A list of one may be written without brackets."""
    if not isinstance(value, str | int | float):
        return value
    return [str(value)] if list in types and str not in types else str(value)


# Where data lie, and how they are made: one without the others would make one data set in the folder of another.
_DATA_KEYS = {"data_dir", "data_format", "data_source", "data_args"}


def _without_rivals(values: dict, later: Iterable[str]) -> dict:
    """The values that a later source's keys leave in force: lora_parts and lora_target_modules replace each other."""
    rivals = set()
    if "lora_parts" in later:
        rivals |= {"lora_target_modules", "lora_vision"}
    if "lora_target_modules" in later:
        rivals |= {"lora_parts"}
    return {key: value for key, value in values.items() if key not in rivals}


def fit_to_machine(values: dict, overridden: Collection[str] = ()) -> tuple[dict, list[str]]:
    """The values this machine can run, and one sentence for every change. A precision of the command line is left alone."""
    values, notes = dict(values), []
    wants_bf16 = bool(values.get("bf16")) or values.get("dtype") == "bfloat16"
    wants_bf16 = wants_bf16 and not {"dtype", "bf16", "fp16"} & set(overridden)
    if not torch.cuda.is_available():
        values["use_cpu"] = not torch.backends.mps.is_available()
    elif wants_bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        values |= {"bf16": False, "fp16": True, "dtype": "float16"}
        notes.append("this GPU has no bf16: training with fp32 adapters under fp16 instead")
    return values, notes


def load_recipe(argv: list[str], needs_gpu: bool = True) -> Recipe:
    """Read `--config FILE [--overlay FILE …] [--key value …]`. Later sources win; every unknown key is reported.

    With `needs_gpu` False a recipe that requires a GPU may be read without one, to check its data."""
    config, overlay_names, rest = _split_command_line(argv)
    recipe_path = find_recipe(config)
    overlay_paths = [find_recipe(name, RECIPES / "overlays") for name in overlay_names]
    sources = {str(path): read_yaml(path) for path in [recipe_path, *overlay_paths]}
    parser = _RecipeParser([BoxtuneArguments, SFTConfig, ModelConfig], allow_abbrev=False)
    _check_keys(sources, rest, parser)
    # What the command line changes belongs to the record of the run as much as the YAML does.
    options = parser._option_string_actions  # a flag such as --no_gradient_checkpointing sets another key than its own
    overridden = {options[word.partition("=")[0]].dest for word in rest if word.startswith("--")}
    values, *changes = sources.values()
    if "data_dir" in overridden:  # the recipe's own data at that place, not what an overlay would draw there
        changes = [{key: value for key, value in change.items() if key not in _DATA_KEYS} for change in changes]
    for change in changes:
        values = _without_rivals(values, change) | change
    values = _without_rivals(values, overridden)
    name = "-".join([recipe_path.stem, *(path.stem for path in overlay_paths)])
    values.setdefault("output_dir", f"runs/{name}")
    values.setdefault("data_dir", f"data/{recipe_path.stem}")
    values.setdefault("run_name", name)
    values.setdefault("disable_tqdm", False)  # transformers drops the bar with its notes, which scripts silence
    values, notes = fit_to_machine(values, overridden)
    types = _declared_types()
    parser.set_defaults_with_config(**{key: _as_default(value, types[key]) for key, value in values.items()})
    with accepting(f"recipe {name} has a value that cannot be used"):
        grounding, training, model, *stray = parser.parse_args_into_dataclasses(rest, return_remaining_strings=True)
    if words := [word for part in stray for word in part]:
        raise UserError(
            f"no key stands before {', '.join(map(repr, words))}: write --key value, and commas, no spaces, between overlays."
        )
    check_values(grounding, training, model)
    for part in (grounding, training, model):
        for f in fields(part):
            if f.name in overridden:
                value = getattr(part, f.name)
                values[f.name] = value.value if isinstance(value, Enum) else value
    if idle := [key for key in values if key.startswith("lora_") and not model.use_peft]:
        notes.append(f"use_peft: false trains every weight; without effect: {', '.join(idle)}")
    sampling = [key for key in values if key in ("grounding_every", "grounding_samples")]
    if sampling and grounding.grounding_mode == "teacher_forced":
        notes.append(f"grounding_mode: teacher_forced samples no answers; without effect: {', '.join(sampling)}")
    if needs_gpu and grounding.requires_gpu and not torch.cuda.is_available():
        raise UserError(
            f"recipe {name} needs a CUDA GPU and this machine has none. On generated pictures the embedded model runs here: "
            f"make train RECIPE={recipe_path.stem} OVERLAY=tiny. On its own: add "
            f'ARGS="--data_dir {grounding.data_dir}".'
        )
    hub_token, training.hub_token = training.hub_token, None
    values.pop("hub_token", None)
    return Recipe(name, values, notes, grounding, training, model, hub_token)
