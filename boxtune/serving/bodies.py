"""The body of a request, read within limits. That of POST /detect is an image file and what is asked about it, as a form or as
JSON."""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from boxtune.common.errors import shown
from boxtune.serving.errors import RequestError
from boxtune.serving.limits import Place
from boxtune.serving.schema import MAX_CLASSES, Asked, DetectRequest

FORM, JSON = "multipart/form-data", "application/json"
FILE = "file"

T = TypeVar("T", bound=BaseModel)


async def read_body(request: Request, place: Place, max_bytes: int, seconds: float) -> tuple[bytes, Asked]:
    """(the image file, what is asked about it). Raises RequestError if the body cannot be used."""
    content_type = _content_type(request, (FORM, JSON))
    async with _arriving(request, place, max_bytes, seconds) as limited:
        return await (_read_form(limited) if content_type == FORM else _read_json(limited))


async def read_json(model: type[T], request: Request, place: Place, max_bytes: int, seconds: float) -> T:
    """A body in JSON. Raises RequestError if it cannot be used."""
    _content_type(request, (JSON,))
    async with _arriving(request, place, max_bytes, seconds) as limited:
        return validated(model, await limited.body())


def _content_type(request: Request, accepted: Sequence[str]) -> str:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in accepted:
        raise RequestError(415, f"Content-Type must be {' or '.join(accepted)}, got {shown(content_type)}.")
    if encoding := request.headers.get("content-encoding"):
        raise RequestError(415, f"Content-Encoding {shown(encoding)} is not supported; send the body uncompressed.")
    return content_type


@asynccontextmanager
async def _arriving(request: Request, place: Place, max_bytes: int, seconds: float) -> AsyncIterator[Request]:
    """The request, whose body is limited in size and must arrive in time."""
    try:
        async with asyncio.timeout(seconds):
            yield _limited(request, place, max_bytes)
    except TimeoutError:
        raise RequestError(400, f"the body did not arrive within {seconds:g} seconds.") from None
    except ClientDisconnect:
        raise RequestError(400, "the connection ended before the body was complete.") from None


def _limited(request: Request, place: Place, max_bytes: int) -> Request:
    """The request, whose body raises RequestError as soon as it is too large."""
    too_large = RequestError(413, f"the body exceeds the limit of {max_bytes} bytes. Send a smaller image.", "image")
    stated = request.headers.get("content-length", "0")
    if not stated.isascii() or not stated.isdigit() or len(stated) > 18:
        raise RequestError(400, f"Content-Length must be a number, got {shown(stated)}.")
    if int(stated) > max_bytes:
        raise too_large
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise too_large
        place.reserve(len(message.get("body", b"")))
        return message

    return Request(request.scope, receive)


async def _read_form(request: Request) -> tuple[bytes, Asked]:
    async with request.form(max_files=1, max_fields=MAX_CLASSES + 1, max_part_size=4096) as form:
        files = [value for name, value in form.multi_items() if isinstance(value, UploadFile) and name == FILE]
        if not files:
            raise RequestError(422, f"the form has no file in a field named {FILE}.", FILE)
        fields: dict[str, list[Any]] = {}
        for name, value in form.multi_items():
            if name != FILE:
                fields.setdefault(name, []).append(value)
        if len(thresholds := fields.get("threshold", [])) > 1:
            raise RequestError(422, "threshold was given more than once.", "threshold")
        content = fields | ({"threshold": thresholds[0]} if thresholds else {})
        return await files[0].read(), validated(Asked, content)


async def _read_json(request: Request) -> tuple[bytes, Asked]:
    asked = validated(DetectRequest, await request.body())
    text = asked.image
    if text.startswith(("http:", "https:", "file:", "ftp:")):
        raise RequestError(
            422, "image is an address; this server fetches none. Send the file itself in base64.", "image"
        )
    return decode_base64(text), asked


def decode_base64(text: str) -> bytes:
    """The bytes of an image in base64, also as a data URL."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text.replace("\n", "").replace("\r", ""), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(422, f"image is not base64: {error}", "image") from None


def validated(model: type[T], content: bytes | dict[str, Any]) -> T:
    """The content, if the model allows it. Raises RequestError that names the first field that it does not."""
    try:
        return model.model_validate_json(content) if isinstance(content, bytes) else model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise RequestError(400, f"the body is not JSON: {first['msg']}") from None
        field = _path(first["loc"])
        raise RequestError(422, f"{field or 'the body'}: {first['msg']}", field) from None


def _path(location: Sequence[int | str]) -> str | None:
    """("classes", 2) → "classes[2]"; a name that no request has is shortened."""
    names = [f"[{part}]" if isinstance(part, int) else part[:80] for part in location]
    return "".join(names) or None
