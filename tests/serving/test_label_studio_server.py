"""A real Label Studio with the API as its ML backend: boxes reach its annotators, and come back as training data.

`make test-label-studio` installs Label Studio into an environment of its own and runs this file. Elsewhere it is skipped.
"""

import json
import os

import httpx2
import pytest

from boxtune.reports.label_studio_tasks import labelling_config
from boxtune.serving.app import create_app
from boxtune.serving.image_sources import ImageSources
from boxtune.serving.limits import Limits
from boxtune.serving.service import Service
from data_prep.__main__ import main as data_prep
from tests.helpers.http_api import CLASSES, listening, shapes
from tests.helpers.label_studio import assert_offline
from tests.helpers.programs import running

LABEL_STUDIO = os.environ.get("BOXTUNE_LABEL_STUDIO")  # the command `label-studio` of its environment
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        LABEL_STUDIO is None, reason="needs Label Studio in an environment of its own: make test-label-studio"
    ),
]
TOKEN = "0123456789abcdef0123456789abcdef01234567"
ENVIRONMENT = {
    "COLLECT_ANALYTICS": "false",
    "LATEST_VERSION_CHECK": "false",
    "LABEL_STUDIO_USERNAME": "annotator@example.org",
    "LABEL_STUDIO_PASSWORD": "a long password",
    "LABEL_STUDIO_USER_TOKEN": TOKEN,
    "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
    "ML_BLOCK_LOCAL_IP": "false",  # the ML backend is on this machine
    "SSRF_PROTECTION_ENABLED": "false",
}


@pytest.fixture
def label_studio(tmp_path):
    """A client of a Label Studio that has no projects yet."""
    environment = os.environ | ENVIRONMENT | {"LABEL_STUDIO_BASE_DATA_DIR": str(tmp_path / "label_studio")}
    command = [LABEL_STUDIO, "start", "--no-browser"]
    with running(command, tmp_path / "label_studio.log", "/health", environment) as (_, address):
        headers = {"Authorization": f"Token {TOKEN}"}
        with httpx2.Client(base_url=address, headers=headers, timeout=120) as client:
            yield client


def post(client: httpx2.Client, path: str, body=None, **options):
    response = client.post(path, json=body, **options)
    assert response.is_success, response.text[:1000]
    return response.json()


def tasks_of(client: httpx2.Client, project: int) -> list[dict]:
    response = client.get("/api/tasks", params={"project": project, "fields": "all", "page_size": 100})
    return response.json()["tasks"]


def test_predictions_reach_annotators_and_come_back_as_training_data(label_studio, detector, tmp_path):
    images = {f"photo_{i}.png": image for i, image in enumerate(shapes(4))}
    (tmp_path / "images").mkdir()
    for name, image in images.items():
        image.save(tmp_path / "images" / name)

    # ---- A project with uploaded images, and the API as its ML backend
    project = post(label_studio, "/api/projects", {"title": "shapes", "label_config": labelling_config(CLASSES)})["id"]
    for name in images:
        file = {"file": (name, (tmp_path / "images" / name).read_bytes(), "image/png")}
        post(label_studio, f"/api/projects/{project}/import", files=file)
    personal_token = post(label_studio, "/api/token")["token"]
    sources = ImageSources(url=str(label_studio.base_url), api_key=personal_token)
    service = Service(detector, Limits(), max_batch=4, max_wait=0.02)
    with listening(create_app(service, "the key", sources)) as url:
        credentials = {"auth_method": "BASIC_AUTH", "basic_auth_user": "boxtune", "basic_auth_pass": "the key"}
        backend = post(label_studio, "/api/ml/", {"url": url, "project": project, "title": "boxtune"} | credentials)
        assert backend["readable_state"] == "Connected"
        action = {"id": "retrieve_tasks_predictions", "project": project}
        everything = {"selectedItems": {"all": True, "excluded": []}}
        post(label_studio, "/api/dm/actions", everything, params=action)

    # ---- Its predictions are the offline ones
    tasks = tasks_of(label_studio, project)
    assert len(tasks) == len(images)
    for task in tasks:
        [prediction] = task["predictions"]
        name = task["data"]["image"].rsplit("-", 1)[1]
        assert_offline(prediction, detector(images[name]), {label: label for label in CLASSES})
        post(label_studio, f"/api/tasks/{task['id']}/annotations/", {"result": prediction["result"]})
    assert any(task["predictions"][0]["result"] for task in tasks)

    # ---- Submitted annotations have the same boxes after data_prep
    export = label_studio.get(f"/api/projects/{project}/export", params={"exportType": "JSON"})
    (tmp_path / "export.json").write_bytes(export.content)
    words = ["--images", tmp_path / "images", "--out", tmp_path / "data", "--split-ratio", "100,0,0"]
    data_prep(["labelstudio", str(tmp_path / "export.json"), *map(str, words)])
    records = [json.loads(line) for line in (tmp_path / "data" / "train.jsonl").read_text("utf-8").splitlines()]
    assert len(records) == len(images)
    for record in records:
        offline = detector(images[os.path.basename(record["image"])])
        known = [i for i, label in enumerate(offline.labels) if label in CLASSES]
        assert record["objects"]["category"] == [offline.labels[i] for i in known]
        assert record["objects"]["bbox"] == [pytest.approx(offline.boxes_xyxy[i].tolist(), abs=0.01) for i in known]
