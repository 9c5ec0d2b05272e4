"""Requests to an OpenAI-compatible server, such as vLLM, SGLang, llama.cpp or an endpoint of the Hub, with plain error messages.

The `openai` package provides transport, authentication and error types: it is the client that users of these servers know, it
is released often, and it adds only one small package (jiter) to those that transformers and wandb need anyway. Retries are our
own, because the package's pauses cannot be interrupted, and a command that fails should not wait for them before it ends.
"""

import functools
import json
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from openai import APIConnectionError, APIStatusError, DefaultHttpxClient, Omit, OpenAI, omit

from boxtune.common.errors import UserError

# Seconds before each retry. Together they are about as long as a proxy takes to start a model.
PAUSES: tuple[float, ...] = (1, 4, 16)
TIMEOUT = 600  # seconds
SHOWN_CHARACTERS = 500  # of an error response, in a message


class _TemporaryError(Exception):
    """A failure that a retry may resolve: no connection, an incomplete response, a busy or failing server."""


class ServerConnection:
    """The server at `url`, the address below which /models and /chat/completions are. Methods may run in several threads.

    The API key is taken from OPENAI_API_KEY; if that is not set, requests carry no key. Redirects are errors, so that neither
    the key nor an image goes to another host. Raises UserError if the key cannot be sent.
    """

    def __init__(self, url: str):
        self.url = url
        key = _api_key()
        self._headers: Mapping[str, str | Omit] = {} if key else {"Authorization": omit}
        self._openai = _openai_client(url, key or "none")  # the package requires a key

    def list_models(self) -> Any:
        """The JSON of /models, requested once. Raises UserError if the request fails."""
        try:
            return self._send(lambda: self._openai.models.with_raw_response.list(extra_headers=self._headers))
        except _TemporaryError as error:
            raise UserError(f"{error}. Start the server, or correct its address.") from None

    def complete_chat(self, request: Mapping[str, Any], given_up: threading.Event) -> Any:
        """The JSON of a chat completion. `request`: arguments of openai's `chat.completions.create`.

        Temporary failures are retried after each of PAUSES, until `given_up` is set. Raises UserError if the request fails.
        """
        chat = self._openai.chat.completions.with_raw_response
        attempts = 0
        while True:
            try:
                return self._send(lambda: chat.create(**request, extra_headers=self._headers))
            except _TemporaryError as error:
                if attempts == len(PAUSES) or given_up.wait(PAUSES[attempts]):
                    raise UserError(
                        f"{error} (attempts: {attempts + 1}). Run the same command again to continue where it stopped."
                    ) from None
                attempts += 1

    def _send(self, request: Callable[[], Any]) -> Any:
        """The JSON of one response. Raises _TemporaryError if a retry may succeed, otherwise UserError.

        The response is read as plain JSON: building the package's typed objects takes eight times as long for a response with
        20 log-probabilities per token.
        """
        try:
            response = request()
        except APIStatusError as error:
            raise _status_error(error) from None
        except APIConnectionError as error:
            reason = str(error.__cause__ or "") or str(error)
            raise _TemporaryError(f"{error.request.url} cannot be reached: {reason}") from None
        try:
            return json.loads(response.text)
        except ValueError:
            raise UserError(f"{response.url} does not respond with JSON. Most addresses end in /v1.") from None


@functools.lru_cache(maxsize=8)
def _openai_client(url: str, key: str) -> OpenAI:
    """One client per server, shared by all connections to it: creating one loads the system's certificates (75 ms)."""
    http_client = DefaultHttpxClient(follow_redirects=False)
    return OpenAI(base_url=url, api_key=key, timeout=TIMEOUT, max_retries=0, http_client=http_client)


def _api_key() -> str:
    """The content of OPENAI_API_KEY; empty if it is not set. Raises UserError if an HTTP header cannot hold it."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError("OPENAI_API_KEY contains characters that cannot be part of a key. Set it again.")
    return key


def _status_error(error: APIStatusError) -> UserError | _TemporaryError:
    """The error for a response whose status is not a success."""
    response = error.response
    if response.is_redirect:
        target = response.url.join(response.headers.get("location", ""))
        return UserError(f"{response.url} redirects to {target}. Use the address that the server itself has.")
    content = " ".join(response.text.split())[:SHOWN_CHARACTERS]
    message = f"{response.url} answered {response.status_code} {response.reason_phrase}: {content}"
    if response.status_code == 429 or response.status_code >= 500:
        return _TemporaryError(message)
    if response.status_code in (401, 403, 404):
        message += ". Check the address, and set OPENAI_API_KEY if the server requires a key."
    return UserError(message)
