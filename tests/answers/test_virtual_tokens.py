"""The virtual tokens at the start of a system prompt."""

import pytest

from boxtune.answers.virtual_tokens import split_soft_prompt, virtual_tokens
from boxtune.data.record_checks import breaks_turns


@pytest.mark.parametrize("text", ["Find things.", "", "你好 <b>", "<|im_start|>", " <|soft_prompt_0|> in the middle"])
@pytest.mark.parametrize("count", [0, 1, 12])
def test_the_tokens_are_split_from_the_text_behind_them(text, count):
    tokens = virtual_tokens(count)
    assert len(set(tokens)) == count
    assert split_soft_prompt("".join(tokens) + text) == (tokens, text)


def test_users_cannot_write_virtual_tokens_into_a_turn():
    assert breaks_turns(f"Find {virtual_tokens(3)[2]} here.") and not breaks_turns("Find the soft_prompt_2 here.")
