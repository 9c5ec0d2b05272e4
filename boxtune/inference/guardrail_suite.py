"""A guardrail suite: which probes run, on how many images and with which texts. The suites are recipes/guardrails/*.yaml."""

import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from boxtune.common.errors import UserError, did_you_mean
from boxtune.data.record_checks import breaks_turns, label_problem
from boxtune.data.unrelated_images import GENERATED

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "guardrails"
# What `make train` asks after training, unless the recipe says otherwise.
DEFAULT_SUITE = "small"
# The probes that a suite may name, in the order in which they run.
PROBE_NAMES = ("unrelated", "blindness", "crops", "absent", "yes_no", "untrained", "captions", "drift", "domains")


@dataclass(frozen=True)
class Suite:
    """The content of a suite's file. docs/guardrails.md describes the keys."""

    probes: list[str] = field(default_factory=lambda: list(PROBE_NAMES))
    images: int = 8
    unrelated_images: str = GENERATED
    unrelated_count: int = 10
    questions: int = 16
    crop_sizes: list[float] = field(default_factory=lambda: [0.05])
    untrained_classes: list[str] = field(default_factory=lambda: ["circle", "square", "triangle", "text", "button"])
    yes_no_question: str = "Is there a {} in the image?"
    caption_prompt: str = "请用自然语言描述一下这些图片"
    caption_tokens: int = 64
    caption_perplexity: float = 20.0
    drift_texts: list[str] = field(default_factory=list)
    seed: int = 0


def read_suite(name: str) -> Suite:
    """The suite of a YAML file, given as its path or as a name in recipes/guardrails.

    Raises UserError that lists every unknown key and every value that cannot be used.
    """
    path = find_suite(name)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: undecodable bytes
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must contain `key: value` lines, got {type(values).__name__}.")
    known = [entry.name for entry in fields(Suite)]
    problems = [
        f"unknown key {key!r}.{did_you_mean(str(key), known)}".rstrip(".") for key in values if key not in known
    ]
    suite = Suite(**{key: value for key, value in values.items() if key in known})
    if problems := [*problems, *suite_problems(suite)]:
        raise UserError(f"{path} has values that cannot be used:", problems)
    return suite


def find_suite(name: str) -> Path:
    """The file of a suite. Raises UserError that lists the available names."""
    for path in (Path(name), FOLDER / f"{name}.yaml"):
        if path.is_file():
            return path
    known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    raise UserError(
        f"no guardrail suite {name!r}.{did_you_mean(name, known)} Available: {', '.join(known)}, or a YAML file."
    )


def suite_problems(suite: Suite) -> Iterator[str]:
    """One line for each value that cannot be used."""
    wrong = [key for key, hint in typing.get_type_hints(Suite).items() if not _is_a(getattr(suite, key), hint)]
    yield from (f"{key}: {getattr(suite, key)!r} has the wrong type" for key in wrong)
    if wrong:
        return
    if not suite.probes or (unknown := [name for name in suite.probes if name not in PROBE_NAMES]):
        yield f"probes: {unknown if suite.probes else []} must be some of {', '.join(PROBE_NAMES)}"
    for key in ("images", "unrelated_count", "questions", "caption_tokens"):
        if getattr(suite, key) < 1:
            yield f"{key}: {getattr(suite, key)} must be at least 1"
    if not suite.crop_sizes or not all(0 < size <= 0.5 for size in suite.crop_sizes):
        yield f"crop_sizes: {suite.crop_sizes} must be shares of the sides above 0, at most 0.5"
    if not 1 < suite.caption_perplexity < math.inf:
        yield f"caption_perplexity: {suite.caption_perplexity} must be above 1, and finite"
    if suite.yes_no_question.count("{}") != 1:
        yield f"yes_no_question: {suite.yes_no_question!r} must contain {{}} once, in place of the class"
    if not suite.caption_prompt.strip():
        yield "caption_prompt: must not be empty"
    yield from (f"untrained_classes: {problem}" for name in suite.untrained_classes if (problem := label_problem(name)))
    for key in ("caption_prompt", "yes_no_question", "drift_texts"):
        value = getattr(suite, key)
        texts = value if isinstance(value, list) else [value]
        yield from (f"{key}: {text!r} contains a special token; remove it" for text in texts if breaks_turns(text))


def _is_a(value: object, hint: object) -> bool:
    """Whether a YAML value is of the type of a key: str, int, float, list[str] or list[float]."""
    if typing.get_origin(hint) is list:
        [item] = typing.get_args(hint)
        return isinstance(value, list) and all(_is_a(one, item) for one in value)
    return type(value) in ((int, float) if hint is float else (hint,))
