"""Fixtures of the report tests: images in a folder, small runs, and a browser that runs the page's script."""

import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests.helpers.report_page import a_record, answer


@pytest.fixture
def browse(folder):
    """A function that returns the page after its script has run, for an address with the given fragment."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("neither chromium nor google-chrome is on the PATH")

    def dom(hash_=""):
        address = (folder / "out" / "report.html").as_uri() + hash_
        options = (
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder / 'profile'}",
            "--virtual-time-budget=5000",
        )
        command = [program, "--headless", *options, "--dump-dom", address]
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=True).stdout

    return dom


@pytest.fixture
def folder(tmp_path):
    for name in ("good", "bad", "empty"):
        Image.new("RGB", (960, 480), "white").save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.fixture
def three():
    """(records, predictions) of three images: one perfect, one with three errors, one empty and correct."""
    records = [
        a_record("good", [[96, 48, 192, 96]]),
        a_record("bad", [[96, 48, 192, 96], [480, 240, 960, 480]], ["cat", "dog"]),
        a_record("empty", []),
    ]
    boxes = [[[100, 100, 200, 200]], [[100, 100, 200, 200], [700, 100, 800, 200], [300, 300, 400, 400]], []]
    predictions = [answer(record, rows) for record, rows in zip(records, boxes, strict=True)]
    return records, predictions


@pytest.fixture
def crowd():
    """(records, predictions) of 20 images with overlapping boxes of two classes, equal scores and ignored ground truth."""
    draw = np.random.default_rng(3)

    def boxes(count):
        corners = draw.integers(0, 6, (count, 2)) * 20.0
        return np.hstack([corners, corners + draw.integers(4, 9, (count, 2)) * 20]).tolist()

    records, predictions = [], []
    for i in range(20):
        gt_count, count = draw.integers(0, 9), draw.integers(0, 18)
        labels, ignore = draw.choice(["cat", "dog"], gt_count).tolist(), (draw.random(gt_count) < 0.2).tolist()
        record = a_record(f"image {i}", boxes(gt_count), labels, ignore=ignore)
        objects = {
            "bbox": boxes(count),
            "category": draw.choice(["cat", "dog", " dog", "cow"], count, p=[0.5, 0.3, 0.1, 0.1]).tolist(),
            "score": (draw.integers(0, 21, count) / 20).tolist(),
        }
        records.append(record)
        predictions.append(answer(record, []) | {"objects": objects})
    return records, predictions
