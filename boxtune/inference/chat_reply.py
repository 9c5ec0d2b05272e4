"""Read a chat completion: the text, the log-probabilities of its tokens, and whether it is complete."""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from boxtune.answers.confidence import TokenScores
from boxtune.answers.repetition import loop_end
from boxtune.common.errors import UserError

DIGITS = "0123456789"
REPLACEMENT = "\ufffd"  # how a token decodes that is only part of a character


@dataclass(frozen=True)
class Reply:
    """A response of the model.

    tokens: None if the server gives no log-probabilities. cut: "truncated" at the token limit, "looped" if the text repeats
    itself, otherwise None. prompt_tokens: length of the prompt; None if the server does not report it.
    """

    text: str
    tokens: TokenScores | None
    cut: str | None
    prompt_tokens: int | None


def read_reply(reply: Any, stops: Sequence[str], url: str) -> Reply:
    """The response in the JSON of a chat completion. `stops`: tokens that end a response; `url`: the server, for messages.

    Raises UserError if the JSON does not have the format of OpenAI's chat completions.
    """
    try:
        choice = reply["choices"][0]
        text = choice["message"]["content"] or ""
        if not isinstance(text, str):
            raise TypeError("the content is not a string")
        is_complete = choice["finish_reason"] == "stop"
        prompt_tokens = (reply.get("usage") or {}).get("prompt_tokens")
        rows = (choice.get("logprobs") or {}).get("content")
        pieces, log_probs, digit_log_probs = read_log_probs(rows or [])
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise _other_format(reply, error, url) from None
    for stop in stops:
        text = text.partition(stop)[0]
    cut = None if is_complete else "truncated"
    if not rows:
        return Reply(text, None, cut, prompt_tokens)
    pieces = list(itertools.takewhile(lambda piece: piece not in stops, pieces))
    spans = place_pieces(text, pieces)
    if end := loop_end(pieces):  # generation on this machine would have stopped there
        text, spans, cut = text[: spans[end - 1, 1]], spans[:end], "looped"
    tokens = TokenScores(spans, log_probs[: len(spans)], digit_log_probs[: len(spans)])
    return Reply(text, tokens, cut, prompt_tokens)


def _other_format(reply: Any, error: Exception, url: str) -> UserError:
    return UserError(
        f"{url} does not respond in the format of OpenAI's chat API ({error!r} in {json.dumps(reply)[:300]})."
    )


def read_log_odds(reply: Any, yes: str, no: str, url: str) -> float:
    """The log-odds of the first token being `yes` rather than `no`. `url`: the server, for messages.

    If the server lists only one of the two, the other counts as the least probable token of the list. That is more than it has:
    the log-odds are then nearer to 0 than the model's. Raises UserError if the server lists neither.
    """
    try:
        rows = (reply["choices"][0].get("logprobs") or {}).get("content") or [{}]
        listed = {row["token"]: float(row["logprob"]) for row in rows[0].get("top_logprobs") or []}
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise _other_format(reply, error, url) from None
    if not listed:
        raise UserError(
            f'verify: {url} gives no log-probabilities, which the verifier needs. Turn it off: "verify": false in grounding.json.'
        )
    if yes not in listed and no not in listed:
        raise UserError(
            f"verify: neither {yes!r} nor {no!r} is among the {len(listed)} most probable tokens that {url} lists for an answer. "
            'Evaluate without --server, or turn the verifier off: "verify": false in grounding.json.'
        )
    least = min(listed.values())
    return listed.get(yes, least) - listed.get(no, least)


def read_log_probs(rows: list[dict[str, Any]]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(the T tokens as text, (T,) their log-probabilities, (T, 10) those of the digits 0 to 9 in their place).

    rows: `logprobs.content` of a chat completion. A digit that the server does not list counts as impossible.
    """
    digit_log_probs = np.full((len(rows), 10), -math.inf)
    for i, row in enumerate(rows):
        for candidate in [row, *(row.get("top_logprobs") or [])]:
            if len(candidate["token"]) == 1 and candidate["token"] in DIGITS:
                digit_log_probs[i, int(candidate["token"])] = candidate["logprob"]
    log_probs = np.array([row["logprob"] for row in rows], dtype=float)
    return [row["token"] for row in rows], log_probs, digit_log_probs


def place_pieces(text: str, pieces: list[str]) -> np.ndarray:
    """(T, 2): the start and end of each of T tokens in the text, in characters.

    Tokens that are parts of one character come as replacement characters; all of them get the place of that character.
    Raises UserError if the tokens do not spell the text.
    """
    spans: list[tuple[int, int]] = []
    end, partial = 0, 0  # where the last placed token ends; how many partial characters follow it
    for piece in pieces:
        if REPLACEMENT in piece:
            partial += 1
            continue
        start = text.find(piece, end) if partial else end
        if start < 0 or not text.startswith(piece, start):
            raise UserError(
                f"the server's log-probabilities are for the token {piece!r}, but its text continues with "
                f"{text[end : end + 40]!r}. Start the server without options that rewrite tokens or responses (vLLM: "
                "--return-tokens-as-token-ids, a parser)."
            )
        spans += [(end, start)] * partial + [(start, start + len(piece))]
        end, partial = start + len(piece), 0
    spans += [(end, len(text))] * partial
    return np.array(spans, dtype=int).reshape(-1, 2)
