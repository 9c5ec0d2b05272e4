"""Near-duplicate images: copies of a photo are found, and other images of the same scene are not."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from boxtune.families import FAMILIES
from data_prep.tools.findings import find
from data_prep.tools.near_duplicates import similar_images

SIZE = (480, 360)


def scenery(seed: int) -> Image.Image:
    """A photo-like image: smooth light, and shapes of all sizes."""
    draw_random = np.random.default_rng(seed)
    coarse = draw_random.integers(60, 200, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(40):
        x, y = draw_random.uniform(0, SIZE[0]), draw_random.uniform(0, SIZE[1])
        w, h = draw_random.uniform(8, 90, 2)
        color = tuple(int(value) for value in draw_random.integers(0, 256, 3))
        draw.ellipse((x - w, y - h, x + w, y + h), fill=color)
    return image.filter(ImageFilter.GaussianBlur(1))


def with_noise(image: Image.Image, seed: int, gain: float = 1.0) -> Image.Image:
    values = np.asarray(image, dtype=np.float32)
    noise = 3 * np.random.default_rng(seed).standard_normal(values.shape, dtype=np.float32)
    return Image.fromarray((values * gain + noise).clip(0, 255).astype(np.uint8))


def frame(background: Image.Image, seed: int) -> Image.Image:
    """What a fixed camera sees at another time: one to three objects elsewhere, other noise, and slightly other light."""
    draw_random = np.random.default_rng(seed)
    image = background.copy()
    draw = ImageDraw.Draw(image)
    for _ in range(draw_random.integers(1, 4)):
        x, y, r = (
            draw_random.uniform(0, SIZE[0] - 40),
            draw_random.uniform(0, SIZE[1] - 40),
            draw_random.uniform(12, 30),
        )
        color = tuple(int(value) for value in draw_random.choice([0, 255], 3))
        draw.rectangle((x, y, x + r, y + r * 1.4), fill=color)
    return with_noise(image, seed, gain=float(draw_random.uniform(0.8, 1.1)))


def page(seed: int, is_form: bool) -> Image.Image:
    """A page of text, or a form, in which only the short entries differ."""
    draw_random = np.random.default_rng(seed)
    image = Image.new("RGB", (360, 480), (250, 250, 245))
    draw = ImageDraw.Draw(image)
    draw.rectangle((30, 20, 330, 24), fill="black")
    for top in range(40, 450, 20 if is_form else 9):
        x = 40
        if is_form:
            draw.rectangle((30, top, 330, top + 16), outline="gray")
            draw.rectangle((36, top + 4, 60 + top % 50, top + 10), fill="black")
            x = 140
        for _ in range(draw_random.integers(1, 3) if is_form else draw_random.integers(4, 12)):
            width = int(draw_random.integers(8, 40))
            draw.rectangle((x, top + 4, min(x + width, 325), top + 9), fill=(60, 60, 60))
            x = min(x + width + 5, 320)
    return with_noise(image, seed)


def board(squares: list[tuple[int, int]]) -> Image.Image:
    """A chess board with one light piece on each of these squares."""
    image = Image.new("RGB", SIZE, (120, 90, 70))
    draw = ImageDraw.Draw(image)
    for column in range(8):
        for row in range(8):
            x, y = 80 + 40 * column, 20 + 40 * row
            draw.rectangle((x, y, x + 40, y + 40), fill=(225, 205, 170) if (column + row) % 2 else (110, 75, 50))
            if (column, row) in squares:
                draw.ellipse((x + 10, y + 10, x + 30, y + 30), fill=(240, 235, 220))
    return image


def second_exposure(image: Image.Image) -> Image.Image:
    """Brighter, of higher contrast, moved and turned a little, with other noise."""
    moved = image.rotate(0.4, Image.Resampling.BICUBIC, translate=(3, -2), fillcolor=(128, 128, 128))
    toned = moved.point([min(255, round(255 * (value / 255) ** 0.85 * 1.1)) for value in range(256)] * 3)
    return with_noise(toned, seed=99)


def encoded(image: Image.Image, quality: int = 35) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def resized(image: Image.Image) -> Image.Image:
    return image.resize((230, 230), Image.Resampling.BICUBIC)


COPIES = {"exposure": second_exposure, "encoded": encoded, "resized": resized}


def found_pairs(folder, images: dict[str, Image.Image]):
    """The pairs of names that the search claims, and how many images it takes for a series."""
    records = [{"id": name, "image": f"{name}.bmp"} for name in images]
    for name, image in images.items():
        image.save(folder / f"{name}.bmp")
    similar = similar_images({"train": records}, folder, max_examples=1000)
    assert similar.pairs == len(similar.examples)
    return {tuple(sorted(pair)) for pair in similar.examples}, similar.series


def planted(originals: list[Image.Image]) -> tuple[dict[str, Image.Image], set[tuple[str, str]]]:
    """The images, of which the first nine each have a copy, three of each kind; and the pairs."""
    images = {f"{i:02}": image for i, image in enumerate(originals)}
    pairs = set()
    for n, (kind, copy_of) in enumerate([*COPIES.items()] * 3):
        images[f"{n:02} {kind}"] = copy_of(originals[n])
        pairs.add((f"{n:02}", f"{n:02} {kind}"))
    return images, pairs


@pytest.mark.parametrize("kind", ["photos", "fixed camera", "pages", "forms"])
def test_copies_are_found_and_other_images_of_the_scene_are_not(kind, tmp_path):
    background = scenery(7)
    if kind == "photos":
        originals = [scenery(100 + i) for i in range(30)]
    elif kind == "fixed camera":
        originals = [frame(background, i) for i in range(60)]
    else:
        originals = [page(i, is_form=kind == "forms") for i in range(40)]
    images, pairs = planted(originals)
    found, _ = found_pairs(tmp_path, images)
    assert found <= pairs, "no false pair"
    assert len(found) >= 8, sorted(pairs - found)


def test_frames_in_which_nothing_changes_are_a_series_and_no_pairs(tmp_path):
    still = [with_noise(scenery(3), seed) for seed in range(10)]
    images = {f"{i}": image for i, image in enumerate([*still, *(scenery(50 + i) for i in range(5))])}
    assert found_pairs(tmp_path, images) == (set(), 10)
    nothing = {"bbox": [], "category": [], "ignore": []}
    records = [{"id": name, "image": f"{name}.bmp", "width": 1, "height": 1, "objects": nothing} for name in images]
    texts = {each.title: each.text for each in find({"train": records}, [], tmp_path, FAMILIES["qwen2_5_vl"], 784)}
    assert texts["similar images"].startswith("10 image(s) look like three or more others each")
    assert texts["similar images"].endswith("If they are one series, keep it in one split.")


def test_identical_files_are_pairs_however_many_there_are(tmp_path):
    images = {f"{i}": scenery(1) for i in range(5)} | {"other": scenery(2)}
    found, series = found_pairs(tmp_path, images)
    assert len(found) == 10 and not series and not any("other" in pair for pair in found)


def test_images_without_structure_are_no_copies_of_each_other(tmp_path):
    images = {f"{i}": Image.new("RGB", SIZE, (90, 90, 90 + i)) for i in range(3)} | {"photo": scenery(1)}
    assert found_pairs(tmp_path, images) == (set(), 0)


def test_pairs_across_splits_are_counted_and_come_first(tmp_path):
    names = ["a", "a2", "b", "b2"]
    for name, seed in zip(names, (1, 1, 2, 2), strict=True):
        encoded(scenery(seed), 90 if name.endswith("2") else 70).save(tmp_path / f"{name}.bmp")
    a, a2, b, b2 = ({"id": name, "image": f"{name}.bmp"} for name in names)
    similar = similar_images({"train": [a, a2, b], "test": [b2]}, tmp_path, max_examples=1)
    assert similar == (2, 1, 0, [("b", "b2")])


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "I;16", "CMYK"])
def test_images_of_any_mode_match_their_rgb_version(mode, tmp_path):
    image = page(1, is_form=True) if mode == "1" else scenery(1)
    gray = Image.fromarray(np.asarray(image.convert("L"), dtype=np.uint16) * 257)
    (gray if mode == "I;16" else image.convert(mode)).save(tmp_path / "copy.tif")
    image.save(tmp_path / "rgb.png")
    records = [{"id": name, "image": name} for name in ("copy.tif", "rgb.png")]
    assert similar_images({"train": records}, tmp_path, 9).examples == [("copy.tif", "rgb.png")]


def test_a_second_photo_of_the_same_cells_in_another_focus_is_found(shared_data):
    folder = shared_data / "bccd_voc" / "BCCD" / "JPEGImages"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist")
    records = [{"id": path.stem, "image": path.name} for path in sorted(folder.iterdir())[:60]]
    similar = similar_images({"train": records}, folder, max_examples=9)
    assert similar == (1, 0, 0, [("BloodImage_00037", "BloodImage_00038")])


def test_a_photo_in_which_a_small_object_has_moved_is_no_copy(tmp_path):
    for name, x in (("a", 100), ("b", 300)):
        image = with_noise(scenery(1), seed=x)
        ImageDraw.Draw(image).rectangle((x, 200, x + 7, 207), fill="black")
        image.save(tmp_path / f"{name}.bmp")
    records = [{"id": name, "image": f"{name}.bmp"} for name in "ab"]
    assert similar_images({"train": records}, tmp_path, 9) == (0, 0, 0, [])


def test_a_copy_that_is_moved_by_two_percent_is_found(tmp_path):
    moved = scenery(1).rotate(0.5, Image.Resampling.BICUBIC, translate=(10, -7))
    assert found_pairs(tmp_path, {"a": scenery(1), "b": with_noise(moved, 1)}) == ({("a", "b")}, 0)


def test_a_board_is_found_in_another_exposure_but_not_after_the_next_move(tmp_path):
    pieces = [(column, row) for column in range(8) for row in (0, 1)]
    before = with_noise(board([*pieces, (2, 5)]), 1)
    for last, is_same in (((2, 5), True), ((5, 4), False)):
        turned = board([*pieces, last]).rotate(0.3, Image.Resampling.BICUBIC, translate=(2, -1))
        found, _ = found_pairs(tmp_path, {"before": before, "darker": with_noise(turned, 2, gain=0.7)})
        assert found == ({("before", "darker")} if is_same else set())


def test_overexposed_copies_are_found_among_the_frames_of_a_fixed_camera(tmp_path):
    background = scenery(7)
    images = {f"{i:02}": frame(background, i) for i in range(50)}
    pairs = set()
    for i in range(10):
        images[f"{i:02} bright"] = with_noise(images[f"{i:02}"], 100 + i, gain=1.5)
        pairs.add((f"{i:02}", f"{i:02} bright"))
    found, _ = found_pairs(tmp_path, images)
    assert found <= pairs, "no false pair"
    assert len(found) >= 9, sorted(pairs - found)
