"""Unrelated images: drawn ones are repeatable and differ; those of a folder are a fixed choice."""

import numpy as np
import pytest
from PIL import Image

from boxtune.common.errors import UserError
from boxtune.data.unrelated_images import draw_unrelated, unrelated_images


def test_a_drawn_image_depends_on_its_name_alone():
    first, again, other = (np.asarray(draw_unrelated(name)) for name in ("a/0", "a/0", "b/0"))
    assert (first == again).all() and first.shape[2] == 3
    assert first.shape != other.shape or (first != other).mean() > 0.05


def test_drawn_images_are_as_large_as_stated_and_all_differ():
    images = unrelated_images("generated", 12, "seed")
    opened = [image.open() for image in images]
    assert [image.size for image in images] == [image.size for image in opened]
    assert len({image.tobytes() for image in opened}) == 12 and len({image.name for image in images}) == 12
    # Every one shows something.
    assert min(np.asarray(image).std() for image in opened) > 5
    assert [image.name for image in unrelated_images("generated", 3, "seed")] == [i.name for i in images[:3]]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "below").mkdir()
    for i in range(6):
        Image.new("RGB", (20 + i, 30), (i * 40, 0, 0)).save(tmp_path / ("below" if i % 2 else ".") / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_the_images_of_a_folder_are_a_fixed_choice(folder):
    first, again = (unrelated_images(str(folder), 3, "seed") for _ in range(2))
    assert [image.name for image in first] == [image.name for image in again] and len(first) == 3
    assert all(image.open().size == image.size for image in first)
    everything = unrelated_images(str(folder), 50, "seed")
    assert sorted(image.name for image in everything) == [
        "0.png",
        "2.png",
        "4.png",
        "below/1.png",
        "below/3.png",
        "below/5.png",
    ]


def test_folders_that_cannot_be_used_are_named(folder, tmp_path):
    with pytest.raises(UserError, match="no folder with images"):
        unrelated_images(str(tmp_path / "nowhere"), 3, "seed")
    (folder / "0.png").write_bytes(b"corrupt")
    with pytest.raises(UserError, match=r"1 of 6 images .* cannot be used(?s:.*)0.png"):
        unrelated_images(str(folder), 6, "seed")
