"""The API as an ML backend of Label Studio: every prediction is the offline prediction of its task's image."""

import base64
import json

import pytest
from PIL import Image

from boxtune.reports.label_studio_tasks import labelling_config
from boxtune.serving.image_sources import ImageSources
from boxtune.serving.limits import Limits
from tests.helpers.http_api import CLASSES, file_of, shapes, upload
from tests.helpers.label_studio import assert_offline

CONFIG = labelling_config(CLASSES)
# What Label Studio 1.23 sends beside the fields that matter.
PROJECT = {"project": "1.1700000000", "params": {"login": None, "password": None, "context": None}}


def setup_request(config: str = CONFIG) -> dict:
    return {
        "project": "1.1700000000",
        "schema": config,
        "hostname": "http://localhost:8080",
        "access_token": "t",
        "extra_params": None,
    }


def predict_request(*addresses: str, config: str = CONFIG, field: str = "image") -> dict:
    tasks = [
        {"id": number, "data": {field: address, "note": "x"}, "annotations": [], "is_labeled": False}
        for number, address in enumerate(addresses, 1)
    ]
    return PROJECT | {"tasks": tasks, "label_config": config}


def inline(image: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(file_of(image)).decode()}"


def image_with_a_class(detector) -> tuple[Image.Image, str]:
    """An image in which the model finds one of CLASSES, and that class."""
    found = ((image, label) for image in shapes(12) for label in detector(image).labels)
    return next((image, label) for image, label in found if label in CLASSES)


def reason(response, status: int = 422) -> str:
    assert response.status_code == status
    return response.json()["error"]["message"]


def test_it_is_healthy_for_label_studio_and_for_others(client):
    response = client.get("/health")
    assert response.status_code == 200 and response.json() == {"status": "UP", "model_class": "boxtune"}


def test_setup_names_a_version_and_the_labels_that_do_not_fit(client):
    fitting = client.post("/setup", json=setup_request()).json()
    assert fitting["problems"] == [] and fitting["model_version"].startswith("tiny_qwen3_vl-")
    other = client.post("/setup", json=setup_request(labelling_config(["Circle", "cow"]))).json()
    assert other["model_version"] == fitting["model_version"]
    assert other["problems"] == [
        "labels that the checkpoint was not trained to find: cow",
        "classes without a label, whose boxes are left out: square, star",
    ]


def test_each_task_gets_the_offline_prediction_of_its_image(client, detector):
    images = shapes(6)
    offline = [detector(image) for image in images]
    assert any(len(found) for found in offline), "without boxes there is nothing to compare"
    version = client.post("/setup", json=setup_request()).json()["model_version"]
    answer = client.post("/predict", json=predict_request(*map(inline, images))).json()
    assert answer["model_version"] == version and len(answer["results"]) == 6
    for prediction, expected in zip(answer["results"], offline, strict=True):
        assert prediction["model_version"] == version
        assert_offline(prediction, expected, {name: name for name in CLASSES})
        assert {(region["original_width"], region["original_height"]) for region in prediction["result"]} <= {
            expected.size
        }


def test_regions_have_the_names_of_the_project(client, detector):
    image, kept = image_with_a_class(detector)
    config = (
        '<View><Image name="photo" value="$photo_url"/><RectangleLabels name="boxes" toName="photo">'
        f'<Label value="{kept.upper()}"/></RectangleLabels></View>'
    )
    answer = client.post("/predict", json=predict_request(inline(image), config=config, field="photo_url")).json()
    [prediction] = answer["results"]
    assert_offline(prediction, detector(image), {kept: kept.upper()})
    assert {(region["from_name"], region["to_name"]) for region in prediction["result"]} == {("boxes", "photo")}


def test_boxes_whose_label_the_project_lacks_are_left_out_and_reported(client, detector):
    image, lacking = image_with_a_class(detector)
    labels = [name for name in CLASSES if name != lacking]
    answer = client.post("/predict", json=predict_request(inline(image), config=labelling_config(labels))).json()
    offline = detector(image)
    assert_offline(answer["results"][0], offline, {name: name for name in labels})
    [problem] = [entry for entry in answer["problems"] if "left out" in entry["problem"]]
    count = sum(label not in labels for label in offline.labels)
    assert problem["task"] == 1 and problem["problem"].startswith(
        f"{count} boxes left out, whose labels the project lacks"
    )
    assert repr(lacking) in problem["problem"]
    assert 'boxtune_problems_total{kind="unknown_label"}' in client.get("/metrics").text


def test_a_task_whose_image_cannot_be_used_costs_the_others_nothing(client, detector, caplog):
    image = shapes(1)[0]
    request = predict_request(inline(image), "https://example.org/a.png", "data:image/png;base64,AAAA")
    request["tasks"].append({"id": 9, "data": {"text": "no image"}})
    with caplog.at_level("INFO", logger="boxtune.serving.logs"):
        answer = client.post("/predict", json=request).json()
    assert_offline(answer["results"][0], detector(image), {name: name for name in CLASSES})
    assert answer["results"][1:] == [[], [], []]  # Label Studio stores no prediction for these
    problems = {entry["task"]: entry["problem"] for entry in answer["problems"] if entry["task"] != 1}
    assert (
        "example.org" in problems[2] and "not an image" in problems[3] and "no image in its field image" in problems[9]
    )
    [logged] = [record.fields for record in caplog.records if record.message == "request"]
    assert logged["tasks"] == 4 and logged["problems"] == answer["problems"]


def test_if_no_task_can_be_used_the_reasons_are_the_error_and_in_the_log(client, caplog):
    with caplog.at_level("INFO", logger="boxtune.serving.logs"):
        message = reason(client.post("/predict", json=predict_request("https://example.org/a.png")))
    assert "example.org" in message and "--label-studio-url" in message
    [logged] = [record.fields for record in caplog.records if record.message == "request"]
    assert logged["error"] == message


def test_files_below_the_root_are_read_and_their_size_is_limited(start, detector, tmp_path):
    image = shapes(1)[0]
    (tmp_path / "a.png").write_bytes(file_of(image))
    (tmp_path / "large.png").write_bytes(bytes(2**20 + 1))
    client = start(sources=ImageSources(tmp_path))
    answer = client.post("/predict", json=predict_request("/data/local-files/?d=a.png", "large.png")).json()
    assert_offline(answer["results"][0], detector(image), {name: name for name in CLASSES})
    assert "exceeds the limit" in answer["problems"][-1]["problem"]


def test_images_of_one_request_give_back_their_memory_one_by_one(start, detector):
    """The image that is decoded fits beside the request; all of them together would not."""
    images = [Image.new("RGB", (400, 400), shade) for shade in ("red", "green", "blue")]
    client = start(limits=Limits(body_bytes=2**20, memory_bytes=700_000), max_batch=1)
    answer = client.post("/predict", json=predict_request(*map(inline, images)))
    assert answer.status_code == 200 and all(answer.json()["results"])
    assert "boxtune_queue_bytes 0.0" in client.get("/metrics").text
    large = Image.new("RGB", (500, 500))
    assert "fill this server's memory" in reason(client.post("/predict", json=predict_request(inline(large))), 503)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/setup", {}, "schema: Field required"),
        ("/setup", {"schema": 1}, "schema"),
        ("/setup", setup_request("<View/>"), "RectangleLabels"),
        ("/setup", setup_request(labelling_config(["cow"])), "none of its labels (cow) is a class of the checkpoint"),
        ("/predict", {"tasks": []}, "tasks"),
        ("/predict", {"tasks": [{"data": "x"}], "label_config": CONFIG}, "tasks[0]data"),
        ("/predict", predict_request("a.png") | {"label_config": None}, "label_config"),
        ("/predict", predict_request("a.png", config=labelling_config(["cow"])), "none of its labels"),
        ("/webhook", {"action": "START_TRAINING", "project": {"id": 1}}, "make train"),
    ],
)
def test_requests_that_cannot_be_used_are_refused_with_the_reason(client, path, body, message):
    assert message in reason(client.post(path, json=body))


def test_other_bodies_are_refused_as_elsewhere(client):
    for path in ("/setup", "/predict", "/webhook"):
        assert "Content-Type" in reason(client.post(path, content="{}", headers={"Content-Type": "text/plain"}), 415)
        assert "not JSON" in reason(client.post(path, content="{", headers={"Content-Type": "application/json"}), 400)
        large = json.dumps({"x": "y" * 2**20})
        assert "limit" in reason(client.post(path, content=large, headers={"Content-Type": "application/json"}), 413)


def test_events_are_accepted_and_ignored(client):
    response = client.post("/webhook", json={"action": "ANNOTATION_CREATED", "annotation": {"id": 1}})
    assert (response.status_code, response.json()) == (200, {"status": "ignored"})


def test_the_key_is_the_password_that_label_studio_sends(start):
    client = start(api_key="secret:é")
    for path, body in (("/setup", setup_request()), ("/predict", predict_request("a.png")), ("/webhook", {})):
        assert client.post(path, json=body).status_code == 401
        assert client.post(path, json=body, auth=("boxtune", "wrong")).status_code == 401
    assert client.post("/setup", json=setup_request(), auth=("boxtune", "secret:é")).status_code == 200
    assert client.post("/detect", files=upload(b"x"), auth=("", "secret:é")).status_code == 415
    for credentials in ("Basic", "Basic x", "Basic /w=="):
        assert client.post("/setup", json=setup_request(), headers={"Authorization": credentials}).status_code == 401


def test_label_studio_accepts_the_predictions(client):
    """Its own checks, if its package is installed."""
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    [prediction] = client.post("/predict", json=predict_request(inline(shapes(1)[0]))).json()["results"]
    assert prediction["result"]
    assert interface.LabelInterface(CONFIG).validate_prediction(prediction, return_errors=True) == []
