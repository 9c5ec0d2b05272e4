"""Ask a checkpoint through OpenAI-compatible servers.

Prompt, image and limits are those of generation.py. Each image is resized here and sent as PNG, so that the server's processor
keeps its size. Setups that would silently give wrong results are refused before a whole split is processed: another model under
the checkpoint's name (served_model.py), an adapter without effect, or a prompt that is longer or shorter than in training.
"""

import base64
import io
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import groupby
from queue import SimpleQueue
from typing import Any

import numpy as np
from PIL import Image

from boxtune.answers.confidence import DEFAULT
from boxtune.answers.conversation import render_question, render_teachers
from boxtune.answers.parts import questions_of
from boxtune.answers.predictions import Prediction
from boxtune.answers.responses import Response, read_responses
from boxtune.batching.collator import DetectionCollator
from boxtune.batching.encoder import TEMPLATE_OPTIONS
from boxtune.common.errors import UserError
from boxtune.data.records import Record
from boxtune.inference.chat_reply import Reply, read_log_odds, read_reply
from boxtune.inference.server_connection import ServerConnection
from boxtune.inference.verifying import answer_tokens, require_answers

# vLLM's own limit. A digit outside the top 20 counts as impossible; its probability is below one twentieth.
TOP_LOG_PROBS = 20
# Not part of OpenAI's API; servers that do not know these fields ignore them.
SERVER_OPTIONS = {
    "skip_special_tokens": False,  # Qwen2-VL's boxes consist of special tokens
    "spaces_between_special_tokens": False,
    "chat_template_kwargs": TEMPLATE_OPTIONS,
}
# An adapter with effect changes some log-probability of a response by more than this, in nats.
NO_EFFECT = 1e-3
# If every log-probability of a response is above this, in nats, even a working adapter of few steps may hardly change it.
CERTAIN = -0.1
# Upper limit of the records that adapter and base are compared on.
RECORDS_TO_CHECK = 8


class ServerClient:
    """The checkpoint on the server at `url`. Methods may run in several threads.

    model: the checkpoint's entry in the server's list (find_model). collator: prepares prompts and images as in training.
    trust: skip the checks of the adapter's effect, and accept a server that does not report the prompt's length.
    """

    def __init__(self, url: str, model: dict[str, Any], collator: DetectionCollator, trust: bool = False):
        self.url, self.model, self.collator, self.trust = url, model, collator, trust
        self.connection = ServerConnection(url)
        self.stops = [collator.tokenizer.eos_token, collator.tokenizer.pad_token]
        self.given_up = threading.Event()
        self.examples: list[tuple[dict[str, Any], tuple[int, int]]] = []  # of the teachers, once they were read
        self.adapter_has_effect = False  # until `check_adapter` saw it

    def prepare(self, records: list[Record]) -> None:
        """Check that the server can be asked about `records`. Raises UserError if it cannot."""
        self.given_up.clear()
        if self.collator.grounding.decoding.verify:
            require_answers(self.collator.encoder)
        if self.model.get("parent") and not self.trust:
            self.check_adapter(records)

    def first_answer(self, record: Record) -> Prediction:
        """The `answer` to a record that is asked alone. Problems with the server show up here, before it gets many requests."""
        prediction = self.answer(record)
        if f"score_{DEFAULT}" not in prediction["objects"]:
            print(f"warning: {self.url} gives no log-probabilities; every score is 1", file=sys.stderr)
        return prediction

    def answer(self, record: Record) -> Prediction:
        """The prediction for one record; its `seconds` include waiting for simultaneous requests.

        Several questions about an image, or about a tile of it, are sent one after the other, so that a server with a prefix
        cache encodes it once. Raises UserError if the prompt's length on the server differs from the checkpoint's.
        """
        grounding = self.collator.grounding
        started = time.perf_counter()
        questions = questions_of(record, grounding.classes, grounding.decoding, grounding.descriptions)
        views = {question["id"]: question for question in questions}  # the whole image and its tiles
        images = dict(zip(views, self.collator.load_all(views.values()), strict=True))
        responses = []
        image_parts = {}
        for name, same_image in groupby(questions, key=lambda question: question["id"]):
            image_parts[name], size = self.image_part(images[name])
            for question in same_image:
                reply = self.ask(self.messages(question, image_parts[name]), self.model["id"])
                self._check_prompt_length(question, size, reply.prompt_tokens)
                seconds = time.perf_counter() - started
                responses.append(Response(reply.text, size, reply.tokens, reply.cut, seconds))
                started += seconds
        return read_responses(
            questions,
            responses,
            grounding,
            self.collator.encoder.prompt_opens_thought,
            verify=lambda rows: [self.log_odds(row, image_parts[row["id"]]) for row in rows],
        )

    def image_part(self, image: Image.Image) -> tuple[dict[str, Any], tuple[int, int]]:
        """(the image, resized, as a part of a message, its (height, width) then)."""
        resized = self.collator.resized(image)
        return {"type": "image_url", "image_url": {"url": _png_url(resized)}}, (resized.height, resized.width)

    def messages(self, record: Record, image_part: dict[str, Any]) -> list[dict[str, Any]]:
        """The conversation of the record's first question, with the image in it."""
        grounding = self.collator.grounding
        parts, sizes = self._examples_of(record)
        wording = grounding.system_prompt, grounding.format_sentence
        teachers = render_teachers(record, grounding.get_codec(), grounding.format_sentence, sizes)
        conversation = render_question(record, *wording, teachers)
        images = iter([*parts, image_part])
        for turn in conversation:
            turn["content"] = [next(images) if part["type"] == "image" else part for part in turn["content"]]
        return conversation

    def _examples_of(self, record: Record) -> tuple[list[dict[str, Any]], list[tuple[int, int]]]:
        """The image parts of the record's teachers, and the (height, width) of each. All records have the same teachers."""
        examples = record.get("taught_by", [])
        if len(self.examples) != len(examples):  # threads that come here at the same time do the same
            self.examples = [self.image_part(image) for image in self.collator.load_all(examples)]
        return [part for part, _ in self.examples], [size for _, size in self.examples]

    def ask(self, messages: list[dict[str, Any]], model: str) -> Reply:
        """The greedy response of the served model with the name `model`."""
        request = self._request(messages, model) | {"max_tokens": self.collator.grounding.max_new_tokens}
        return read_reply(self.connection.complete_chat(request, self.given_up), self.stops, self.url)

    def log_odds(self, question: Record, image_part: dict[str, Any]) -> float:
        """The answer to a question of the verifier, from the log-probabilities of its first token."""
        request = self._request(self.messages(question, image_part), self.model["id"]) | {"max_tokens": 1}
        tokenizer = self.collator.tokenizer
        yes, no = (tokenizer.decode([token]) for token in answer_tokens(tokenizer))
        return read_log_odds(self.connection.complete_chat(request, self.given_up), yes, no, self.url)

    def _request(self, messages: list[dict[str, Any]], model: str) -> dict[str, Any]:
        return {
            "model": model,
            "messages": messages,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": TOP_LOG_PROBS,
            # Always sent, because vLLM would take the penalty in the Hub's Qwen2.5-VL configs. vLLM applies it to the tokens of
            # prompt and response, and reports the log-probabilities before it.
            "extra_body": SERVER_OPTIONS | {"repetition_penalty": self.collator.grounding.decoding.repetition_penalty},
        }

    def _check_prompt_length(self, record: Record, size: tuple[int, int], prompt_tokens: int | None) -> None:
        """`size`: (height, width) of the sent image. `prompt_tokens`: the prompt's length on the server."""
        if prompt_tokens is None:
            if self.trust:
                return
            raise UserError(
                f"{self.url} does not report the number of prompt tokens, so the prompt cannot be checked. If pixel budget and "
                "chat template are the checkpoint's, add --trust-server."
            )
        expected = len(self.collator.encoder.encode_question(record, size, self._examples_of(record)[1]))
        if prompt_tokens == expected:
            return
        grounding = self.collator.grounding
        raise UserError(
            f"{record['id']}: the prompt has {prompt_tokens} tokens on the server, but {expected} as in training, with an image "
            f"of {size[1]} × {size[0]} pixels. Likely causes:",
            [
                f"another pixel budget: the server must not resize images of {grounding.min_pixels} to "
                f"{grounding.max_pixels} pixels (vLLM: --mm-processor-kwargs)",
                "another chat template, or a system prompt that the server adds (vLLM: --chat-template)",
                "a model or tokenizer of another family",
            ],
        )

    def check_adapter(self, records: list[Record]) -> None:
        """Compare the adapter with its base. Raises UserError if both respond identically: the adapter has no effect.

        A response whose tokens are all nearly certain is no evidence, so the next record is asked.
        """
        for record in records[:RECORDS_TO_CHECK]:
            messages = self.messages(record, self.image_part(self.collator.load(record))[0])
            tuned, base = (self.ask(messages, name) for name in (self.model["id"], self.model["parent"]))
            if not _same_responses(tuned, base):
                self.adapter_has_effect = True
                return
            if tuned.tokens is not None and tuned.tokens.log_probs.min(initial=0) < CERTAIN:
                raise UserError(
                    f"{self.url}: the responses of {self.model['id']!r} and its base {self.model['parent']!r} to {record['id']} "
                    "are identical, probabilities included: the server ignores the adapter. Serve the merged model instead "
                    "(merge_adapter.py)."
                )


def answers_of_servers(clients: Sequence[ServerClient], records: list[Record], requests: int) -> Iterator[Prediction]:
    """A prediction for every record, in the order in which the servers respond. A record is asked of the server that is free.

    requests: number of simultaneous requests to each server.
    """
    clients = clients[: len(records)]
    for client in clients:
        client.prepare(records)
    for client, record in zip(clients, records, strict=False):
        yield client.first_answer(record)
    free: SimpleQueue[ServerClient] = SimpleQueue()
    for client in list(clients) * requests:
        free.put(client)

    def ask(record: Record) -> Prediction:
        client = free.get()
        try:
            return client.answer(record)
        finally:
            free.put(client)

    pool = ThreadPoolExecutor(max(1, free.qsize()))
    try:
        for future in as_completed([pool.submit(ask, record) for record in records[len(clients) :]]):
            yield future.result()
    finally:
        for client in clients:
            client.given_up.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _png_url(image: Image.Image) -> str:
    """The image as a data URL."""
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _same_responses(tuned: Reply, base: Reply) -> bool:
    """Whether text, tokens and log-probabilities are the same. False if one of the two has no log-probabilities."""
    if tuned.text != base.text or tuned.tokens is None or base.tokens is None:
        return False
    tuned_log_probs, base_log_probs = tuned.tokens.log_probs, base.tokens.log_probs
    if len(tuned_log_probs) != len(base_log_probs):  # the same text from other tokens
        return False
    is_different = np.abs(tuned_log_probs - base_log_probs).max(initial=0) >= NO_EFFECT  # False if one is NaN
    return not is_different
