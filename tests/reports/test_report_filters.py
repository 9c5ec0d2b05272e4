"""What the controls of report.html select: the boxes that a filter finds are as many as metrics.json counts."""

import itertools

import pytest

from benchmarks.browser import Browser
from boxtune.common.errors import UserError
from boxtune.metrics.scoring import score
from tests.helpers.report_page import a_record, answer, kept, write

CLASSES = ["cat", "dog"]


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
    for name, row in metrics["sizes"].items():
        wanted[f"size={name}&error=missed"] = row["fn"]
        wanted[f"size={name}&error=hit"] = row["tp"]
        wanted[f"size={name}&error=false"] = row["fp"]
        wanted[f"size={name}"] = row["truth"] + row["fp"]
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


def test_counts_in_tables_open_the_gallery_with_the_boxes_that_they_count(folder, crowd, page):
    write(folder, *crowd)
    browser = page()
    buttons = browser.evaluate(
        "[...document.querySelectorAll('button[data-go]')].filter((button) => /^[0-9]+$/.test(button.textContent)).length"
    )
    assert buttons > 2 * 3 + 3 * 3  # of the classes, the sizes and the matrix
    wrong = browser.evaluate(
        """[...document.querySelectorAll('button[data-go]')].flatMap((button) => {
          const row = button.closest('tr'), number = button.textContent.match(/^[0-9]+$/) ?? row.lastElementChild.textContent;
          if (button.dataset.go === 'whose=either' || button.dataset.go.match(/^size=[a-z]+$/)) return [];
          button.click();
          const found = document.getElementById('found-boxes').textContent.split(' ')[0] || '0';
          return found === String(number) ? [] : [`${button.dataset.go}: ${found} instead of ${number}`];
        })"""
    )
    assert wrong == []
    assert browser.evaluate("document.activeElement.id") == "images"
    browser.evaluate("document.querySelector('[data-go=\"cell=0,1\"]').click()")
    assert browser.evaluate("document.getElementById('cell').textContent") == "ground truth: cat, predicted: dog"
    assert "cell=0%2C1" in browser.evaluate("location.hash")
    browser.evaluate("document.getElementById('clear').click()")
    assert browser.evaluate("document.getElementById('found').textContent") == "20 of 20 images"


def test_class_tables_are_sorted_and_searched(folder, page):
    classes = [f"class {i}" for i in range(40)]
    record = a_record("good", [[20 * i, 0, 20 * i + 18, 90] for i in range(40)], classes)
    found = [[round(1000 * v / 960) for v in (20 * i, 0, 20 * i + 18)] + [188] for i in range(3)]
    write(folder, [record], [answer(record, found, ["class 0", "class 1", "class 9"])], classes)
    browser = page()

    def names():
        return browser.evaluate(
            "[...document.querySelectorAll('#class-table tbody tr')]"
            ".filter((row) => row.offsetHeight).map((row) => row.cells[0].textContent)"
        )

    def search(text):
        browser.evaluate(
            "{ const field = document.querySelector('[data-search=class-table]');"
            f" field.value = {text!r}; field.dispatchEvent(new Event('input')); }}"
        )

    def click(header):
        browser.evaluate(
            f"[...document.querySelectorAll('#class-table th button')].find((b) => b.textContent === {header!r}).click()"
        )
        return browser.evaluate(
            "[...document.querySelectorAll('#class-table th')].map((th) => th.getAttribute('aria-sort'))"
        )

    assert names() == classes[:30]
    assert [state for state in click("TP") if state] == ["descending"]
    assert names()[:3] == ["class 0", "class 1", "class 2"]  # ties in the order of the page
    assert [state for state in click("precision") if state] == ["descending"]
    assert names()[:4] == ["class 0", "class 1", "class 9", "class 2"]  # undefined values are last
    click("precision")
    assert names()[:4] == ["class 9", "class 0", "class 1", "class 2"]
    states = click("class")
    assert states[0] == "ascending" and states[1:] == [None] * (len(states) - 1)
    assert names()[:11] == classes[:11]  # 10 after 9
    search(" CLASS 3")
    assert names() == ["class 3", *classes[30:]]
    search("")
    browser.evaluate("document.querySelector('[data-more=class-table]').click()")
    assert names() == classes


def test_an_image_is_enlarged_and_escape_closes_it(folder, three, page):
    write(folder, *three)
    browser = page()

    def key(name, code):
        for kind in ("rawKeyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)

    def state():
        return browser.evaluate(
            "[document.getElementById('zoom').open, document.getElementById('zoom-name').textContent,"
            " document.querySelectorAll('#zoom .shape').length]"
        )

    card, enlarged = (
        f"document.querySelector('{place}').getBoundingClientRect().width" for place in ("figure img", "#zoom img")
    )
    browser.evaluate("document.querySelector('figure .enlarge').focus(), document.activeElement.click()")
    assert state() == [True, "bad", 5]
    assert browser.evaluate(enlarged) > 2 * browser.evaluate(card)
    before = browser.evaluate(enlarged)
    browser.evaluate("document.getElementById('zoom-image').click()")
    assert browser.evaluate(enlarged) == pytest.approx(3 * before, rel=0.1)
    key("ArrowRight", 39)
    assert state() == [True, "good", 2]
    key("Escape", 27)
    assert state()[0] is False
    assert browser.evaluate("document.activeElement.className") == "enlarge"
