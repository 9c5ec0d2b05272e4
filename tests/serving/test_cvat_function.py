"""The function for CVAT, by the checks of CVAT's own package."""

from types import SimpleNamespace

import pytest

from tests.helpers.http_api import CLASSES, shapes

pytest.importorskip("cvat_sdk.auto_annotation", reason="cvat-sdk is not installed")


def test_shapes_are_the_offline_detections_of_the_image(detector):
    from boxtune.serving.cvat_function import CheckpointFunction

    function = CheckpointFunction(detector, CLASSES)
    names = {label.id: label.name for label in function.spec.labels}
    assert list(names.values()) == CLASSES and {label.type for label in function.spec.labels} == {"rectangle"}
    image = shapes(1)[0]
    offline = detector(image, classes=CLASSES)
    assert len(offline)
    found = function.detect(SimpleNamespace(frame_name="a.png", conf_threshold=None), image)
    assert [names[shape.label_id] for shape in found] == offline.labels
    assert [shape.points for shape in found] == offline.boxes_xyxy.tolist()
    assert [shape.score for shape in found] == pytest.approx(offline.scores.tolist())
    assert {(shape.type.value, shape.frame) for shape in found} == {("rectangle", 0)}
    strict = function.detect(SimpleNamespace(frame_name="a.png", conf_threshold=1.0), image)
    assert strict == []


def test_labels_that_were_not_announced_are_left_out_and_named(detector, capsys):
    from boxtune.serving.cvat_function import CheckpointFunction

    image = shapes(1)[0]
    offline = detector(image, classes=["square"])
    function = CheckpointFunction(detector, ["square"])
    found = function.detect(SimpleNamespace(frame_name="a.png", conf_threshold=None), image)
    left_out = [label for label in offline.labels if label != "square"]
    assert len(found) == len(offline) - len(left_out)
    message = capsys.readouterr().err
    assert all(f"{label!r} left out" in message and "a.png" in message for label in left_out)
