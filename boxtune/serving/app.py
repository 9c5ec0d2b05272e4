"""The HTTP API (docs/deploy.md)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

import boxtune
from boxtune.serving import label_studio, schema
from boxtune.serving.access import require_key
from boxtune.serving.errors import RETRY_SECONDS, RequestError, add_error_handlers, documented
from boxtune.serving.image_sources import NO_SOURCES, ImageSources
from boxtune.serving.logs import RequestLog
from boxtune.serving.page import page_headers
from boxtune.serving.service import Service

PATHS = frozenset(
    {"/", "/detect", "/health", "/ready", "/info", "/metrics", "/docs", "/openapi.json", *label_studio.PATHS}
)
PAGE = Path(__file__).with_name("page.html")


def create_app(service: Service, api_key: str = "", sources: ImageSources = NO_SOURCES) -> FastAPI:
    """`api_key`: what requests must carry, except for the page and for the questions whether the server works. `sources`: the
    images that tasks of Label Studio may name."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.batcher.running():
            first = asyncio.create_task(service.warm_up())
            yield
            first.cancel()

    app = FastAPI(
        title="boxtune",
        version=boxtune.__version__,
        description="Objects in images. The model runs in batches; POST /detect never fetches an image from an address.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.add_middleware(RequestLog, metrics=service.metrics, paths=PATHS)
    add_error_handlers(app)
    keyed = {"dependencies": [Depends(require_key(api_key))]}
    _add_api(app, service, keyed)
    app.include_router(label_studio.make_router(service, sources), **keyed)
    _add_page(app)
    return app


def _add_api(app: FastAPI, service: Service, keyed: dict[str, Any]) -> None:
    @app.post(
        "/detect",
        **keyed,
        response_model=schema.DetectResponse,
        responses=documented(400, 401, 413, 415, 422, 503),
        openapi_extra=schema.detect_bodies(),
    )
    async def detect(request: Request, response: Response) -> dict[str, Any]:
        """Find objects in one image. The header X-Problems lists what was wrong with the model's answer, such as truncated."""
        found, problems = await service.detect(request)
        if problems:
            response.headers["X-Problems"] = ", ".join(dict.fromkeys(problems))  # each kind once
        return found

    @app.get("/info", **keyed, response_model=schema.InfoResponse, responses=documented(401))
    async def info() -> dict[str, Any]:
        """The checkpoint, its classes and the limits of a request."""
        return service.info()

    @app.get("/metrics", **keyed, response_class=Response, responses=documented(401))
    async def metrics() -> Response:
        """Counters in the format of Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/health", response_model=schema.Health)
    async def health() -> dict[str, str]:
        """Whether the process responds."""
        return {"status": "UP", "model_class": "boxtune"}

    @app.get("/ready", response_model=schema.Status, responses=documented(503))
    async def ready() -> dict[str, str]:
        """Whether the model has answered once."""
        if not service.is_ready:
            raise RequestError(503, "the model has not answered yet.", headers={"Retry-After": str(RETRY_SECONDS)})
        return {"status": "ready"}


def _add_page(app: FastAPI) -> None:
    page = PAGE.read_text(encoding="utf-8")
    headers = page_headers(page)

    @app.get("/", include_in_schema=False)
    async def show_page() -> Response:
        return Response(page, headers=headers, media_type="text/html")
