"""What must be stated about a model without grounding.json: boxtune's own prompt."""

from boxtune.answers.codecs import CODECS
from boxtune.answers.conversation import SYSTEM_PROMPT, format_sentence


def stated(family: str = "qwen3_vl", max_pixels: int = 50_176) -> dict:
    """The facts by their names in Python."""
    sentence = format_sentence(CODECS[family])
    return {"family": family, "system_prompt": SYSTEM_PROMPT, "format_sentence": sentence, "max_pixels": max_pixels}


def stated_words(family: str = "qwen3_vl") -> list[str]:
    """The same as options of a command."""
    facts = stated(family).items()
    return [word for name, value in facts for word in (f"--{name.replace('_', '-')}", str(value))]
