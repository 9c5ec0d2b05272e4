"""In front of an OpenAI-compatible server, the API answers as with the model in this process."""

from concurrent.futures import ThreadPoolExecutor

from starlette.testclient import TestClient

from boxtune import Detector
from boxtune.serving.app import create_app
from boxtune.serving.limits import Limits
from boxtune.serving.service import Service
from tests.helpers.http_api import assert_equal, embedded_detector, file_of, shapes, upload, wait_until_ready
from tests.helpers.serving import Behaviour, serving


def test_in_front_of_a_server_responses_are_those_of_the_model_here_and_its_failures_are_503(detector):
    images = shapes(3)
    behaviour, behind = Behaviour([{"id": "tuned"}]), embedded_detector()
    with serving(behaviour, (behind.model, behind.checkpoint.processor)) as url:
        remote = Detector.from_server(detector.checkpoint, "embedded", url, trust=True)
        with TestClient(create_app(Service(remote, Limits(), max_batch=3, max_wait=0))) as client:
            wait_until_ready(client)
            assert client.get("/info").json()["backend"] == "server"
            with ThreadPoolExecutor(3) as pool:
                responses = list(pool.map(lambda image: client.post("/detect", files=upload(file_of(image))), images))
            for response, image in zip(responses, images, strict=True):
                assert_equal(response.json(), detector(image))

            behaviour.fail.append(400)
            refused = client.post("/detect", files=upload(file_of(images[0])))
            assert refused.status_code == 503 and "Retry-After" in refused.headers
            assert url not in refused.text, "an internal address was told"
            assert client.post("/detect", files=upload(file_of(images[0]))).status_code == 200
