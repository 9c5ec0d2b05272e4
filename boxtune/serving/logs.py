"""One line of JSON per event on stderr, and one event per request."""

import json
import logging
import re
import sys
import time
import uuid
from datetime import UTC, datetime

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from boxtune.serving.errors import error_response
from boxtune.serving.metrics import Metrics

logger = logging.getLogger(__name__)
REQUEST_ID = "X-Request-ID"
_GOOD_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class JsonFormatter(logging.Formatter):
    """An event with the `fields` that were passed as `extra`. JSON escapes line breaks, so a client cannot forge an event."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False)


def log_json() -> None:
    """Send the events of the server, and those of uvicorn, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in ("boxtune.serving", "uvicorn"):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(logging.INFO)


class RequestLog:
    """Gives each request an id, logs and counts its response, and answers 500 if the app fails.

    A route adds facts to the event through `request.state.facts`.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]):
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, began, status = _request_id(Headers(scope=scope)), time.perf_counter(), 0
        facts = scope.setdefault("state", {}).setdefault("facts", {})

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("internal error", extra={"fields": {"id": request_id}})
            if not status:
                response = error_response(500, f"internal error; the server's log has it as request {request_id}.")
                await response(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - began
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(seconds)
            fields = {"id": request_id, "method": scope["method"], "path": scope["path"][:200], "status": status}
            logger.info("request", extra={"fields": fields | {"seconds": round(seconds, 4)} | facts})


def _request_id(headers: Headers) -> str:
    """The client's own, if it is a plain word, so that a proxy's log can be joined with this one."""
    given = headers.get(REQUEST_ID, "")
    return given if _GOOD_ID.fullmatch(given) else uuid.uuid4().hex
