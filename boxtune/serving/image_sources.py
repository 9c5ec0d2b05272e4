"""The images of Label Studio's tasks: in the task itself, in one folder, or on one host. Nothing else is ever read."""

import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPException
from json import dumps, loads
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from boxtune.common.errors import shown
from boxtune.serving.bodies import decode_base64
from boxtune.serving.errors import RequestError

LOCAL_FILES = "/data/local-files/"
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class ImageSources:
    """root: images may be files below this folder. url: images may be fetched from the host of this Label Studio, with the
    access token `api_key`. None: neither."""

    root: Path | None = None
    url: str | None = None
    api_key: str = ""

    def read(self, address: str, max_bytes: int, seconds: float) -> bytes:
        """The image file that a task names. Blocks. Raises RequestError if it cannot or may not be read."""
        if address.startswith("data:"):
            return decode_base64(address)
        try:
            parts = urlsplit(address)
            path, target = _local_path(address, parts), self._target(parts)
        except ValueError:  # brackets that do not contain an IPv6 address, a port that is no number
            raise _refused(address, "is not a valid address") from None
        if self.root and path and (file := _file_below(self.root, path)):
            return _read_file(file, max_bytes)
        if target:
            return self._fetch(target, max_bytes, seconds)
        raise _refused(address, self._allowed())

    def _target(self, parts: SplitResult) -> str | None:
        """The address to fetch, or None if it is not on Label Studio's host. It is put together from the configured host, so that
        nothing in a task can name another one."""
        if self.url is None:
            return None
        base = urlsplit(self.url)
        if parts.scheme or parts.netloc:
            if _origin(parts) != _origin(base):
                return None
            path = parts.path
        elif parts.path.startswith(("/data/", "/storage-data/", "/tasks/")):  # where Label Studio serves files
            path = base.path.rstrip("/") + parts.path
        else:
            return None
        query = f"?{parts.query}" if parts.query else ""
        return f"{base.scheme}://{base.netloc}{path}{query}"

    def _fetch(self, target: str, max_bytes: int, seconds: float) -> bytes:
        request = urllib.request.Request(target.replace(" ", "%20"), headers=self._authorization(seconds))
        data = _response(request, max_bytes + 1, seconds)
        if len(data) > max_bytes:
            raise _too_large(max_bytes)
        return data

    def _authorization(self, seconds: float) -> dict[str, str]:
        if not self.api_key:
            return {}
        if self.api_key.count(".") == 2:  # a personal access token, from which one for a few minutes is made
            token = _short_lived_token(self.url or "", self.api_key, seconds, int(time.monotonic() // 60))
            return {"Authorization": f"Bearer {token}"}
        return {"Authorization": f"Token {self.api_key}"}

    def _allowed(self) -> str:
        places = ["base64 in a data: address"]
        places += ["files below --image-root"] if self.root else []
        places += [f"addresses of {self.url}"] if self.url else []
        start = (
            "" if self.root and self.url else " Start serve.py with --image-root or --label-studio-url to allow more."
        )
        return f"cannot be read; this server reads {', '.join(places)}.{start}"


NO_SOURCES = ImageSources()  # images in the task itself only


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Label Studio may redirect to a storage, which is another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


# Without proxies: the host is the one that was named, and no other machine sees the access token.
_OPENER = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))


def _response(request: urllib.request.Request, max_bytes: int, seconds: float) -> bytes:
    """At most `max_bytes` of the response."""
    path = urlsplit(request.full_url).path
    try:
        with _OPENER.open(request, timeout=seconds) as response:
            return bytes(response.read(max_bytes))
    except urllib.error.HTTPError as error:
        remedy = {401: " Check LABEL_STUDIO_API_KEY.", 403: " Check LABEL_STUDIO_API_KEY."}.get(error.code, "")
        remedy = " Redirects are not followed." if 300 <= error.code < 400 else remedy
        raise _unreadable(f"Label Studio answered {error.code} for {shown(path)}.{remedy}") from None
    except (OSError, HTTPException, ValueError) as error:
        raise _unreadable(f"Label Studio did not send {shown(path)}: {error}") from None


@lru_cache(maxsize=1)
def _short_lived_token(url: str, api_key: str, seconds: float, minute: int) -> str:
    """`minute` makes a new one every minute; Label Studio's are valid for five."""
    request = urllib.request.Request(
        f"{url.rstrip('/')}/api/token/refresh",
        data=dumps({"refresh": api_key}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        return str(loads(_response(request, 2**16, seconds))["access"])
    except (ValueError, KeyError, TypeError):
        raise _unreadable("Label Studio sent no access token for LABEL_STUDIO_API_KEY.") from None


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)


def _local_path(address: str, parts: SplitResult) -> str | None:
    """The path of a file: an address without a host, or the file that Label Studio's own storage for local files names."""
    if parts.path.endswith(LOCAL_FILES) and (names := parse_qs(parts.query).get("d")):
        return names[0]
    return None if parts.scheme or parts.netloc else address


def _file_below(root: Path, path: str) -> Path | None:
    """The file, if it is below `root` after all links and .. are followed."""
    root = root.resolve()
    try:
        file = (root / path).resolve()
        return file if file.is_relative_to(root) and file.is_file() else None
    except (OSError, ValueError, RuntimeError):  # too long a name, a null character, a circle of links
        return None


def _read_file(file: Path, max_bytes: int) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except OSError:
        raise _unreadable("the file cannot be read.") from None
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    return data


def _refused(address: str, reason: str) -> RequestError:
    return _unreadable(f"the image {shown(address)} {reason}")


def _unreadable(message: str) -> RequestError:
    return RequestError(422, message, "tasks")


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(413, f"the image file exceeds the limit of {max_bytes} bytes.", "tasks")
