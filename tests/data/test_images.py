"""Images as the model sees them, and the check of every image before anything is written."""

import hashlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from boxtune.data import image_checks
from boxtune.data.image_checks import BadImage, ImageFacts, check_image, check_images, upright_size
from boxtune.data.images import aspect_problem, load_image, stored_and_upright_size, to_rgb


def rotated(path, orientation: int, size=(30, 20)):
    """An image whose left half is red before EXIF rotates it."""
    image = Image.new("RGB", size, "white")
    image.paste("red", (0, 0, size[0] // 2, size[1]))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(path, exif=exif)
    return path


def pixels(image: Image.Image) -> list:
    return np.asarray(image).reshape(-1, 3).tolist()


def test_the_largest_aspect_ratio_is_200():
    assert aspect_problem(200, 1) is None and aspect_problem(1, 200) is None
    assert aspect_problem(1, 201) == "1 × 201 exceeds the aspect ratio of 200"
    assert aspect_problem(0, 5) and aspect_problem(5, 0)


@pytest.mark.parametrize(("mode", "color"), [("RGBA", (0, 0, 255, 0)), ("LA", (0, 0)), ("RGBA", (9, 8, 7, 255))])
def test_transparent_pixels_become_white(mode, color):
    wanted = [9, 8, 7] if color[-1] else [255] * 3
    assert pixels(to_rgb(Image.new(mode, (1, 2), color))) == [wanted] * 2


def test_a_palette_may_have_a_transparent_color():
    image = Image.new("P", (2, 1), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((0, 0), 0)
    assert pixels(to_rgb(image)) == [[255, 0, 0], [0, 255, 0]]
    image.info["transparency"] = 0
    assert pixels(to_rgb(image)) == [[255, 255, 255], [0, 255, 0]]


def test_an_rgb_image_is_not_copied():
    image = Image.new("RGB", (2, 2))
    assert to_rgb(image) is image


@pytest.mark.parametrize(
    ("values", "gray"),
    [
        (np.uint16([0, 257 * 100, 65535]), [0, 100, 255]),  # 16-bit gray values have a fixed white
        (np.uint16([0, 257, 514]), [0, 1, 2]),
        (np.int32([0, 100, 255]), [0, 100, 255]),  # modes I and F: the smallest usual white that fits
        (np.int32([0, 257 * 7, 256]), [0, 7, 1]),
        (np.float32([0, 0.2, 1]), [0, 51, 255]),
        (np.float32([0, 50_000, 100_000]), [0, 128, 255]),
        (np.float32([-5, 0, 1]), [0, 0, 255]),
    ],
)
def test_gray_values_are_scaled_to_white(values, gray):
    assert pixels(to_rgb(Image.fromarray(values[None]))) == [[value] * 3 for value in gray]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "tiff"])
def test_the_upright_size_is_that_of_the_loaded_image(tmp_path, orientation, suffix):
    path = rotated(tmp_path / f"a.{suffix}", orientation)
    turned = orientation >= 5
    assert load_image(path).size == upright_size(path) == ((20, 30) if turned else (30, 20))
    with Image.open(path) as image:
        assert stored_and_upright_size(image) == ((30, 20), (20, 30) if turned else (30, 20))
    facts = check_image(path)
    assert facts == ImageFacts((30, 20), load_image(path).size, orientation, hashlib.sha256(path.read_bytes()).digest())


def test_orientation_6_turns_the_left_side_to_the_top(tmp_path):
    image = np.asarray(load_image(rotated(tmp_path / "a.png", 6))).astype(int)
    assert image[0, :, 1].max() < 100 < image[-1, :, 1].min()


def test_each_reason_why_an_image_cannot_be_used(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("no image")
    Image.effect_noise((30, 20), 50).save(tmp_path / "whole.bmp")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.bmp").read_bytes()[:-300])
    Image.new("RGB", (201, 1)).save(tmp_path / "thin.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "large.png")
    monkeypatch.setattr(image_checks, "_MAX_PIXELS", 1000)
    found = {name: check_image(tmp_path / f"{name}.png") for name in ("text", "cut", "thin", "large", "gone")}
    assert found["gone"] == BadImage(f"missing: {tmp_path / 'gone.png'}", missing=True)
    assert found["text"] == BadImage(f"{tmp_path / 'text.png'}: not an image that Pillow can read")
    assert found["cut"].reason.startswith(f"{tmp_path / 'cut.png'}: corrupt: ") and not found["cut"].missing
    assert found["thin"].reason.endswith("thin.png: 201 × 1 exceeds the aspect ratio of 200")
    assert found["large"].reason.endswith("large.png: the header claims 40 × 40 pixels")
    monkeypatch.setattr(image_checks, "_MAX_PIXELS", 1600)
    assert isinstance(check_image(tmp_path / "large.png"), ImageFacts)
    assert upright_size(tmp_path / "text.png") is None and upright_size(tmp_path / "cut.png") == (30, 20)
    for name in ("text", "cut", "gone"):
        with pytest.raises(OSError):
            load_image(tmp_path / f"{name}.png")


@pytest.mark.parametrize("workers", [1, 3])
def test_images_are_checked_in_order(tmp_path, workers):
    for i in range(60):
        Image.new("RGB", (i + 1, 5)).save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in range(60)] + [tmp_path / "gone.png"]
    *facts, gone = check_images(paths, workers)
    assert [each.upright for each in facts] == [(i + 1, 5) for i in range(60)] and gone.missing


def test_few_images_wait_to_be_checked(tmp_path, monkeypatch):
    """A dataset of a million images must not need a million waiting tasks."""
    submitted = []
    monkeypatch.setattr(image_checks, "check_image", submitted.append)
    checks = check_images([f"{i}.png" for i in range(100)], workers=2)
    next(checks)
    assert len(submitted) <= 33
    checks.close()
