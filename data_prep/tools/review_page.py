"""The page of `review`: a crop of the image around each candidate."""

from pathlib import Path
from typing import Any

import numpy as np

from boxtune.common.drawing import draw_boxes, thumbnail, to_data_uri
from boxtune.common.templates import page_template
from boxtune.data.images import load_image
from boxtune.data.records import Record, image_path

_SIDE = 360  # longer side of a crop on the page, in pixels
_MIN_SIDE = 64  # shorter side of a crop in the image, so that a tiny object has surroundings
_LABEL, _SUGGESTION, _OTHER = "lime", "red", "deepskyblue"


def page_of(
    content: dict[str, Any],
    kinds: dict[str, str],
    entries: list[dict[str, Any]],
    records: list[Record],
    data_dir: Path,
) -> str:
    """The HTML of the page. `content`: the figures of review.json. `kinds`: {kind: what it means}."""
    record_of = {record["id"]: record for record in records}
    cards = [{**entry, "uri": _crop(entry, record_of[entry["id"]], data_dir)} for entry in entries]
    template = page_template(Path(__file__).with_name("review.html.jinja"))
    return template.render(**content, meanings=kinds, cards=cards, total=sum(content["kinds"].values()))


def _crop(entry: dict[str, Any], record: Record, data_dir: Path) -> str:
    """The label in question, the suggestion and other labels around them, as a data URI."""
    image = load_image(image_path(record, data_dir))
    main = [one["bbox"] for one in (entry["label"], entry["suggestion"]) if one]
    window = _window(main, image.size)
    image = thumbnail(image.crop(window), _SIDE)
    scale = image.width / (window[2] - window[0])

    objects = record["objects"]
    others = [box for j, box in enumerate(objects["bbox"]) if j != entry["position"]]
    image = draw_boxes(image, _placed(others, window, scale), [""] * len(others), _OTHER, dashed=True)
    for one, color in ((entry["label"], _LABEL), (entry["suggestion"], _SUGGESTION)):
        if one:
            image = draw_boxes(image, _placed([one["bbox"]], window, scale), [one["category"]], color)
    return to_data_uri(image)


def _window(boxes_xyxy: list[list[float]], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of an image of `size` (width, height) to show: twice the size of the boxes together, and not longer than 2:1
    unless the image's border cuts it."""
    boxes = np.array(boxes_xyxy)
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    sides = high - low
    margin = np.maximum(sides, max(_MIN_SIDE, sides.max()) - sides) / 2
    x0, y0 = np.floor(np.maximum(low - margin, 0)).astype(int).tolist()
    x1, y1 = np.ceil(np.minimum(high + margin, size)).astype(int).tolist()
    return x0, y0, x1, y1


def _placed(boxes_xyxy: list[list[float]], window: tuple[int, int, int, int], scale: float) -> list[list[float]]:
    """Boxes of the image in pixels of the crop."""
    x, y = window[:2]
    return [[(x0 - x) * scale, (y0 - y) * scale, (x1 - x) * scale, (y1 - y) * scale] for x0, y0, x1, y1 in boxes_xyxy]
