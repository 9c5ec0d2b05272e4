"""The page at / in a browser: images go to the server, boxes come back, and nothing that a model or a file says is run."""

import json
import re

import pytest
from PIL import Image

from benchmarks.browser import Browser
from boxtune.common.errors import UserError
from boxtune.serving.app import create_app
from boxtune.serving.limits import Limits
from boxtune.serving.service import Service
from tests.helpers.http_api import CLASSES, file_of, listening, shapes
from tests.helpers.report_page import Page

LIMITS = Limits(body_bytes=2**20, image_pixels=4_000_000)
UNTIL = """new Promise((done, fail) => {
  const began = Date.now();
  const look = () => (CONDITION) ? done(true) : Date.now() - began > 60000 ? fail("timeout") : setTimeout(look, 50);
  look();
})"""
# Keeps what the page saves, in place of a download.
CATCH = """save = async (blob, name) => {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  window.saved = {name, type: blob.type, text: btoa(String.fromCharCode(...bytes))};
}"""


def until(browser, condition: str) -> None:
    assert browser.evaluate(UNTIL.replace("CONDITION", condition))


def count(browser, selector: str) -> int:
    return browser.evaluate(f"document.querySelectorAll({selector!r}).length")


@pytest.fixture
def opened(detector):
    """Opens the page of an API with this key; returns the browser."""
    try:
        browser = Browser(60)
    except UserError as error:
        pytest.skip(str(error))
    servers = []

    def opened(api_key=""):
        servers.append(listening(create_app(Service(detector, LIMITS, max_batch=4, max_wait=0.02), api_key)))
        address = servers[-1].__enter__()
        browser.call("Page.enable")
        browser.call("Page.navigate", url=address)
        browser.wait_for("Page.loadEventFired")
        return browser

    with browser:
        yield opened
    for server in servers:
        server.__exit__(None, None, None)


def choose_files(browser, *paths) -> None:
    root = browser.call("DOM.getDocument")["root"]["nodeId"]
    node = browser.call("DOM.querySelector", nodeId=root, selector="#files")["nodeId"]
    browser.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])


def test_the_page_is_one_file_that_may_run_only_its_own_script(client):
    response = client.get("/")
    page = Page(response.text)
    assert not [attributes for _, attributes in page.tags if {"src", "style", "onclick"} & set(attributes)]
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert len(re.findall("'sha256-[^']+'", policy)) == 2
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_images_become_boxes_that_a_threshold_hides_and_that_can_be_saved(opened, detector, tmp_path):
    name = "<img src=x onerror=alert(1)>.png"
    (tmp_path / name).write_bytes(file_of(shapes(1)[0]))
    expected = detector(shapes(1)[0], threshold=0)
    browser = opened()
    until(browser, f"document.querySelectorAll('#classes button').length === {len(CLASSES)}")
    choose_files(browser, tmp_path / name)
    until(browser, "cards.length === 1 && cards[0].response")
    assert count(browser, ".box") == len(expected) == count(browser, "li") > 0
    assert browser.evaluate("document.querySelector('h2').textContent") == name and count(browser, "h2 img") == 0
    captions = browser.evaluate("[...document.querySelectorAll('.box span')].map((one) => one.textContent)")
    assert captions == [f"{label} {score:.2f}" for label, score in zip(expected.labels, expected.scores, strict=True)]

    browser.evaluate(CATCH)
    browser.evaluate("document.querySelector('.png').click()")
    until(browser, "window.saved")
    assert browser.evaluate("[saved.name.endsWith('_boxes.png'), saved.type]") == [True, "image/png"]
    browser.evaluate("window.saved = null, document.querySelector('.json').click()")
    until(browser, "window.saved")
    saved = json.loads(browser.evaluate("atob(saved.text)"))
    assert [one["class"] for one in saved["predictions"]] == expected.labels

    browser.evaluate("document.getElementById('threshold').value = 1, showThreshold()")
    assert count(browser, ".box") == 0
    assert "below the minimum confidence" in browser.evaluate("document.querySelector('.status').textContent")


def test_only_the_chosen_classes_are_asked_and_a_new_one_can_be_added(opened, detector, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(file_of(shapes(1)[0]))
    browser = opened()
    until(browser, f"document.querySelectorAll('#classes button').length === {len(CLASSES)}")
    browser.evaluate("get('no-classes').click(), get('new-class').value = 'square', get('class-form').requestSubmit()")
    assert count(browser, "#classes button") == len(CLASSES), "a class that is there is not added again"
    choose_files(browser, path)
    until(browser, "!get('problem').hidden")
    assert "at least one class" in browser.evaluate("get('problem').textContent")
    browser.evaluate("document.querySelectorAll('#classes button')[1].click()")
    choose_files(browser, path)
    until(browser, "cards.length === 1 && cards[0].response")
    labels = browser.evaluate("cards[0].response.predictions.map((one) => one.class)")
    assert labels == detector(shapes(1)[0], classes=[CLASSES[1]], threshold=0).labels


def test_a_refused_image_shows_the_servers_reason(opened, tmp_path):
    (tmp_path / "strip.png").write_bytes(file_of(Image.new("RGB", (900, 3))))
    browser = opened()
    until(browser, "info")
    choose_files(browser, tmp_path / "strip.png")
    until(browser, "cards.length === 1 && cards[0].error")
    assert "aspect ratio" in browser.evaluate("document.querySelector('.status.bad').textContent")


def test_a_server_with_a_key_asks_for_it(opened):
    browser = opened(api_key="secret")
    until(browser, "!get('key-form').hidden")
    assert browser.evaluate("info") is None
    browser.evaluate("get('key').value = 'wrong', get('key-form').requestSubmit()")
    until(browser, "get('problem').textContent.includes('API key')")
    browser.evaluate("get('key').value = 'secret', get('key-form').requestSubmit()")
    until(browser, f"document.querySelectorAll('#classes button').length === {len(CLASSES)}")
