"""report.html and the pictures drawn on: one file that needs no network, and nothing a label says becomes markup."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from boxtune.average_precision import curves
from boxtune.drawing import draw_boxes, draw_points, thumbnail, to_data_uri
from boxtune.predictions import make_prediction
from boxtune.report import write_report
from boxtune.scoring import score

ATTACK = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


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
    """A prediction in thousandths of the picture."""
    rows = [{"bbox_2d": box, "label": label} for box, label in zip(boxes, labels or ["cat"] * len(boxes), strict=True)]
    return make_prediction(record, "qwen3_vl", (320, 640), json.dumps(rows) if text is None else text, 0.25)


class Page(HTMLParser):
    """Tags with their attributes, and the text outside style, of a page that must be well nested."""

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


@pytest.fixture
def folder(tmp_path):
    for name in ("good", "bad", "empty"):
        Image.new("RGB", (960, 480), "white").save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.fixture
def three():
    """(records, predictions): one perfect, one with three errors, one empty and right."""
    records = [
        a_record("good", [[96, 48, 192, 96]]),
        a_record("bad", [[96, 48, 192, 96], [480, 240, 960, 480]], ["cat", "dog"]),
        a_record("empty", []),
    ]
    boxes = [[[100, 100, 200, 200]], [[100, 100, 200, 200], [700, 100, 800, 200], [300, 300, 400, 400]], []]
    predictions = [answer(record, rows) for record, rows in zip(records, boxes, strict=True)]
    return records, predictions


def test_the_page_stands_alone(folder, three):
    html, _ = write(folder, *three)
    page = Page(html)
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("a")
    sources = [attributes["src"] for attributes in page.all("img")]
    assert len(sources) == 3
    for source in sources:
        picture = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))))
        assert picture.size == (480, 240)
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'")
    assert "prefers-color-scheme: dark" in html
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))


def test_the_page_shows_the_numbers_of_the_metrics(folder, three):
    html, metrics = write(folder, *three)
    text = " ".join(Page(html).text.split())
    matching = metrics["matching"]
    assert (matching["tp"], matching["fp"], matching["fn"]) == (2, 2, 1)
    assert f"{metrics['AP']:.3f} AP" in text
    assert "precision 0.500" in text
    assert "true positives 2 false positives 2 false negatives 1" in text
    assert "3 images, 3 truth boxes" in text
    assert "split test" in text
    assert "versions.torch 2.15" in text
    assert "All scores are equal" in text


def test_worst_images_come_first_up_to_the_limit(folder, three):
    html, _ = write(folder, *three)
    captions = re.findall(r"<figcaption>\s*<b>(.*?)</b>", html)
    assert captions == ["bad", "good", "empty"]
    html, _ = write(folder, *three, limit=1)
    assert re.findall(r"<figcaption>\s*<b>(.*?)</b>", html) == ["bad"]
    assert "The 1 images with most errors, of 3." in html


def test_boxes_are_drawn_where_they_are_in_the_colour_of_what_they_are(folder, three):
    html, _ = write(folder, *three, limit=1)
    shapes = re.findall(
        r'<g class="(\w+)"><title>(.*?)</title><rect class="shape" x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)"/>',
        html,
    )
    # The drawing is 480 wide for a picture of 960, so half the pixels of the original.
    assert shapes == [
        ("truth", "cat: truth", "48.0", "24.0", "48.0", "24.0"),
        ("missed", "dog: missed truth", "240.0", "120.0", "240.0", "120.0"),
        ("hit", "cat: true positive, IoU 1.00, score 1.00", "48.0", "24.0", "48.0", "24.0"),
        ("false", "cat: false positive, score 1.00", "336.0", "24.0", "48.0", "24.0"),
        ("false", "cat: false positive, score 1.00", "144.0", "72.0", "48.0", "24.0"),
    ]
    assert 'viewBox="0 0 480.0 240.0"' in html
    assert "aspect-ratio: 480.0 / 240.0" in html


def test_ignored_truth_excused_answers_and_duplicates_are_named(folder):
    record = a_record("good", [[0, 0, 480, 240], [480, 240, 960, 480]], ignore=[True, False])
    boxes = [[100, 100, 200, 200], [500, 500, 1000, 1000], [500, 500, 1000, 990]]
    html, _ = write(folder, [record], [answer(record, boxes)])
    assert "cat: ignored truth" in html
    assert "cat: not counted, inside ignored truth" in html
    assert "cat: false positive, duplicate" in html
    assert "<span>1 duplicate</span><span>1 not counted</span>" in html


def test_points_are_drawn_as_dots(folder):
    record = a_record("good", [[96, 48, 192, 96]])
    text = "<click>150,150</click> cat\n<click>900,500</click> cat"
    prediction = make_prediction(record, "qwen3_vl_click", (320, 640), text, 0.1)
    html, _ = write(folder, [record], [prediction])
    dots = re.findall(r'<g class="(\w+)"><title>[^<]*</title><circle class="dot" cx="(.*?)" cy="(.*?)"', html)
    assert dots == [("hit", "72.0", "36.0"), ("false", "432.0", "120.0")]
    assert "Points have no curve." in html


def test_nothing_that_a_label_id_or_answer_says_becomes_markup(folder):
    record = a_record("good", [[96, 48, 192, 96]], [ATTACK]) | {"id": ATTACK, "image": ATTACK}
    prediction = answer(record, [[1, 1, 500, 500]], [ATTACK]) | {"problems": [ATTACK]}
    html, metrics = write(folder, [record], [prediction], classes=[ATTACK], title=ATTACK)
    page = Page(html)
    assert not page.all("script")
    assert not page.all("img")  # the picture is missing, and no label made one
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.text.count("<script>alert(1)</script>") > 5
    assert prediction["text"] in page.text
    assert metrics["per_class"][ATTACK]["fn"] == 1


def test_missing_and_torn_pictures_are_grey_and_counted(folder, three):
    (folder / "bad.png").unlink()
    torn = (folder / "good.png").read_bytes()
    (folder / "good.png").write_bytes(torn[: len(torn) // 2])
    html, _ = write(folder, *three)
    assert "image file not found: bad.png" in html
    assert "image file cannot be read: good.png" in html
    assert "2 of them without a picture" in html
    assert len(Page(html).all("img")) == 1
    assert html.count('<rect class="shape"') == 7  # boxes are shown all the same


def test_an_upright_picture_is_shown_for_a_file_with_exif_rotation(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (960, 480), "white").save(folder / "turned.jpg", exif=exif)
    record = a_record("turned", [], size=(480, 960)) | {"image": "turned.jpg"}
    html, _ = write(folder, [record], [answer(record, [])])
    source = Page(html).all("img")[0]["src"]
    assert Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).size == (240, 480)


def test_a_baseline_is_compared(folder, three):
    records, predictions = three
    nothing = [answer(record, []) for record in records]
    baseline = score(records, nothing, ["cat", "dog"])
    html, _ = write(folder, records, predictions, baseline_metrics=baseline)
    text = " ".join(Page(html).text.split())
    assert "true positives 0 2 +2" in text
    assert "+0.667 from 0.000" in text  # recall
    assert "baseline" not in write(folder, records, predictions)[0]


def test_parse_problems_are_explained_and_raw_text_is_kept(folder):
    record = a_record("good", [[96, 48, 192, 96]])
    html, _ = write(folder, [record], [answer(record, [], text="I see <b>no</b> boxes & such")])
    text = " ".join(Page(html).text.split())
    assert "unparsable nothing could be read; the answer counts as empty 1" in text
    assert "I see <b>no</b> boxes & such" in text
    assert "problems: unparsable" in text


@pytest.mark.parametrize("records", [[], [a_record("empty", [])]], ids=["no images", "no boxes"])
def test_an_empty_split_has_a_report(folder, records):
    html, _ = write(folder, records, [answer(record, []) for record in records], classes=[])
    Page(html)
    assert "NaN" not in html
    assert "No truth boxes, so no curve." in html


def test_a_lone_surrogate_does_not_stop_the_report(folder):
    record = a_record("good", [])
    html, _ = write(folder, [record], [answer(record, [[1, 1, 9, 9]], ["\ud83d cat"])])
    assert r"\ud83d cat" in html


def test_many_classes_stay_readable(folder):
    classes = [f"class {i:02d}" for i in range(30)]
    record = a_record("good", [[10 * i, 0, 10 * i + 9, 90] for i in range(30)], classes)
    html, _ = write(folder, [record], [answer(record, [[0, 0, 9, 180]], ["class 00"])], classes)
    assert html.count("<polyline") == 8
    assert "the table has all 30" in html


# ---- pictures ----------------------------------------------------------------------------------------------------------


def red_pixels(image):
    return (np.asarray(image) == (255, 0, 0)).all(-1)


def test_draw_boxes_marks_the_edges_and_leaves_its_input_alone():
    image = Image.new("RGB", (200, 100), "white")
    drawn = draw_boxes(image, [[20, 30, 120, 80]], [""], "red")
    red = red_pixels(drawn)
    ys, xs = np.nonzero(red)
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (20, 30, 120, 80)
    assert red[30, 20:121].all()
    assert red[30:81, 120].all()
    assert not red[40:70, 40:100].any()
    assert not red_pixels(image).any()


def test_dashed_boxes_have_gaps():
    image = Image.new("RGB", (200, 100), "white")
    edge = red_pixels(draw_boxes(image, [[20, 30, 180, 80]], [""], (255, 0, 0), dashed=True))[30, 20:180]
    assert 0.3 < edge.mean() < 0.8
    assert np.count_nonzero(np.diff(edge.astype(int))) >= 6


@pytest.mark.parametrize(
    "label", ["cat", "犬 ñandú", "x" * 5000, "two\nlines", "\ud83d"], ids=["a", "b", "c", "d", "e"]
)
def test_labels_stay_inside_the_picture(label):
    image = Image.new("RGB", (300, 200), "white")
    for corner in ((0, 0), (290, 190), (150, 100)):
        box = [*corner, corner[0] + 9, corner[1] + 9]
        plain, labelled = draw_boxes(image, [box], [""], "red"), draw_boxes(image, [box], [label], "red")
        assert labelled.size == image.size
        assert red_pixels(labelled).sum() > red_pixels(plain).sum()


def test_draw_points_rings_each_point():
    image = Image.new("RGB", (200, 100), "white")
    red = red_pixels(draw_points(image, [[50, 60]], [""], "red"))
    ys, xs = np.nonzero(red)
    assert red[60, 50]
    assert abs(xs.mean() - 50) < 1
    assert abs(ys.mean() - 60) < 1
    assert 10 < np.ptp(xs) < 30


def test_thumbnails_shrink_but_never_grow():
    assert thumbnail(Image.new("RGB", (4000, 1000))).size == (480, 120)
    assert thumbnail(Image.new("RGB", (100, 50))).size == (100, 50)


def test_two_hundred_of_the_worst_pictures_stay_under_twenty_megabytes():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 480, 3), dtype=np.uint8))
    assert 200 * len(to_data_uri(noise)) < 20e6
    flat = to_data_uri(Image.new("RGB", (480, 480), "white"))
    assert flat.startswith("data:image/jpeg;base64,")
    assert len(flat) < 10_000


def test_the_report_of_a_real_data_set(shared_data, tmp_path):
    pictures = sorted((shared_data / "bccd_voc").rglob("*.jpg"))[:3]
    records = [a_record(path.stem, [[10, 10, 200, 200]], size=(640, 480)) | {"image": str(path)} for path in pictures]
    html, _ = write(tmp_path, records, [answer(record, [[20, 20, 320, 420]]) for record in records])
    assert len(Page(html).all("img")) == 3
    assert "without a picture" not in html
