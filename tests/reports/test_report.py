"""report.html: one file that needs no network, and in which no label, id or response becomes markup."""

import base64
import hashlib
import re
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from boxtune.answers.predictions import make_prediction
from boxtune.answers.selection import INTENDED
from boxtune.metrics.error_types import ERROR_TYPES, error_types
from boxtune.metrics.matching import match_images, worst_first
from boxtune.metrics.misses import MISS_CAUSES
from boxtune.metrics.scoring import score
from boxtune.reports.comparison import COLORS
from boxtune.reports.report import MEANINGS
from tests.helpers.report_page import (
    Page,
    a_record,
    answer,
    cards_of,
    cells_of,
    data_of,
    dots_of,
    images_of,
    kept,
    write,
)

ATTACK = (
    '"></script><script>document.documentElement.id = "a"</script><img src=x onerror="document.documentElement.id=1">'
)


def test_the_page_stands_alone(folder, three):
    html, _ = write(folder, *three)
    page = Page(html)
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert not page.all("link")
    assert not page.all("a")
    assert [image.size for image in images_of(html)] == [(480, 240)] * 3
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'")
    assert policy.endswith(f"script-src 'sha256-{digest}'")
    assert [attributes.get("type") for attributes in page.all("script")] == ["application/json", None]
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
    assert "3 images, 3 ground truth boxes" in text
    assert "split test" in text
    assert "versions.torch 2.15" in text
    assert "All scores are equal" in text


def test_the_worst_half_and_a_fair_sample_are_shown_of_many(folder, three):
    html, _ = write(folder, *three)
    data = data_of(html)
    assert [image["id"] for image in data["images"]] == ["good", "bad", "empty"]
    assert sorted(data["random"]) == [0, 1, 2]
    assert "This page shows all 3 images." in html
    html, _ = write(folder, *three, limit=1)
    data = data_of(html)
    assert [image["id"] for image in data["images"]] == ["bad"]  # the other images are counted, not shown
    assert [group[1:] for group in data["counts"]["groups"]] == [["background", 1], ["hit", 1]]  # all scores are equal
    assert "This page shows 1 of 3 images" in html
    assert len(images_of(html)) == 1
    pages = [data_of(write(folder, *three, limit=2, seed=seed)[0]) for seed in range(6)]
    draws = [[page["images"][n]["id"] for n in page["random"]] for page in pages]
    assert {sample[-1] for sample in draws} == {"good", "empty"}  # images are drawn until one is new
    assert {"bad" in sample for sample in draws} == {True, False}  # from all images, including the worst


def test_boxes_are_drawn_at_their_place_and_in_the_color_of_their_result(folder, three, browse):
    records, predictions = three
    records[1]["objects"]["bbox"][1] = [490, 240, 960, 480]
    write(folder, records, predictions)
    dom = browse()
    assert [card["id"] for card in cards_of(dom)] == ["bad", "good", "empty"]
    shapes = re.findall(
        r'<g class="(\w+)"><title>(.*?)</title><rect class="shape" x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)">',
        dom,
    )
    # The drawing is 480 wide and the image 960, so coordinates are half of the original pixels.
    assert shapes[:5] == [
        ("found", "cat: ground truth, IoU 1.000, at [96, 48, 192, 96] px", "48", "24", "48", "24"),
        ("missed", "dog: missed ground truth, no box near, at [490, 240, 960, 480] px", "245", "120", "235", "120"),
        ("hit", "cat: true positive, IoU 1.000, score 1.000, at [96, 48, 192, 96] px", "48", "24", "48", "24"),
        ("false", "cat: false positive, background, score 1.000, at [672, 48, 768, 96] px", "336", "24", "48", "24"),
        ("false", "cat: false positive, background, score 1.000, at [288, 144, 384, 192] px", "144", "72", "48", "24"),
    ]
    assert 'viewBox="0 0 480 240"' in dom
    assert "aspect-ratio: 2 / 1" in dom
    assert len(re.findall(r'<li class="(?:found|missed|hit|false)">', dom)) == len(
        shapes
    )  # the list of boxes has the same entries
    assert re.findall('<img alt="(.*?)" src="data:image/jpeg;base64,', dom) == ["bad", "good", "empty"]
    assert re.findall('<summary aria-label="(.*?)">', dom)[:2] == ["boxes of bad", "response of bad"]
    assert "minimum score</label>" not in dom  # all scores are equal


def test_ignored_ground_truth_excused_predictions_and_duplicates_are_named(folder, browse):
    record = a_record("good", [[0, 0, 480, 240], [480, 240, 960, 480]], ignore=[True, False])
    boxes = [[100, 100, 200, 200], [500, 500, 1000, 1000], [500, 500, 1000, 990]]
    write(folder, [record], [answer(record, boxes)])
    (card,) = cards_of(browse())
    facts = (
        "ignored ground truth",
        "ground truth",
        "not counted, inside ignored ground truth",
        "true positive",
        "false positive, duplicate",
    )
    assert [tip.split(":")[1].strip().startswith(fact) for tip, fact in zip(card["boxes"], facts, strict=True)] == [
        True
    ] * 5
    assert card["counts"] == ["1 TP", "1 FP", "0 FN", "1 duplicate", "1 not counted", "mean IoU 1.000", "0.25 s"]


def test_points_are_drawn_as_dots(folder, browse):
    record = a_record("good", [[96, 48, 192, 96]])
    text = "<click>150,150</click> cat\n<click>900,500</click> cat\n<click>160,150</click> cat"
    prediction = make_prediction(record, "qwen3_vl_click", (320, 640), text, 0.1)
    html, metrics = write(folder, [record], [prediction])
    dots = re.findall(
        r'<g class="(\w+)"><title>[^<]*</title><circle class="dot" cx="(.*?)" cy="(.*?)"', dom := browse()
    )
    assert dots == [("hit", "72", "36"), ("false", "432", "120"), ("false", "76.8", "36")]
    assert cards_of(dom)[0]["counts"] == ["1 TP", "2 FP", "0 FN", "1 duplicate", "0.1 s"]
    assert cells_of(dom) == cells_of(html)
    assert metrics["points"]["fp"] == 2
    assert "IoU" not in "".join(cards_of(dom)[0]["boxes"])
    assert "minimum score</label>" not in html
    assert "Points have no IoU, so there is no curve." in html


@pytest.mark.parametrize("threshold", [0, 0.35, 1])
def test_a_dot_beside_each_curve_is_where_the_counts_are(folder, crowd, browse, threshold):
    records, predictions = crowd
    for prediction in predictions:  # no dog has a score of 1
        objects = prediction["objects"]
        rows = zip(objects["score"], objects["category"], strict=True)
        objects["score"] = [min(value, 0.9) if label.strip() == "dog" else value for value, label in rows]
    html, plain = write(folder, records, predictions)
    page = browse(f"#score={threshold}")
    per_class = score(records, list(kept(predictions, threshold)), ["cat", "dog"])["per_class"]
    for dots, classes in ((dots_of(html), plain["per_class"]), (dots_of(page), per_class)):
        assert dots.keys() == {0, 1}
        for dot, row in zip(dots.values(), classes.values(), strict=True):
            hidden = row["precision"] is None
            assert dot == (None if hidden else pytest.approx((row["recall"], row["precision"])))
    assert (dots_of(page)[1] is None) == (threshold == 1)


@pytest.mark.parametrize("threshold", [0, 0.35, 0.6])
def test_the_page_counts_at_a_threshold_as_python_does(folder, crowd, browse, threshold):
    """Hiding a box can free its ground truth box for another prediction, so the page has to match again."""
    records, predictions = crowd
    above = list(kept(predictions, threshold))
    if threshold:
        before = zip(predictions, match_images(records, predictions), strict=True)
        still = sum(
            prediction["objects"]["score"][i] >= threshold for prediction, image in before for i, *_ in image.pairs
        )
        assert still < sum(
            image.tp for image in match_images(records, above)
        )  # so hiding boxes without matching again is not enough
    write(folder, records, above)
    expected = cells_of((folder / "out" / "report.html").read_text(encoding="utf-8"))
    html, _ = write(folder, records, predictions)
    dom = browse(f"#score={threshold}&gallery=file")
    assert cells_of(dom) == expected
    if not threshold:
        counted = {name for name, count in cells_of(dom) if count.isdigit() and int(count)}
        assert counted >= {*ERROR_TYPES, *(f"missed_{cause}" for cause in MISS_CAUSES)}
    else:
        assert cells_of(html) != expected  # the script wrote them, not Python
    cards = cards_of(dom)
    assert [card["id"] for card in cards] == [record["id"] for record in records]
    for card, image, before, prediction in zip(cards, match_images(records, above), predictions, above, strict=True):
        hidden = len(before["objects"]["score"]) - len(prediction["objects"]["score"])
        wanted = [f"{image.tp} TP", f"{image.fp} FP", f"{image.fn} FN"]
        wanted += [f"{len(image.duplicates)} duplicate"] * bool(image.duplicates)
        wanted += [f"{len(image.excused)} not counted"] * bool(image.excused)
        wanted += [f"{hidden} below the minimum score"] * bool(hidden)
        wanted += [] if image.mean_iou is None else [f"mean IoU {image.mean_iou:.3f}"]
        assert card["counts"] == [*wanted, "0.25 s"]
    best = float(re.search(r"best F1 on this split: ([\d.]+)<", dom)[1])

    def f1(cut):
        return score(records, list(kept(predictions, cut)), ["cat", "dog"])["matching"]["f1"]

    assert f1(best) == max(f1(step / 20) for step in range(21))


def test_the_address_selects_filters_and_galleries(folder, crowd, browse):
    records, predictions = crowd
    predictions[4]["problems"] = ["truncated"]
    html, _ = write(folder, records, predictions)
    above = list(kept(predictions, 0.5))
    scores = match_images(records, above)

    def ids(rows):
        return [records[i]["id"] for i in rows]

    def dogs_missed(i):
        return "dog" in [records[i]["objects"]["category"][j] for j in scores[i].missed]

    def kind(i):
        return error_types(records[i], above[i], scores[i], ["cat", "dog"], 0.5).values()

    everything = range(len(records))
    wanted = {
        "#score=0.5&class=dog&whose=gt&error=missed": [i for i in worst_first(scores) if dogs_missed(i)],
        "#score=0.5&error=localisation&gallery=file": [i for i in everything if "localisation" in kind(i)],
        "#score=7&class=cow&error=nonsense&gallery=random": data_of(html)["random"],
        "#error=problem": [4],
    }
    for address, rows in wanted.items():
        dom = browse(address)
        assert [card["id"] for card in cards_of(dom)] == ids(rows), address
        assert f">{len(rows)} of 20 images<" in dom
        assert rows


def test_no_label_id_or_response_becomes_markup(folder, browse):
    record = a_record("good", [[96, 48, 192, 96]], [ATTACK]) | {"id": ATTACK, "image": ATTACK}
    prediction = answer(record, [[1, 1, 500, 500]], [ATTACK]) | {"problems": [ATTACK]}
    html, metrics = write(folder, [record], [prediction], classes=[ATTACK], title=ATTACK)
    assert len(Page(html).all("script")) == 2
    assert not Page(html).all("img")[1:]
    assert metrics["per_class"][ATTACK]["fn"] == 1
    dom = browse("#error=any&class=" + quote(ATTACK))
    page = Page(dom)
    assert [card["id"] for card in cards_of(dom)] == [ATTACK]
    assert page.all("html") == [{"lang": "en"}]  # the attack would change this
    assert len(page.all("script")) == 2
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.text.count(ATTACK) > 10
    assert prediction["text"] in page.text
    assert "1 of 1 images" in page.text


def test_missing_and_corrupt_image_files_are_counted_and_their_boxes_shown(folder, three, browse):
    (folder / "bad.png").unlink()
    content = (folder / "good.png").read_bytes()
    (folder / "good.png").write_bytes(content[: len(content) // 2])
    html, _ = write(folder, *three)
    assert "2 image files are missing or corrupt" in html
    assert len(images_of(html)) == 1
    dom = browse()
    assert "image file not found: bad.png" in dom
    assert "image file cannot be read: good.png" in dom
    assert dom.count('<rect class="shape"') == 7  # the boxes are shown without the image


def test_a_file_with_an_exif_rotation_is_shown_upright(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (960, 480), "white").save(folder / "turned.jpg", exif=exif)
    record = a_record("turned", [], size=(480, 960)) | {"image": "turned.jpg"}
    html, _ = write(folder, [record], [answer(record, [])])
    assert images_of(html)[0].size == (240, 480)


def test_a_baseline_is_compared(folder, crowd, browse):
    records, predictions = crowd
    baseline = score(records, list(kept(predictions, 0.6)), ["cat", "dog"])
    html, metrics = write(folder, records, predictions, baseline_metrics=baseline)
    text = " ".join(Page(html).text.split())
    before, after = (numbers["matching"]["tp"] for numbers in (baseline, metrics))
    assert f"true positives {before} {after} +{after - before}" in text
    assert f"from {baseline['matching']['recall']:.3f}" in text
    assert "Changes are relative to the baseline, the base model before training." in text
    assert cells_of(browse()) == cells_of(html)
    assert "baseline" not in write(folder, records, predictions)[0].split("<script>")[0]


def test_a_number_that_the_baseline_lacks_has_no_change(folder, crowd):
    """A base that finds nothing has no precision."""
    records, predictions = crowd
    nothing = score(records, list(kept(predictions, 1.1)), ["cat", "dog"])
    assert nothing["matching"]["precision"] is None
    html, _ = write(folder, records, predictions, baseline_metrics=nothing)
    assert "– from –" not in Page(html).text and "from 0.000" in Page(html).text


def test_the_page_says_which_numbers_a_minimum_score_does_not_change(folder, crowd, browse):
    records, predictions = crowd
    baseline = score(records, predictions, ["cat", "dog"])
    write(folder, records, predictions, baseline_metrics=baseline)

    def changes(page):
        return [text for key, text in cells_of(page) if key and re.fullmatch(r"[\d.]+", key)]

    assert changes(browse()) == ["+0.000", "+0.000"]
    dom = browse("#score=0.6")
    assert changes(dom) == ["–", "–"]
    notes = re.findall('<p class="soft" data-threshold=.*?>(.*?)</p>', dom)
    assert notes == [
        "Only boxes with a score of at least 0.6. AP, AP50 and the baseline include all boxes.",
        "Only boxes with a score of at least 0.6.",
        "Only boxes with a score of at least 0.6.",
    ]
    write(folder, records, predictions)
    assert "Only boxes with a score of at least 0.6. AP and AP50 include all boxes." in browse("#score=0.6")


def luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(a, b):
    """The contrast ratio of WCAG 2, from 1 to 21."""
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def test_labels_and_curves_have_enough_contrast(folder, three):
    html, _ = write(folder, *three)
    labels = dict(re.findall("--(truth|hit|false|grey): (#[0-9a-f]{6});", html))
    curve_colors = re.findall("--c: (#[0-9a-f]{6});", html)
    assert (len(labels), len(curve_colors)) == (4, 8)
    assert {key: labels[key] for key in COLORS} == COLORS  # both pages use the same colors
    cards = ("#ffffff", "#1d2126")
    assert "--card: #fff;" in html and f"--card: {cards[1]};" in html
    for color in labels.values():
        assert contrast(color, "#ffffff") >= 4.5, color
    for color in (*labels.values(), *curve_colors):
        assert min(contrast(color, card) for card in cards) >= 3, color


def test_parse_problems_are_explained_and_raw_text_is_kept(folder):
    record = a_record("good", [[96, 48, 192, 96]])
    html, _ = write(folder, [record], [answer(record, [], text="I see <b>no</b> boxes & such")])
    text = " ".join(Page(html).text.split())
    assert "unparsable nothing could be read; the response counts as empty 1" in text
    image = data_of(html)["images"][0]
    assert (image["text"], image["problems"]) == ("I see <b>no</b> boxes & such", ["unparsable"])


@pytest.mark.parametrize("records", [[], [a_record("empty", [])]], ids=["no images", "no boxes"])
def test_an_empty_split_has_a_report(folder, records, browse):
    html, _ = write(folder, records, [answer(record, []) for record in records], classes=[])
    Page(html)
    assert "NaN" not in html
    assert "There are no ground truth boxes, so there is no curve." in html
    assert f">{len(records)} of {len(records)} images<" in browse()


def test_a_lone_surrogate_does_not_stop_the_report(folder):
    record = a_record("good", [])
    html, _ = write(folder, [record], [answer(record, [[1, 1, 9, 9]], ["\ud83d cat"])])
    assert r"\ud83d cat" in html


def test_many_classes_stay_readable(folder):
    classes = [f"class {i:02d}" for i in range(30)]
    record = a_record("good", [[10 * i, 0, 10 * i + 9, 90] for i in range(30)], classes)
    html, _ = write(folder, [record], [answer(record, [[0, 0, 9, 180]], ["class 00"])], classes)
    assert html.count("<polyline") == 8
    assert "The table per class lists all 30." in html
    assert '<table class="matrix' not in html
    assert "No prediction is on an object of another class." in html


def test_of_many_classes_the_most_confused_pairs_are_listed(folder):
    """A pair lists as many boxes as its cell of the confusion matrix, the most first, and shows their images."""
    classes = [f"class {i:02d}" for i in range(30)]
    record = a_record("good", [[30 * i, 0, 30 * i + 27, 90] for i in range(30)], ["class 07"] * 30)
    labels = ["class 02", "class 09", "class 09", "zebra", "class 07", "class 07"]
    boxes = [[round(31.25 * i), 0, round(31.25 * i + 28.125), 188] for i in range(6)]
    html, metrics = write(folder, [record], [answer(record, boxes, labels)], classes)
    table = re.search(r'<table id="confused-table".*?</table>', html, re.DOTALL)[0]
    rows = re.findall(
        r'<td data-words>(.*?)</td><td class="words.*?>(.*?)</td>.*?data-go="cell=(.*?)">(\d+)<.*?<td>(.*?)</td>', table
    )
    assert rows == [
        ("class 07", "class 09", "7,9", "2", "0.067"),
        ("class 07", "class 02", "7,2", "1", "0.033"),
        ("class 07", "unknown label", "7,30", "1", "0.033"),
    ]
    for *_, cell, count, _ in rows:
        i, j = map(int, cell.split(","))
        assert metrics["confusion"]["matrix"][i][j] == int(count)


def test_a_class_may_be_called_background(folder):
    """The rows and columns that are not classes remain and are marked as such."""
    names = [*(f"class {i:02d}" for i in range(15)), "background"]
    record = a_record("good", [[30 * i, 0, 30 * i + 27, 90] for i in range(15)], names[:15])
    html, _ = write(folder, [record], [answer(record, [[0, 0, 28, 188]], ["class 00"])], names)
    rows = re.findall(r"<tr>(.*?)</tr>", re.search(r'<table class="matrix.*?</table>', html, re.DOTALL)[0])
    assert re.findall(r'<th class="soft"><span>(.*?)</span>', rows[0]) == ["unknown label", "background"]
    assert cells_in(rows[2])[-1] == "1"  # not found
    assert '<th class="soft">background</th>' in rows[-1] and 'class="same"' not in rows[-1]


def cells_in(row):
    """The numbers of a row of the confusion matrix."""
    return re.findall(r">(\d+|·)(?:</button>)?</td>", row)


def test_error_types_confusion_sizes_and_intervals_are_shown(folder):
    names = [f"class {i:02d}" for i in range(20)]
    record = a_record("good", [[30 * i, 0, 30 * i + 27, 90] for i in range(20)], names)
    found = [([31.25 * i, 0, 31.25 * i + 28.125, 187.5], name) for i, name in enumerate(names[:15])]
    found[3] = (found[3][0], "class 04")  # on an object of class 03
    found += [([900, 800, 990, 990], "class 00"), ([700, 800, 790, 990], "zebra")]
    boxes, labels = zip(*[([round(v) for v in box], label) for box, label in found], strict=True)
    html, metrics = write(folder, [record], [answer(record, list(boxes), list(labels))], names)
    text = " ".join(Page(html).text.split())
    assert metrics["mistakes"] == {
        **dict.fromkeys(ERROR_TYPES, 0),
        "background": 1,
        "unknown_label": 1,
        "wrong_class": 1,
    }
    assert "background the box is not on any object 1" in text
    assert metrics["misses"] == {**dict.fromkeys(MISS_CAUSES, 0), "wrong_class": 1, "no_box": 5}
    assert "no box near no box of its class is near the object, and no other box is on it 5" in text
    assert f"medium 20 14 {metrics['sizes']['medium']['fp']} 6" in text
    low, high = metrics["intervals"]["f1"]
    assert f"95 %: {low:.3f} to {high:.3f}" in text
    assert "The 95 % intervals come from 300 bootstrap draws of the images." in text
    matrix = re.search(r'<table class="matrix.*?</table>', html, re.DOTALL)[0]
    rows = re.findall(r"<tr>(.*?)</tr>", matrix)
    assert len(rows) == 1 + 20 + 1
    assert re.findall(r"<span>(.*?)</span>", rows[0])[-2:] == ["unknown label", "background"]
    assert cells_in(rows[1]) == ["1", *"·" * 21]
    assert cells_in(rows[4]) == [*"·" * 4, "1", *"·" * 17], "class 03 was predicted as class 04"
    assert cells_in(rows[-1]) == ["1", *"·" * 19, "1", "·"]
    assert re.findall("--share: (.*?)%", rows[1]) == ["70.0"]


@pytest.mark.slow
def test_a_thousand_images_stay_under_twenty_megabytes(folder, browse):
    """Noise gives the largest JPEG files. Twenty images of it stand for a thousand."""
    draw = np.random.default_rng(0)
    for i in range(20):
        pixels = draw.integers(0, 256, (360, 360, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"image {i}.png", compress_level=0)
    boxes = [[40.5 * i, 10.25, 40.5 * i + 35, 470.75] for i in range(10)]
    records = [a_record(f"image {i}", boxes, size=(480, 480)) for i in range(1000)]
    answers = [answer(record, [[85 * i, 21, 85 * i + 75, 981] for i in range(10)]) for record in records]
    html, _ = write(folder, records, answers)
    assert len(images_of(html)) == 20
    image_bytes = sum(len(image["data_uri"] or "") for image in data_of(html)["images"])
    assert len(html.encode()) + (1000 / 20 - 1) * image_bytes < 20e6
    dom = browse("#gallery=file")
    assert [card["id"] for card in cards_of(dom)] == [
        f"image {i}" for i in range(24)
    ]  # only one page of the gallery is drawn
    assert ">1–24 of 1000<" in dom


def test_the_report_of_a_real_dataset(shared_data, tmp_path):
    paths = sorted((shared_data / "bccd_voc").rglob("*.jpg"))[:3]
    records = [a_record(path.stem, [[10, 10, 200, 200]], size=(640, 480)) | {"image": str(path)} for path in paths]
    html, _ = write(tmp_path, records, [answer(record, [[20, 20, 320, 420]]) for record in records])
    assert len(images_of(html)) == 3
    assert "missing or corrupt" not in html


def test_an_image_of_several_questions_shows_every_response(folder, three):
    records, predictions = three
    line = {key: value for key, value in predictions[0].items() if key not in ("text", "input_size")}
    parts = [{"question": "?", "tile": None, "input_size": [240, 480], "text": text} for text in ("first", "second")]
    html, _ = write(folder, records, [line | {"parts": parts}, *predictions[1:]])
    assert next(image["text"] for image in data_of(html)["images"] if image["id"] == "good") == "first\nsecond"


def test_the_script_knows_which_problems_a_clean_response_may_have(folder, three):
    html, _ = write(folder, *three)
    [names] = re.findall(r"const INTENDED = \[(.*)\];", html)
    assert {name.strip('"') for name in names.split(", ")} == INTENDED <= MEANINGS.keys()
