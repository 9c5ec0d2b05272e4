"""Why a request is not answered, as the JSON of every error response."""

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from boxtune.serving.schema import ErrorResponse

RETRY_SECONDS = 5


class RequestError(Exception):
    """A request that is refused. `field`: the part of the request that is wrong, such as "image"."""

    def __init__(self, status: int, message: str, field: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.field, self.headers = status, message, field, headers


def busy(message: str) -> RequestError:
    """503 that asks the client to come back."""
    return RequestError(503, message, headers={"Retry-After": str(RETRY_SECONDS)})


def error_response(
    status: int, message: str, field: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "field": field}}, status, headers)


def add_error_handlers(app: FastAPI) -> None:
    """Make all errors of the app JSON, those of the framework (such as 404) too."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestError)
        request.state.facts["error"] = error.message  # for the log: some clients show their users only the status
        return error_response(error.status, error.message, error.field, error.headers)

    async def framework_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return error_response(error.status_code, str(error.detail), headers=dict(error.headers or {}))

    app.add_exception_handler(RequestError, refused)
    app.add_exception_handler(HTTPException, framework_error)


def documented(*statuses: int) -> dict[int | str, dict[str, object]]:
    """The error responses of a route, for the API's documentation."""
    return {status: {"model": ErrorResponse} for status in statuses}
