"""One embedded model, and one API with small limits, for all tests of this folder."""

import pytest
from starlette.testclient import TestClient

from boxtune.serving.app import create_app
from boxtune.serving.image_sources import ImageSources
from boxtune.serving.limits import Limits
from boxtune.serving.service import Service
from tests.helpers.http_api import embedded_detector, wait_until_ready

LIMITS = Limits(body_bytes=2**20, image_pixels=4_000_000)


@pytest.fixture(scope="session")
def detector():
    return embedded_detector()


@pytest.fixture(scope="session")
def client(detector):
    with TestClient(create_app(Service(detector, LIMITS, max_batch=4, max_wait=0.02))) as client:
        wait_until_ready(client)
        yield client


@pytest.fixture
def start(detector):
    """Starts another API with the same model; arguments are those of Service and create_app."""
    clients = []

    def started(limits=LIMITS, max_batch=4, max_wait=0.02, workers=1, api_key="", sources=ImageSources()):  # noqa: B008
        service = Service(detector, limits, max_batch, max_wait, workers)
        clients.append(TestClient(create_app(service, api_key, sources)))
        return clients[-1].__enter__()

    yield started
    for client in clients:
        client.__exit__()
