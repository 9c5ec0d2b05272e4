"""Checkpoints that another program trained: they lack grounding.json, so the user states what it would hold.

Files written by others, as of their releases of 2026. Unsloth: adapter or model with tokenizer and processor; the base is
often one that was published in 4 bits. LLaMA-Factory: the same, whose chat template may be its own. ms-swift: an adapter
without tokenizer and processor, and args.json.
"""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boxtune.answers.codecs import CODECS
from boxtune.answers.conversation import SYSTEM_PROMPT, format_sentence
from boxtune.answers.grounding import FILE_NAME
from boxtune.answers.stated import Stated
from boxtune.common.errors import UserError, reading
from boxtune.families import FAMILIES
from boxtune.families.recognise import recognise_family
from boxtune.models.config import LOCAL_PREFIXES
from boxtune.models.processors import PROCESSOR_CONFIGS

# For models that were not trained here: 1,280 image tokens.
DEFAULT_MAX_PIXELS = 1_003_520
# The arguments of a training with ms-swift.
SWIFT_ARGUMENTS = "args.json"

Facts = dict[str, str | int]


def require_stated(path: str, folder: Path, stated: Stated, command: list[str] | None) -> None:
    """Raises UserError that completes the user's command if something is missing in `stated`.

    command: the words of the user's command; without it, the message shows a call of Detector.from_pretrained.
    """
    missing = _missing(folder, stated)
    if not missing:
        return
    facts = {name: getattr(stated, name) for name in stated.given()} | missing
    call = _python_call(path, facts) if command is None else _completed(command, missing)
    raise UserError(
        f"{path} has no {FILE_NAME}, so boxtune did not train it. State how it was trained: {', '.join(missing)}. These are "
        f"guesses from its files; replace those that are wrong:\n    {call}"
    )


def named_base(adapter: Path) -> str:
    """The base that adapter_config.json names."""
    return str(_read_json(adapter / "adapter_config.json").get("base_model_name_or_path") or "")


def has_processor(folder: Path) -> bool:
    """Whether the folder holds an image processor, a tokenizer and a chat template."""
    tokenizer = folder / "tokenizer_config.json"
    if not tokenizer.is_file() or not any((folder / name).is_file() for name in PROCESSOR_CONFIGS):
        return False
    templates = ("chat_template.jinja", "chat_template.json")
    return any((folder / name).is_file() for name in templates) or "chat_template" in _read_json(tokenizer)


def unquantized_name(base: str) -> str:
    """The Hub id of the model that a quantized base was quantized from, by the names that Unsloth gives; ID if unknown."""
    name = re.sub(r"(?:-unsloth)?-bnb-4bit$", "", base)
    return "ID" if name == base else name


# ---- guesses -------------------------------------------------------------------------------------------------------------


def _missing(folder: Path, stated: Stated) -> Facts:
    """What is not stated, with a guess for each."""
    missing: Facts = {}
    is_adapter = (folder / "adapter_config.json").is_file()
    base = stated.base_model or (named_base(folder) if is_adapter else str(folder))
    if not stated.base_model and ((is_adapter and not _exists(base)) or not (is_adapter or has_processor(folder))):
        missing["base_model"] = _official_name(base)
    family = stated.family or _guess_family(folder, base)
    guesses: Facts = {
        "family": family or f"NAME (one of {', '.join(FAMILIES)})",
        "system_prompt": _swift_arguments(folder).get("system") or SYSTEM_PROMPT,
        "format_sentence": format_sentence(CODECS[family]) if family else "",
        "max_pixels": _guess_max_pixels(folder),
    }
    return missing | {name: guess for name, guess in guesses.items() if getattr(stated, name) is None}


def _exists(base: str) -> bool:
    """Whether there may be such a model: a folder, or a Hub id."""
    return Path(base).is_dir() or (base.count("/") == 1 and not base.startswith(LOCAL_PREFIXES))


def _official_name(base: str) -> str:
    """The Hub id of a model by the name of its folder elsewhere. ModelScope's cache writes three underscores for a dot."""
    name = Path(base).name.replace("___", ".")
    return f"Qwen/{name}" if name.startswith("Qwen") else "ID"


def _guess_family(folder: Path, base: str) -> str | None:
    if Path(base).is_dir():
        return recognise_family(base)
    swift = _swift_arguments(folder).get("model_type")
    if swift in FAMILIES:
        return str(swift)
    try:
        return recognise_family(base.replace("___", "."))
    except UserError:  # the name says nothing; the message lists the families
        return None


def _guess_max_pixels(folder: Path) -> int:
    """The budget of ms-swift's arguments or of the processor in the folder."""
    found = _swift_arguments(folder).get("max_pixels")
    for name in PROCESSOR_CONFIGS:
        if found is None and (folder / name).is_file():
            values = _read_json(folder / name)
            values = values.get("image_processor", values)
            found = values.get("max_pixels") or (values.get("size") or {}).get("longest_edge")
    return found if type(found) is int and found > 0 else DEFAULT_MAX_PIXELS


def _swift_arguments(folder: Path) -> dict[str, Any]:
    path = folder / SWIFT_ARGUMENTS
    return _read_json(path) if path.is_file() else {}


def _read_json(path: Path) -> dict[str, Any]:
    with reading(str(path), "Use another checkpoint of the run."):
        values = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(values, dict):
            raise ValueError(f"expected a JSON object, got {type(values).__name__}")
    return values


# ---- what the user should write ----------------------------------------------------------------------------------------------


def _completed(command: list[str], missing: Facts) -> str:
    words = [word for name, value in missing.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return shlex.join([*command, *words])


def _python_call(path: str, facts: Mapping[str, Any]) -> str:
    arguments = [repr(path), *(f"{name}={value!r}" for name, value in facts.items())]
    return f"Detector.from_pretrained({', '.join(arguments)})"
