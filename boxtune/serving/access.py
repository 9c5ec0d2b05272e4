"""The API key that requests must carry, if the server has one."""

import base64
import binascii
import hmac
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Header
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from boxtune.serving.errors import RequestError

_BEARER = HTTPBearer(auto_error=False, description="the key in BOXTUNE_API_KEY, if the server has one")
_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, description="the same key, in a header of its own")


def require_key(key: str) -> Callable[..., None]:
    """A dependency of routes that refuses requests without this key; an empty key allows all requests."""

    def check(
        bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
        header: Annotated[str | None, Depends(_HEADER)],
        authorization: Annotated[str, Header(include_in_schema=False)] = "",
    ) -> None:
        given = (bearer.credentials if bearer else header) or _basic_password(authorization)
        # Compared in constant time: the time of an ordinary comparison tells how many characters are right.
        if key and not hmac.compare_digest(given.encode(), key.encode()):
            raise RequestError(
                401,
                "this server needs its API key: send it as Authorization: Bearer KEY, or as X-API-Key.",
                headers={"WWW-Authenticate": "Bearer"},
            )

    return check


def _basic_password(authorization: str) -> str:
    """The password of basic authentication, the only kind that Label Studio offers; the user's name does not matter."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""
