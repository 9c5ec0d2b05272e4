"""What the controls of report.html select: the boxes that a filter finds are as many as metrics.json counts."""

import itertools

import pytest

from benchmarks.browser import Browser
from boxtune.common.errors import UserError
from boxtune.metrics.scoring import score
from tests.helpers.report_page import a_record, answer, kept, write

CLASSES = ["cat", "dog"]
SIZES = ("small", "medium", "large")


@pytest.fixture
def page(folder):
    """A function that opens the report of this folder in a browser and returns the browser."""
    try:
        browser = Browser(60)
    except UserError as error:
        pytest.skip(str(error))

    def opened(hash_=""):
        browser.call("Page.enable")
        browser.call("Page.navigate", url=(folder / "out" / "report.html").as_uri() + hash_)
        browser.wait_for("Page.loadEventFired")
        return browser

    with browser:
        yield opened


def select(browser, address):
    """Go to the address and return (number of selected images, number of selected boxes)."""
    browser.evaluate(f"location.hash = {address!r}, readAddress()")
    images, boxes = (
        browser.evaluate(f"document.getElementById('{name}').textContent") for name in ("found", "found-boxes")
    )
    return int(images.split()[0]), int(boxes.split()[0]) if boxes else 0


@pytest.mark.parametrize("threshold", [0, 0.35])
def test_filters_find_the_boxes_that_the_metrics_count(folder, crowd, page, threshold):
    records, predictions = crowd
    for record, prediction in zip(records[:10], predictions[:10], strict=True):  # boxes of all three sizes
        for objects in (record["objects"], prediction["objects"]):
            objects["bbox"] = [[v / 5 for v in box] for box in objects["bbox"]]
    write(folder, records, predictions)
    metrics = score(records, list(kept(predictions, threshold)), CLASSES)
    browser = page()
    wanted = {}
    for name in CLASSES:
        row = metrics["per_class"][name]
        wanted[f"class={name}&whose=gt&error=missed"] = row["fn"]
        wanted[f"class={name}&whose=gt&error=hit"] = row["tp"]
        wanted[f"class={name}&whose=predicted&error=hit"] = row["tp"]
        wanted[f"class={name}&whose=predicted&error=false"] = row["fp"]
    for number, name in enumerate(SIZES):
        row = metrics["sizes"][name]
        wanted[f"size={number}&error=missed"] = row["fn"]
        wanted[f"size={number}&error=hit"] = row["tp"]
        wanted[f"size={number}&error=false"] = row["fp"]
        wanted[f"size={number}"] = row["truth"] + row["fp"]
    wanted |= {f"error=missed_{cause}": count for cause, count in metrics["misses"].items()}
    wanted |= {f"error={kind}": count for kind, count in metrics["mistakes"].items()}
    wanted["error=any"] = metrics["matching"]["fp"] + metrics["matching"]["fn"]
    matrix = metrics["confusion"]["matrix"]
    wanted |= {f"cell={i},{j}": matrix[i][j] for i, j in itertools.product(range(3), range(4))}
    assert sum(count > 0 for count in wanted.values()) > 30
    found = {address: select(browser, f"#score={threshold}&{address}")[1] for address in wanted}
    assert found == wanted


def test_the_class_filter_says_whose_class_it_is(folder, page):
    """A dog predicted on a cat: a false positive of the prediction dog and of the ground truth cat."""
    records = [a_record("good", [[96, 48, 192, 96]]), a_record("bad", [[96, 48, 192, 96]], ["dog"])]
    box = [[100, 100, 200, 200]]
    predictions = [answer(records[0], box, ["dog"]), answer(records[1], box, ["dog"])]
    write(folder, records, predictions)
    browser = page()
    images = {
        "class=cat": 1, "class=cat&whose=gt": 1, "class=cat&whose=predicted": 0,
        "class=dog": 2, "class=dog&whose=gt": 1, "class=dog&whose=predicted": 2,
        "class=cat&whose=gt&error=wrong_class": 1, "class=dog&whose=gt&error=wrong_class": 0,
        "class=dog&whose=predicted&error=missed": 1, "class=cat&whose=predicted&error=missed": 0,
        "class=cat&error=missed_wrong_class": 1, "class=dog&error=missed_wrong_class": 1,
    }  # fmt: skip
    assert {address: select(browser, f"#{address}")[0] for address in images} == images
