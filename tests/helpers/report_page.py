"""Small reports for the tests: records and predictions, writing the page, and reading what it shows."""

import base64
import io
import json
import re
from html import unescape
from html.parser import HTMLParser

from PIL import Image

from boxtune.answers.predictions import make_prediction
from boxtune.metrics.average_precision import curves
from boxtune.metrics.scoring import score
from boxtune.reports.report import write_report


def a_record(name, boxes, labels=None, size=(960, 480), ignore=None):
    objects = {
        "bbox": boxes,
        "category": labels or ["cat"] * len(boxes),
        "ignore": ignore or [False] * len(boxes),
    }
    return {
        "id": name, "image": f"{name}.png", "width": size[0], "height": size[1], "objects": objects, "messages": [],
    }  # fmt: skip


def answer(record, boxes, labels=None, text=None):
    """A prediction; the coordinates of `boxes` are thousandths of the image."""
    rows = [{"bbox_2d": box, "label": label} for box, label in zip(boxes, labels or ["cat"] * len(boxes), strict=True)]
    return make_prediction(record, "qwen3_vl", (320, 640), json.dumps(rows) if text is None else text, 0.25)


class Page(HTMLParser):
    """The tags with their attributes and the text outside of style sheets. Fails if tags are not nested correctly."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(html)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in {"meta", "img", "br", "input"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += f"{data} "

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def write(folder, records, predictions, classes=("cat", "dog"), **kwargs):
    path = folder / "out" / "report.html"
    metrics = score(records, predictions, list(classes), provenance={"split": "test", "versions": {"torch": "2.15"}})
    options = {"title": "a run"} | kwargs
    write_report(path, records, predictions, metrics, curves(records, predictions, list(classes)), folder, **options)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8"), metrics


def data_of(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def images_of(html):
    uris = [image["data_uri"] for image in data_of(html)["images"] if image.get("data_uri")]
    return [Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")))) for uri in uris]


def cards_of(dom):
    """[{"id", "counts", "boxes"}] of the cards in view; `boxes` are tooltips."""
    return [
        {
            "id": unescape(re.search(r"<b>(.*?)</b>", figure)[1]),
            "counts": re.findall(r"<span>(.*?)</span>", re.search(r'<div class="counts">(.*?)</div>', figure)[1]),
            "boxes": [unescape(tip) for tip in re.findall(r"<title>(.*?)</title>", figure)],
        }
        for figure in re.findall(r"<figure>(.*?)</figure>", dom.split("<template", 1)[0], re.DOTALL)
    ]


def cells_of(html):
    """All numbers that change with the minimum score: in total, per class and per error type."""
    return re.findall(r'data-(?:count|change-from|error-type)="(.*?)">(.*?)<', html.split("<template", 1)[0])


def dots_of(html):
    """{class number: (recall, precision) of its dot next to the curves}; None if the dot is hidden."""
    dots = {}
    for tag in re.findall(r"<circle [^>]*data-point[^>]*>", html):
        facts = dict(re.findall(r'([a-z-]+)="([^"]*)"', tag))
        shown = "display: none" not in facts.get("style", "")
        place = (float(facts["cx"]) / 100, 1 - float(facts["cy"]) / 100) if shown else None
        dots[int(facts["data-point"])] = place
    return dots


def kept(predictions, threshold):
    """The predictions without objects whose score is below the threshold."""
    for prediction in predictions:
        objects = prediction["objects"]
        rows = [i for i, value in enumerate(objects["score"]) if value >= threshold]
        yield prediction | {"objects": {key: [column[i] for i in rows] for key, column in objects.items()}}
