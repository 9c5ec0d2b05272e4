"""A checkpoint asked through a server that speaks OpenAI's chat protocol: vLLM, SGLang, llama.cpp or an endpoint of the hub.

The prompt, picture and limits are those of generation.py: the picture goes as a PNG that is resized here, so that the
server's processor leaves it as it is. What would be wrong in silence is refused before a split is asked: another model under
the name (`find_model`), an adapter without effect (`check_adapter`), a prompt of another length than ours (`Served.answer`).
"""

import base64
import http.client
import io
import itertools
import json
import math
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from boxtune.answers.confidence import DEFAULT, TokenScores
from boxtune.answers.conversation import render_question
from boxtune.answers.grounding import FILE_NAME as GROUNDING_FILE
from boxtune.answers.grounding import Grounding
from boxtune.answers.predictions import Prediction, make_prediction
from boxtune.answers.repetition import loop_end
from boxtune.batching.collator import DetectionCollator
from boxtune.common.errors import UserError
from boxtune.data.records import Record
from boxtune.models.checkpoint import Checkpoint, weights_identity

PAUSES = (1, 4, 16)  # seconds before what failed is tried again; loading a model behind a proxy takes so long
TIMEOUT = 600  # seconds
# vLLM's own limit. Digits that are not among them count as impossible; each has less than a twentieth of the probability.
TOP_LOG_PROBS = 20
# Log-probabilities of an adapter that works differ from its base's by more than this somewhere in an answer, in nats.
NO_EFFECT = 1e-3
# An answer without a token below this log-probability, in nats, is one that an adapter of few steps may hardly change.
CERTAIN = -0.1
# Questions asked of adapter and base, at most, until an answer tells them apart or shows that nothing does.
RECORDS_TO_CHECK = 8


class _FailedOnceError(Exception):
    """A reply that may be another one next time, or none at all."""


def _request(url: str, body: dict | None = None) -> dict:
    """One JSON reply, asked for once. OPENAI_API_KEY is sent where it is set."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY", "").strip():
        if not (key.isascii() and key.isprintable()):
            raise UserError("OPENAI_API_KEY holds characters that no key has. Set it again.")
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    try:
        with _open(urllib.request.Request(url, data, headers)) as reply:
            content = reply.read()
        if reply.status < 300:
            return json.loads(content)
    except (OSError, http.client.HTTPException) as error:
        raise _FailedOnceError(f"{url} cannot be reached: {error}") from None
    except ValueError:
        raise UserError(f"{url} does not answer in JSON. An address mostly ends in /v1.") from None
    words = " ".join(content.decode(errors="replace").split())[:500]
    message = f"{url} answered {reply.status} {reply.reason}: {words}"
    if reply.status == 429 or reply.status >= 500:
        raise _FailedOnceError(message)
    if reply.status in (401, 403, 404):
        message += ". Is it the right address, and is OPENAI_API_KEY set where it needs one?"
    raise UserError(message)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another host should not get the key, nor a question become a GET; a redirect is an error that names its target."""

    def redirect_request(self, request, file, code, message, headers, new_url):
        raise UserError(f"{request.full_url} redirects to {new_url}. Give the address that answers to --server.")


_OPENER = urllib.request.build_opener(_NoRedirect)


def _open(request: urllib.request.Request):
    """The reply, an error's too: its words may break off as any others."""
    try:
        return _OPENER.open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as reply:
        return reply


def _post(url: str, body: dict, given_up: threading.Event) -> dict:
    """A JSON reply; a busy or failing server is asked again after each of PAUSES, until nobody waits for the answer."""
    pauses = iter(PAUSES)
    while True:
        try:
            return _request(url, body)
        except _FailedOnceError as error:
            pause = next(pauses, None)
            if pause is None or given_up.wait(pause):
                raise UserError(
                    f"{error} (asked {len(PAUSES) + 1} times). The same command goes on where it stopped."
                ) from None


# ---- which model is served ---------------------------------------------------------------------------------------------


def find_model(url: str, name: str | None, ckpt: str, checkpoint: Checkpoint, trust: bool = False) -> dict:
    """The served model's row of /v1/models: {"id", and from vLLM "root", of an adapter "parent"}.

    `ckpt` is the checkpoint as the user names it, a folder or hub id. `name` may be left out where one model is served.
    Raises UserError where the server cannot be reached, serves no model of that name, or, unless `trust`, another one than
    the checkpoint or one of which it does not tell.
    """
    try:
        reply = _request(f"{url}/models")
    except _FailedOnceError as error:
        raise UserError(f"{error}. Start the server, or correct --server.") from None
    models = reply.get("data") if isinstance(reply, dict) else None
    if not models or not all(isinstance(row, dict) and isinstance(row.get("id"), str) for row in models):
        raise UserError(f"{url}/models lists no models: {str(models)[:200]}. An address mostly ends in /v1.")
    names = [row["id"] for row in models]
    if name is None and len(models) > 1:
        raise UserError(f"{url} serves several models; name one of them with --served-model:", names)
    if name is not None and name not in names:
        raise UserError(f"{url} serves no model {name!r}; --served-model may be:", names)
    model = models[0] if name is None else next(row for row in models if row["id"] == name)
    if not trust and (problem := _another_model(model, ckpt, checkpoint)):
        raise UserError(f"{url}: {problem} If you know better, add --trust-server.")
    return model


def _another_model(model: dict, ckpt: str, checkpoint: Checkpoint) -> str | None:
    """Why `model` is not, or cannot be seen to be, the checkpoint. A root is a path or hub id on the server's machine, which
    may be another one; an adapter whose folder is not here is taken at its word."""
    name, root, parent = model["id"], model.get("root"), model.get("parent")
    folder = Path(root) if root and Path(root).is_dir() else None
    if checkpoint.adapter is None:
        if root == ckpt or (folder and folder.resolve() == Path(checkpoint.path).resolve()):
            return None
        return f"{name!r} is served from {root or 'a place that the server does not tell'}, not from {ckpt}."
    if parent:
        served = folder and weights_identity(
            Checkpoint(str(folder), folder, checkpoint.grounding, checkpoint.processor)
        )
        if served is not None and served != weights_identity(checkpoint):
            return f"{name!r} is the adapter in {root}, whose weights are not those of {ckpt}."
        if adapts_vision(checkpoint.adapter):
            return (
                f"the adapter {ckpt} reaches into the vision tower, a part that vLLM leaves out unless it is started with "
                "--enable-tower-connector-lora. Serve what merge_adapter.py makes."
            )
        return None
    if folder and (folder / GROUNDING_FILE).is_file():
        if _taught(Grounding.load(folder)) == _taught(checkpoint.grounding):
            return None
        return f"{name!r} is the model in {root}, which was not merged from {ckpt}."
    return (
        f"{name!r} is no adapter but {root or 'a model of which the server tells nothing'}; the adapter {ckpt} would "
        "not take part. Start the server with --enable-lora --lora-modules NAME=DIR and give --served-model NAME, or serve "
        "what merge_adapter.py makes."
    )


def adapts_vision(adapter: Path) -> bool:
    """Whether a module of the vision tower is among those that its pattern names."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return "visual" in str(config["target_modules"])


def _taught(grounding: Grounding) -> dict:
    """What merging leaves as it was; the limit of tokens may be the caller's own."""
    return {k: v for k, v in vars(grounding).items() if k not in {"base_precision", "compute_dtype", "max_new_tokens"}}


# ---- asking ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """`cut` is "truncated", "looped" or None; `tokens` is None where the server gives no log-probabilities."""

    text: str
    tokens: TokenScores | None
    cut: str | None
    prompt_tokens: int | None


class Served:
    """The checkpoint behind `url`; `collator` says how it was taught to be asked. Methods may run in several threads."""

    def __init__(self, url: str, model: dict, collator: DetectionCollator, trust: bool = False):
        self.url, self.model, self.collator, self.trust = url, model, collator, trust
        self.stops = [collator.tokenizer.eos_token, collator.tokenizer.pad_token]
        self.given_up = threading.Event()

    def messages(self, record: Record) -> tuple[list[dict], tuple[int, int]]:
        """(the conversation with the picture in it, the picture's (height, width))."""
        picture = self.collator.resized(record)
        file = io.BytesIO()
        picture.save(file, format="PNG", compress_level=1)
        address = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        grounding = self.collator.grounding
        conversation = render_question(record, grounding.system_prompt, grounding.format_sentence)
        for turn in conversation:
            turn["content"] = [
                {"type": "image_url", "image_url": {"url": address}} if part["type"] == "image" else part
                for part in turn["content"]
            ]
        return conversation, (picture.height, picture.width)

    def ask(self, messages: list[dict], model: str) -> Reply:
        """Greedy, with special tokens in the text: Qwen2-VL's boxes are made of them."""
        body = {
            "model": model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": self.collator.grounding.max_new_tokens,
            "logprobs": True,
            "top_logprobs": TOP_LOG_PROBS,
            # Not OpenAI's own, and left unread by servers that do not know them. The hub's Qwen2.5-VL configs, which vLLM
            # follows, carry a repetition penalty.
            "repetition_penalty": 1.0,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
        }
        reply = _post(f"{self.url}/chat/completions", body, self.given_up)
        try:
            choice, prompt_tokens = reply["choices"][0], (reply.get("usage") or {}).get("prompt_tokens")
            text, ended = "" + (choice["message"]["content"] or ""), choice["finish_reason"] == "stop"
            rows = (choice.get("logprobs") or {}).get("content")
            pieces, tokens = read_tokens(rows) if rows else ([], None)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            words = json.dumps(reply)[:300]
            raise UserError(f"{self.url} does not answer as OpenAI's chat does ({error!r} in {words}).") from None
        for stop in self.stops:
            text = text.partition(stop)[0]
        cut = None if ended else "truncated"
        if tokens is not None:
            pieces = list(itertools.takewhile(lambda piece: piece not in self.stops, pieces))
            spans = place_pieces(text, pieces)
            # A local answer would have been ended there.
            if end := loop_end(pieces):
                text, spans, cut = text[: spans[end - 1, 1]], spans[:end], "looped"
            tokens = TokenScores(spans, *(values[: len(spans)] for values in tokens))
        return Reply(text, tokens, cut, prompt_tokens)

    def answer(self, record: Record) -> Prediction:
        """One line of predictions.jsonl; `seconds` is what the request took, beside others. Raises UserError where the prompt
        had another length than the checkpoint's."""
        began, grounding = time.perf_counter(), self.collator.grounding
        messages, size = self.messages(record)
        reply = self.ask(messages, self.model["id"])
        expected = len(self.collator.encode_question(record, size))
        if reply.prompt_tokens is None and not self.trust:
            raise UserError(
                f"{self.url} does not tell how many tokens a prompt has, so the prompt cannot be checked. If you know that "
                "pixel budget and chat template are the checkpoint's, add --trust-server."
            )
        if reply.prompt_tokens not in (None, expected):
            raise UserError(
                f"{record['id']}: the prompt has {reply.prompt_tokens} tokens at the server and {expected} as the checkpoint was "
                f"taught, with a picture of {size[1]} × {size[0]}. Likely causes:",
                [
                    f"another pixel budget: the server must leave pictures of {grounding.min_pixels} to "
                    f"{grounding.max_pixels} pixels as they are (vLLM: --mm-processor-kwargs)",
                    "another chat template, or a system prompt of the server's own (vLLM: --chat-template)",
                    "a model or tokenizer of another family",
                ],
            )
        seconds = time.perf_counter() - began
        return make_prediction(
            *(record, grounding.codec, size, reply.text, seconds, reply.tokens),
            calibration=grounding.calibration,
            noise_label=grounding.noise_label,
            cut=reply.cut,
        )

    def check_adapter(self, records: list[Record]) -> None:
        """Raises UserError where an adapter answers exactly as its base does, as one does whose weights found no module.

        An answer that is certain in each of its tokens tells nothing, so the next record is asked.
        """
        for record in records[:RECORDS_TO_CHECK]:
            messages, _ = self.messages(record)
            tuned, base = (self.ask(messages, name) for name in (self.model["id"], self.model["parent"]))
            if tuned.text != base.text or tuned.tokens is None or base.tokens is None:
                return
            if len(tuned.tokens.log_probs) != len(base.tokens.log_probs):  # the same text of other tokens
                return
            if np.abs(tuned.tokens.log_probs - base.tokens.log_probs).max(initial=0) >= NO_EFFECT:
                return
            if tuned.tokens.log_probs.min(initial=0) < CERTAIN:
                raise UserError(
                    f"{self.url}: {self.model['id']!r} answers {record['id']} exactly as its base {self.model['parent']!r} does, "
                    "to the last digit of its probabilities: the server ignores the adapter. Serve what merge_adapter.py makes."
                )

    def answers(self, records: list[Record], requests: int) -> Iterator[Prediction]:
        """The answer to every record's question, `requests` of them asked at once, in the order in which they come.

        The first is asked alone: whatever is wrong with the server shows there.
        """
        if not records:
            return
        self.given_up.clear()
        if self.model.get("parent") and not self.trust:
            self.check_adapter(records)
        first = self.answer(records[0])
        if f"score_{DEFAULT}" not in first["objects"]:
            print(f"warning: {self.url} gives no log-probabilities; every score is 1", file=sys.stderr)
        yield first
        pool = ThreadPoolExecutor(requests)
        try:
            for future in as_completed([pool.submit(self.answer, record) for record in records[1:]]):
                yield future.result()
        finally:
            self.given_up.set()
            pool.shutdown(wait=False, cancel_futures=True)


# ---- reading a reply ---------------------------------------------------------------------------------------------------


def read_tokens(rows: list[dict]) -> tuple[list[str], tuple[np.ndarray, np.ndarray]]:
    """(T pieces of text, ((T,) log-probabilities of the chosen tokens, (T, 10) of the digits)) from `logprobs.content`."""
    digits = np.full((len(rows), 10), -math.inf)
    for i, row in enumerate(rows):
        for other in [row, *(row.get("top_logprobs") or [])]:
            if other["token"] in set("0123456789"):
                digits[i, int(other["token"])] = other["logprob"]
    return [row["token"] for row in rows], (np.array([row["logprob"] for row in rows], dtype=float), digits)


def place_pieces(text: str, pieces: list[str]) -> np.ndarray:
    """(T, 2) where the tokens stand in the text, in characters.

    Parts of a character come as the sign for what cannot be read; a row of them stands in one place. Raises UserError where
    the pieces spell another text.
    """
    spans, end, waiting = [], 0, 0
    for piece in pieces:
        if "\ufffd" in piece:
            waiting += 1
            continue
        start = text.find(piece, end) if waiting else end
        if start < 0 or not text.startswith(piece, start):
            raise UserError(
                f"the server's log-probabilities are of the token {piece!r} where its answer goes on {text[end : end + 40]!r}. "
                "Start it without options that rewrite tokens or answers (vLLM: --return-tokens-as-token-ids, a parser)."
            )
        spans += [(end, start)] * waiting + [(start, start + len(piece))]
        end, waiting = start + len(piece), 0
    spans += [(end, len(text))] * waiting
    return np.array(spans, dtype=int).reshape(-1, 2)
