"""A recipe: flat YAML, overlays and command line → TRL's dataclasses and boxtune's own keys."""

import argparse
import sys
import textwrap
import typing
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path

import torch
import yaml
from trl import ModelConfig, SFTConfig, TrlParser

from boxtune.common.errors import UserError, accepting, did_you_mean
from boxtune.training.arguments import CLASSES, BoxtuneArguments
from boxtune.training.machine import has_nvidia_driver, why_no_gpu
from boxtune.training.recipe_checks import check_values

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@dataclass
class Recipe:
    """A parsed recipe.

    values: the merged flat mapping. notes: messages for the user about values changed to fit this machine and keys that have
    no effect. hub_token: kept out of `values` and `training`, because both are saved with every checkpoint.
    """

    name: str
    values: dict
    notes: list[str]
    options: BoxtuneArguments
    training: SFTConfig
    model: ModelConfig
    hub_token: str | None


class _RecipeParser(TrlParser):
    """TrlParser that raises UserError instead of printing a usage page."""

    def error(self, message: str):
        raise UserError(f"{message}. Check the recipe, its overlays and the command line.")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the paragraphs of the description, and shows the defaults that are not empty."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, "") else super()._get_help_string(action)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that rejects duplicate keys; plain YAML would silently keep the last."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"duplicate key: {', '.join(repeated)}", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


def find_recipe(name: str, folder: Path = RECIPES) -> Path:
    """The file of a recipe, given as a path or as a name in `folder`. Raises UserError that lists the available names."""
    for path in (Path(name), folder / f"{name}.yaml"):
        if path.is_file():
            return path
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    kind = "overlay" if folder.name == "overlays" else "recipe"
    raise UserError(
        f"no {kind} {name!r}.{did_you_mean(Path(name).stem, known)} Available: {', '.join(known) or 'none'}."
    )


def read_yaml(path: Path) -> dict:
    """A flat YAML mapping. Raises UserError with the line of a syntax error."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: undecodable bytes, impossible dates
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(
            f"{path} must contain `key: value` lines, got {'nothing' if values is None else type(values).__name__}."
        )
    return values


def _split_command_line(argv: list[str], purpose: str) -> tuple[str, list[str], list[str]]:
    """(recipe, overlays, remaining arguments). Prints the help, which begins with `purpose`, if there is no recipe but -h."""
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
            _print_help(known, purpose)
            sys.exit()
        raise UserError(f"no recipe given. Use --config recipes/NAME.yaml. Available: {known}.")
    return config, overlays, rest


def _print_help(recipes: str, purpose: str) -> None:
    """Print what the script does, the available recipes and overlays, and boxtune's own keys."""
    overlays = ", ".join(sorted(path.stem for path in (RECIPES / "overlays").glob("*.yaml")))
    available = f"Recipes: {recipes}.\n\nOverlays (later ones override earlier ones): {overlays}."
    keys = (
        "The keys below are boxtune's own. All fields of TRL's SFTConfig and ModelConfig are also keys; list them with "
        "--config NAME --help."
    )
    _RecipeParser(
        [BoxtuneArguments],
        usage="%(prog)s --config NAME [--overlay NAME,NAME] [--key value ...]",
        description="\n\n".join([_wrapped(purpose), _wrapped(available), _wrapped(keys)]),
        formatter_class=_HelpFormatter,
    ).print_help()


def _wrapped(text: str) -> str:
    """The text with each of its paragraphs wrapped to the width of a page."""
    paragraphs = [" ".join(part.split()) for part in text.strip().split("\n\n")]
    return "\n\n".join(textwrap.fill(part, 100, break_on_hyphens=False) for part in paragraphs)


def _check_keys(sources: dict[str, dict], rest: list[str], parser: TrlParser) -> None:
    """Raises UserError that lists every unknown key and option, and every value of the wrong shape."""
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
    """{key: the types in its dataclass annotation}. They say whether YAML may hold a list, a mapping or null there."""
    types = {}
    for cls in (BoxtuneArguments, SFTConfig, ModelConfig):
        hints = typing.get_type_hints(cls)
        for key in (f.name for f in fields(cls) if f.init):
            types[key] = {typing.get_origin(kind) or kind for kind in typing.get_args(hints[key]) or [hints[key]]}
    return types


def _shape_problem(value, types: set[type]) -> str | None:
    """Why a YAML value cannot be one of `types`, or None. Plain values are converted and checked by the parser."""
    names = {list: "a list", dict: "a mapping", type(None): "null"}
    words = value if isinstance(value, list) else [value]
    if bool not in types and types & {str, list} and any(isinstance(word, bool) for word in words):
        return f"{value!r} must be text. YAML reads an unquoted no, off, yes or on as a boolean; quote it"
    if isinstance(value, str | int | float) or type(value) in types & names.keys():
        return None
    allowed = ["a plain value", *(name for kind, name in names.items() if kind in types)]
    return f"{value!r} must be {' or '.join(allowed)}"


# {name in earlier versions of transformers and TRL: today's}. Their spelling is closer to that of other keys.
_RENAMED = {
    "torch_dtype": "dtype",
    "evaluation_strategy": "eval_strategy",
    "max_seq_length": "max_length",
    "no_cuda": "use_cpu",
    "warmup_ratio": "warmup_steps",
    "push_to_hub_token": "hub_token",
}


def _did_you_mean(word, known) -> str:
    """`word`: a key, or an option that starts with two dashes."""
    dashes = "--" if str(word).startswith("--") else ""
    renamed = _RENAMED.get(str(word).removeprefix(dashes).replace("-", "_"))
    if renamed:
        return f"; did you mean {dashes}{renamed}?"
    return did_you_mean(str(word), known, "; did")


def _without_yaml_booleans(values: dict) -> dict:
    """The values, with the word "no" for each False that YAML made of an unquoted `no`, as in `eval_strategy: no`, and with the
    word that stands for the classes in place of `candidates: true`."""
    types = _declared_types()
    words = {
        key: "no" if value is False and _has_word_no(types.get(key, ())) else value for key, value in values.items()
    }
    return words | ({"candidates": CLASSES} if values.get("candidates") is True else {})


def _has_word_no(types: Iterable[type]) -> bool:
    return any(
        issubclass(kind, Enum) and "no" in {member.value for member in kind} for kind in types if isinstance(kind, type)
    )


def _as_default(value, types: set[type]):
    """A YAML value as an argparse default, which is checked and converted only if it is text. Lists of one may omit brackets."""
    if not isinstance(value, str | int | float):
        return value
    return [str(value)] if list in types and str not in types else str(value)


# Location and source of the data. Overriding only some of these keys would prepare one dataset in the folder of another.
_DATA_KEYS = {"data_dir", "data_format", "data_source", "data_args"}


def _without_rivals(values: dict, later: Iterable[str]) -> dict:
    """The values without those that keys of a later source replace: lora_parts and lora_target_modules exclude each other."""
    rivals = set()
    if "lora_parts" in later:
        rivals |= {"lora_target_modules", "lora_vision"}
    if "lora_target_modules" in later:
        rivals |= {"lora_parts"}
    return {key: value for key, value in values.items() if key not in rivals}


def fit_to_machine(values: dict, overridden: Collection[str] = ()) -> tuple[dict, list[str]]:
    """(values that this machine can run, a note for each change). A precision given on the command line is kept."""
    values, notes = dict(values), []
    wants_bf16 = bool(values.get("bf16")) or values.get("dtype") == "bfloat16"
    wants_bf16 = wants_bf16 and not {"dtype", "bf16", "fp16"} & set(overridden)
    if not torch.cuda.is_available():
        values["use_cpu"] = not torch.backends.mps.is_available()
        if has_nvidia_driver():
            notes.append(f"training without a GPU: {why_no_gpu()}")
    elif wants_bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        values |= {"bf16": False, "fp16": True, "dtype": "float16"}
        notes.append("this GPU does not support bf16: training in fp16 with fp32 adapters instead")
    return values, notes


def _merge(sources: list[dict], overridden: Collection[str]) -> dict:
    """The values of a recipe and its overlays, where later ones override earlier ones.

    Values that conflict with `overridden` keys, which the command line sets, are left out.
    """
    values, *changes = sources
    if "data_dir" in overridden:  # use the recipe's own data there, not the data that an overlay would generate
        changes = [{key: value for key, value in change.items() if key not in _DATA_KEYS} for change in changes]
    for change in changes:
        values = _without_rivals(values, change) | change
    return _without_rivals(values, overridden)


def _notes_on_idle_keys(values: dict, options: BoxtuneArguments, model: ModelConfig) -> list[str]:
    notes = []
    if idle := [key for key in values if key.startswith("lora_") and not model.use_peft]:
        notes.append(f"use_peft: false trains all weights; these keys have no effect: {', '.join(idle)}")
    if not options.guardrails:
        of_guardrails = [key for key in values if key.startswith(("guardrail_", "stop_", "select_"))]
        if of_guardrails:
            notes.append(f"no guardrails are asked; these keys have no effect: {', '.join(of_guardrails)}")
    if idle := [key for key in values if key.startswith("prompt_tuning_") and not options.num_virtual_tokens]:
        notes.append(f"num_virtual_tokens: 0 trains no soft prompt; these keys have no effect: {', '.join(idle)}")
    if "scale_lr_for_packing" in values and not options.tokens_per_batch:
        notes.append(
            "scale_lr_for_packing: has no effect without tokens_per_batch, because a step has the same examples"
        )
    of_head = [key for key in values if key.startswith("detection_") and key != "detection_head"]
    if of_head and not options.detection_head:
        notes.append(f"detection_head: false trains no head; these keys have no effect: {', '.join(of_head)}")
    sampling = [key for key in values if key in ("grounding_every", "grounding_samples")]
    if sampling and options.grounding_mode == "teacher_forced":
        notes.append(
            f"grounding_mode: teacher_forced does not sample responses; these keys have no effect: {', '.join(sampling)}"
        )
    return notes


def load_recipe(argv: list[str], needs_gpu: bool = True, purpose: str = "") -> Recipe:
    """Read `--config FILE [--overlay FILE …] [--key value …]`. Later sources override earlier ones.

    With `needs_gpu` False, a recipe that requires a GPU can be read without one, to check its data. `purpose`: what the script
    does, for its -h. Raises UserError that lists every unknown key and unusable value.
    """
    # ---- Sources
    config, overlay_names, rest = _split_command_line(argv, purpose)
    recipe_path = find_recipe(config)
    overlay_paths = [find_recipe(name, RECIPES / "overlays") for name in overlay_names]
    sources = {str(path): _without_yaml_booleans(read_yaml(path)) for path in [recipe_path, *overlay_paths]}
    parser = _RecipeParser(
        [BoxtuneArguments, SFTConfig, ModelConfig],
        allow_abbrev=False,
        description=_wrapped(purpose),
        formatter_class=_HelpFormatter,
    )
    _check_keys(sources, rest, parser)

    # ---- Merged values
    actions = parser._option_string_actions  # a flag such as --no_gradient_checkpointing sets a key of another name
    overridden = {actions[word.partition("=")[0]].dest for word in rest if word.startswith("--")}
    name = "-".join([recipe_path.stem, *(path.stem for path in overlay_paths)])
    defaults = {
        "output_dir": f"runs/{name}",
        "data_dir": f"data/{recipe_path.stem}",
        "run_name": name,
        "disable_tqdm": False,  # transformers ties the progress bar to its log level, which the scripts lower
    }
    values = _merge(list(sources.values()), overridden)
    values |= {key: value for key, value in defaults.items() if key not in values}
    values, notes = fit_to_machine(values, overridden)

    # ---- Typed values
    types = _declared_types()
    parser.set_defaults_with_config(**{key: _as_default(value, types[key]) for key, value in values.items()})
    with accepting(f"recipe {name} has a value that cannot be used"):
        options, training, model, *stray = parser.parse_args_into_dataclasses(rest, return_remaining_strings=True)
    if words := [word for part in stray for word in part]:
        raise UserError(
            f"unexpected arguments {', '.join(map(repr, words))}: use --key value, and separate overlays with commas, not spaces."
        )
    if "per_device_eval_batch_size" not in values.keys() | overridden:  # the library's 8 may not fit where 1 was chosen
        training.per_device_eval_batch_size = training.per_device_train_batch_size
    check_values(options, training, model)

    # ---- Values saved with the run: those of the command line too, but no token
    for part in (options, training, model):
        for f in fields(part):
            if f.name in overridden:
                value = getattr(part, f.name)
                values[f.name] = value.value if isinstance(value, Enum) else value
    hub_token, training.hub_token = training.hub_token, None
    values.pop("hub_token", None)

    if needs_gpu and options.requires_gpu and not torch.cuda.is_available():
        raise UserError(
            f"recipe {name} needs a CUDA GPU and {why_no_gpu()}. To train the embedded model on generated images instead: "
            f"make train RECIPE={recipe_path.stem} OVERLAY=tiny. To use the recipe's own data, add "
            f'ARGS="--data_dir {options.data_dir}".'
        )
    notes += _notes_on_idle_keys(values, options, model)
    return Recipe(name, values, notes, options, training, model, hub_token)
