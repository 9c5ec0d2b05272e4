"""data_prep: images that are rotated by EXIF, images of every mode, and bad images."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from boxtune.data.images import load_image
from tests.helpers.sources import coco, failure, prepared, voc_xml


def red_rectangle(path: Path, orientation: int, size=(60, 40), box=(10, 5, 30, 20)) -> None:
    """A white image with a red rectangle, both in stored pixels."""
    image = Image.new("RGB", size, "white")
    image.paste((255, 0, 0), box)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)


def red_box(path: str) -> list[int]:
    """[x0, y0, x1, y1] of the red pixels of the upright image."""
    pixels = np.asarray(load_image(path)).astype(int)
    rows, columns = np.nonzero(pixels[..., 1] < 128)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_boxes_of_the_stored_pixels_rotate_with_the_image(tmp_path, capsys, orientation, suffix):
    red_rectangle(tmp_path / f"a.{suffix}", orientation)
    (tmp_path / "a.xml").write_text(voc_xml(f"a.{suffix}", (60, 40), [("red", 0, [10, 5, 30, 20])]))
    records, problems, _ = prepared(capsys, "voc", tmp_path, "--out", tmp_path / "out")
    record = records["a"]
    assert (record["width"], record["height"]) == (40, 60) == load_image(record["image"]).size
    assert record["objects"]["bbox"] == [red_box(record["image"])] and not problems


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_boxes_of_the_upright_image_stay(tmp_path, capsys, orientation):
    red_rectangle(tmp_path / "a.png", orientation)
    expected = [int(value) for value in red_box(tmp_path / "a.png")]
    upright = load_image(tmp_path / "a.png").size
    (tmp_path / "a.xml").write_text(voc_xml("a.png", upright, [("red", 0, expected)]))
    records, problems, _ = prepared(capsys, "voc", tmp_path, "--out", tmp_path / "out")
    assert records["a"]["objects"]["bbox"] == [expected] and not problems


@pytest.mark.parametrize(("size", "fraction_box"), [({}, [0, 0, 0.5, 0.25]), ({"width": 60, "height": 40}, None)])
def test_fractions_refer_to_the_stated_size_or_else_the_upright_image(tmp_path, capsys, size, fraction_box):
    red_rectangle(tmp_path / "a.png", 6, box=(0, 20, 15, 40))
    expected = red_box(tmp_path / "a.png")
    box = fraction_box or [0, 0.5, 0.25, 1]
    entry = {"image": "a.png", **size, "objects": [{"class": "red", "bbox_aabb": box}]}
    (tmp_path / "a.json").write_text(json.dumps([entry]))
    records, *_ = prepared(capsys, "aabb", tmp_path, "--out", tmp_path / "out")
    assert records["a"]["objects"]["bbox"] == [expected] and "source_width" not in records["a"]


def test_a_wrong_stated_size_is_listed_and_its_boxes_are_kept(tmp_path, capsys):
    source = coco(tmp_path / "in", [[[10, 20, 30, 40]]])
    file = source / "annotations.json"
    file.write_text(file.read_text().replace('"width": 100, "height": 80', '"width": 200, "height": 160'))
    records, problems, printed = prepared(capsys, "coco", source, "--out", tmp_path / "out")
    assert records["p0"]["objects"]["bbox"] == [[10, 20, 40, 60]] and records["p0"]["width"] == 100
    assert [entry["kind"] for entry in problems] == ["size_mismatch"]
    assert (
        "200 × 160" in problems[0]["value"]
        and "the size of 1 image(s) differs from the size in their annotation" in printed
    )


def save_mode(mode: str, path: Path) -> None:
    rng = np.random.default_rng(0)
    if mode in {"I;16", "I", "F"}:
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        Image.fromarray(rng.integers(0, 60000, (30, 40)).astype(kind)).save(path)
    else:
        gray = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8))
        (gray.convert("L").convert(mode) if mode == "LA" else gray.convert(mode)).save(path)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("1", "png"),
        ("P", "png"),
        ("RGBA", "png"),
        ("LA", "png"),
        ("I;16", "png"),
        ("I;16", "tif"),
        ("I", "tif"),
        ("F", "tif"),
        ("CMYK", "jpg"),
        ("L", "bmp"),
        ("P", "gif"),
        ("RGB", "webp"),
    ],
)
def test_images_of_any_mode_convert(tmp_path, capsys, mode, suffix):
    save_mode(mode, tmp_path / f"a.{suffix}")
    assert Image.open(tmp_path / f"a.{suffix}").mode == mode
    (tmp_path / "a.csv").write_text(f"a.{suffix},1,2,10,20,thing\n")
    records, problems, _ = prepared(capsys, "csv", tmp_path, "--out", tmp_path / "out")
    assert records["a"]["objects"]["bbox"] == [[1, 2, 10, 20]] and not problems


def bad_images(folder: Path) -> Path:
    """Two good images, and one that is missing, two that are corrupt, one that is text, and one with an extreme aspect ratio."""
    coco(folder, [[[1, 1, 20, 20]]] * 7)
    (folder / "p0.png").unlink()
    corrupt = folder / "p1.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)).save(corrupt)
    corrupt.write_bytes(corrupt.read_bytes()[:9000])
    assert Image.open(corrupt).size == (100, 80)  # opening alone does not reveal it
    corrupt_jpeg = folder / "p5.png"
    Image.effect_noise((100, 80), 90).save(corrupt_jpeg, format="JPEG")
    corrupt_jpeg.write_bytes(corrupt_jpeg.read_bytes()[:2000])
    (folder / "p2.png").write_text("no image")
    Image.new("L", (402, 2)).save(folder / "p3.png")
    Image.new("L", (400, 2)).save(folder / "p4.png")
    return folder


def test_all_bad_images_are_listed_and_nothing_is_written(tmp_path, capsys):
    message = failure(capsys, "coco", bad_images(tmp_path / "in"), "--out", tmp_path / "out")
    assert "5 problem(s)" in message and "--skip-bad-images" in message
    lines = message.splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == ["  - p0", "  - p1", "  - p2", "  - p3", "  - p5"]
    expected = ["missing", "corrupt", "not an image", "aspect ratio of 200", "corrupt"]
    assert all(word in line for word, line in zip(expected, lines, strict=True)), message


def test_if_no_image_is_found_the_message_is_about_the_folder(tmp_path, capsys):
    source = coco(tmp_path / "in", [[]] * 9)
    (tmp_path / "elsewhere").mkdir()
    message = failure(capsys, "coco", source, "--images", tmp_path / "elsewhere", "--out", tmp_path / "out")
    assert "none of its 9 images can be read" in message and "--images" in message
    assert len(message.splitlines()) == 6


def test_skip_bad_images_drops_and_lists_them(tmp_path, capsys):
    source = bad_images(tmp_path / "in")
    records, problems, _ = prepared(capsys, "coco", source, "--out", tmp_path / "out", "--skip-bad-images")
    assert sorted(records) == ["p4", "p6"]
    assert [(entry["id"], entry["kind"]) for entry in problems if entry["kind"] == "bad_image"] == [
        (f"p{i}", "bad_image") for i in (0, 1, 2, 3, 5)
    ]
    for i in (4, 6):
        (source / f"p{i}.png").unlink()
    message = failure(capsys, "coco", source, "--out", tmp_path / "o", "--skip-bad-images")
    assert "so none is left" in message and "If the images are in another folder, name it with --images" in message


def test_the_message_suggests_the_images_option_if_images_are_missing(tmp_path, capsys):
    """Not if --images is given, or if images are corrupt rather than missing."""
    source = coco(tmp_path / "in", [[[1, 1, 20, 20]]] * 3)
    (source / "p0.png").write_bytes(b"corrupt")
    assert "or name their folder" not in failure(capsys, "coco", source, "--out", tmp_path / "o")
    (source / "p0.png").unlink()
    assert "or name their folder with --images." in failure(capsys, "coco", source, "--out", tmp_path / "o")
    message = failure(capsys, "coco", source, "--images", source, "--out", tmp_path / "o")
    assert "missing" in message and "or name their folder" not in message


def test_a_header_of_a_giant_image_cannot_exhaust_memory(tmp_path, capsys):
    source = coco(tmp_path / "in", [[[1, 1, 20, 20]]] * 2)
    for name, data in (("p0.png", b"P6 60000 60000 255\n"), ("p1.png", giant_png())):
        (source / name).write_bytes(data + b"\0" * 100)
    assert failure(capsys, "coco", source, "--out", tmp_path / "out").count("claims 60000 × 60000") == 2


def giant_png() -> bytes:
    header = b"IHDR" + (60000).to_bytes(4) * 2 + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4) + header + zlib.crc32(header).to_bytes(4) + (9000).to_bytes(4) + b"IDAT"
    )


def test_any_error_of_a_decoder_on_a_corrupt_file_becomes_an_oserror(tmp_path):
    """Fuzzing found bytes on which Pillow's AVIF decoder raises RuntimeError, its BMP decoder OverflowError, and so on."""

    class Decoder(ImageFile.ImageFile):
        format = "FAKE"

        def _open(self):
            self._size, self._mode = (4, 4), "RGB"

        def load(self):
            raise OverflowError("size does not fit in an int")

    Image.register_open("FAKE", Decoder, lambda prefix: prefix.startswith(b"FAKE"))
    try:
        (tmp_path / "a.fake").write_bytes(b"FAKE")
        with pytest.raises(OSError, match="OverflowError: size does not fit"):
            load_image(tmp_path / "a.fake")
    finally:
        Image.OPEN.pop("FAKE")
        Image.ID.remove("FAKE")
