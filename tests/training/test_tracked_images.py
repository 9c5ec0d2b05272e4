"""Images for the trackers."""

from PIL import Image

from boxtune.training.tracked_images import _drawn


def test_boxes_are_drawn_where_they_are_on_the_smaller_image():
    objects = {"bbox": [[600, 200, 1000, 600]], "category": ["cat"], "ignore": [False]}
    record = {"id": "a", "image": "a.jpg", "width": 1280, "height": 640, "objects": objects}
    prediction = {"objects": {"bbox": [[80, 80, 240, 560]], "category": ["cat"], "score": [1.0]}}
    image = _drawn(Image.new("RGB", (1280, 640)), record, prediction)
    assert image.size == (640, 320)
    assert image.getpixel((300, 250)) == (0, 255, 0)
    assert image.getpixel((40, 250))[0] > 200
