"""The virtual tokens of a soft prompt: added tokens of the tokenizer, with which the system prompt of a checkpoint begins.

They are text like any other for the chat template, so encoding, evaluation and servers need no special case.
"""

import re

_START = re.compile(r"(?:<\|soft_prompt_\d+\|>)*")


def virtual_tokens(count: int) -> list[str]:
    return [f"<|soft_prompt_{i}|>" for i in range(count)]


def split_soft_prompt(system_prompt: str) -> tuple[list[str], str]:
    """(virtual tokens, the text behind them)."""
    start = _START.match(system_prompt)
    end = start.end() if start else 0
    return re.findall(r"<[^>]*>", system_prompt[:end]), system_prompt[end:]
