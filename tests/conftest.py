"""Fixtures that several test files share."""

import os
from pathlib import Path

# Tiny tensors gain nothing from threads, and processes that fight for cores lose much. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from boxtune.data.dataset import write_dataset
from boxtune.families import FAMILIES
from tests.helpers.records import ROOT, make_record

# The same examples each time and no time limit, so that a failure is a change's own and not that of a busy machine;
# --hypothesis-profile=default draws new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real annotated images for development; not part of the repository."""
    path = Path(os.environ.get("BOXTUNE_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"{path} is absent; set BOXTUNE_DATA to run the tests on real datasets")
    return path


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> dict[str, Path]:
    """{family: folder}: a tiny model of every family with random weights, built as a Hub model is stored."""
    from assets.build_tiny_model import build

    folder = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        build(family, folder / family, hidden=64, layers=2, vision_layers=3)
    return {family: folder / family for family in FAMILIES}


@pytest.fixture(scope="session")
def squares(tmp_path_factory) -> Path:
    """A prepared dataset of red and blue squares: 16 train, 6 validation, 6 test images, some empty."""
    folder = tmp_path_factory.mktemp("data") / "squares"
    images = folder.parent / "images"
    images.mkdir()
    draw = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", 16), ("validation", 6), ("test", 6)):
        splits[split] = []
        for i in range(count):
            width, height = (int(side) for side in draw.integers(90, 240, 2))
            pixels = np.full((height, width, 3), 200, dtype=np.uint8)
            objects = []
            for name, color in (("red square", (220, 30, 30)), ("blue square", (30, 30, 220)))[: i % 3]:
                side = int(draw.integers(20, 60))
                x, y = int(draw.integers(0, width - side)), int(draw.integers(0, height - side))
                pixels[y : y + side, x : x + side] = color
                objects.append(([x, y, x + side, y + side], name))
            path = images / f"{split}_{i}.png"
            Image.fromarray(pixels).save(path)
            splits[split].append(
                make_record(path.stem, str(path), width, height, objects, classes=["red square", "blue square"])
            )
    write_dataset(
        folder,
        name="squares",
        source_format="test",
        classes=["red square", "blue square"],
        splits=splits,
        problems=[],
    )
    return folder
