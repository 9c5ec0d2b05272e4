"""Images without ground truth: which images are asked about, messages about unreadable and unusual ones, annotated copies, and
an evaluation that is killed."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import evaluate
from boxtune.answers.grounding import Grounding
from boxtune.common import drawing
from boxtune.common.errors import UserError
from boxtune.inference.unlabelled import draw_predictions, remove_copies, unlabelled_records, warn_of_new_sizes
from tests.helpers.records import ROOT
from tests.helpers.stated import stated_words

EMBEDDED = "assets/tiny_qwen3_vl"


def make_image(path: Path, width: int = 60, height: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), "white").save(path)
    return path


def asked(place: Path, **options) -> dict[str, tuple[int, int]]:
    records = unlabelled_records(place, ["cat"], place.parent / "out" / "pictures", **options)
    return {record["id"]: (record["width"], record["height"]) for record in records}


def test_a_folder_one_image_or_a_list_of_paths(tmp_path):
    folder = tmp_path / "images"
    make_image(folder / "a.png")
    make_image(folder / "sub" / "b.JPG", 30, 50)
    both = {"a.png": (60, 40), "sub/b.JPG": (30, 50)}
    assert asked(folder) == both
    assert asked(folder / "a.png") == {"a.png": (60, 40)}
    # As Windows editors save it. Paths are absolute or relative to the list, and keep its order.
    lines = f"images/sub/../sub/b.JPG\r\n\r\n{folder / 'a.png'}\r\n"
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert list(asked(tmp_path / "list.txt").items()) == [*reversed(both.items())]
    make_image(tmp_path / "elsewhere" / "a.png", 7, 9)
    (tmp_path / "list.txt").write_text("images/a.png\nelsewhere/a.png\n")
    assert asked(tmp_path / "list.txt") == {"images/a.png": (60, 40), "elsewhere/a.png": (7, 9)}


def test_a_folder_means_the_images_that_data_prep_would_find(tmp_path):
    folder = tmp_path / "images"
    for name in ("a.jpg", "b.ppm", "._c.jpg", ".ipynb_checkpoints/a-checkpoint.jpg"):
        make_image(folder / name)
    make_image(tmp_path / "elsewhere" / "d.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert [*asked(folder)] == ["a.jpg", "b.ppm", "linked/d.png"]


def test_only_copies_of_an_earlier_call_are_removed(tmp_path):
    copies = tmp_path / "out" / "pictures"
    for name in ("a.png.jpg", "sub/b.png.jpg", "mine.jpg"):
        make_image(copies / name)
    make_image(tmp_path / "out" / "c.png.jpg")
    predictions = tmp_path / "out" / "predictions.jsonl"
    remove_copies(predictions, copies)
    assert (copies / "a.png.jpg").is_file(), "there was no earlier call"
    # A response may hold Unicode's line separator, which does not end a line of the file.
    lines = [
        json.dumps({"id": name, "text": "\u2028"}, ensure_ascii=False) for name in ("a.png", "sub/b.png", "../c.png")
    ]
    predictions.write_text("\n".join(lines))
    remove_copies(predictions, copies)
    left = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.jpg")}
    assert left == {"pictures/mine.jpg", "c.png.jpg"}


def test_what_cannot_be_asked_about_gives_one_message(tmp_path):
    make_image(tmp_path / "a.png")
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "notes.txt").write_text("no image")
    for text, words in (
        ("a.png\n./a.png\nb.png\nb.png\n", ["a.png: 2 times", "b.png: 2 times"]),
        ("\n", ["names no images"]),
    ):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(UserError) as error:
            asked(tmp_path / "list.txt")
        assert all(word in str(error.value) for word in words)
    with pytest.raises(UserError, match="does not exist"):
        asked(tmp_path / "gone")
    with pytest.raises(UserError, match="holds no images"):
        asked(notes)
    # Results may be in the folder of the images. The copies of an earlier call are not asked about.
    make_image(tmp_path / "out" / "pictures" / "a.png.jpg")
    assert [record["id"] for record in unlabelled_records(tmp_path, ["cat"], tmp_path / "out" / "pictures")] == [
        "a.png"
    ]
    make_image(tmp_path / "shots" / "pictures" / "b.png")
    assert list(asked(tmp_path / "shots")) == ["pictures/b.png"]
    assert unlabelled_records(tmp_path / "shots", ["cat"], tmp_path / "pictures")
    with pytest.raises(UserError, match="choose another --out"):
        unlabelled_records(tmp_path / "shots", ["cat"], tmp_path / "shots" / "pictures")


def test_an_image_whose_copy_would_have_too_long_a_name_is_listed_first(tmp_path):
    make_image(tmp_path / "shots" / ("a" * 247 + ".png"))
    assert asked(tmp_path / "shots")
    make_image(tmp_path / "shots" / ("a" * 248 + ".png"))
    with pytest.raises(UserError, match="more than 255 bytes") as error:
        asked(tmp_path / "shots")
    assert error.value.problems == [str(tmp_path / "shots" / ("a" * 248 + ".png"))]


def test_all_corrupt_images_are_listed_and_can_be_left_out(tmp_path, capsys):
    folder = tmp_path / "images"
    whole = make_image(folder / "whole.png", 300, 200)
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    for suffix in ("jpg", "png", "gif", "tif", "webp", "bmp"):
        Image.fromarray(noise).save(folder / f"corrupt.{suffix}")
        data = (folder / f"corrupt.{suffix}").read_bytes()
        (folder / f"corrupt.{suffix}").write_bytes(data[: len(data) // 3])
    (folder / "empty.png").write_bytes(b"")
    make_image(folder / "thread.png", 1000, 2)
    bad = sorted(path.name for path in folder.iterdir() if path != whole)
    with pytest.raises(UserError, match="--skip-bad-images") as error:
        asked(folder)
    assert [Path(problem.split(": ")[0]).name for problem in error.value.problems] == bad
    assert asked(folder, skip_bad_images=True) == {"whole.png": (300, 200)}
    listed = capsys.readouterr().err
    assert "8 of 9 images" in listed and all(name in listed for name in bad)
    whole.unlink()
    with pytest.raises(UserError, match="no image is left, all 8 are unreadable"):
        asked(folder, skip_bad_images=True)


def a_record(name: str, width: int, height: int) -> dict:
    return {"id": name, "width": width, "height": height}


@pytest.fixture
def trained() -> Grounding:
    """On images of 640 × 480 to 800 × 600, which a budget of 512² shrinks to 0.92 and 0.74."""
    ranges = {"seen_pixels": [640 * 480, 800 * 600], "seen_aspects": [4 / 3, 4 / 3]}
    return Grounding("qwen3_vl", "", "", 1024, 512**2, 64, "base", **ranges)


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([a_record("same", 640, 480), a_record("turned", 480, 640), a_record("double", 1500, 1100)], None),
        # A photograph of 4000 × 3000 is shrunk to 0.15, the largest of training to 0.74.
        ([a_record("a", 640, 480), a_record("photo", 4000, 3000)], "1 of 2 .*scale of training \\(0.74\\).*photo.*at 0.15$"),
        ([a_record("icon", 64, 48)], "1 are far smaller or larger .*icon, 64 × 48$"),
        ([a_record("strip", 1600, 300)], "1 have another aspect ratio .*strip"),
        ([a_record("icon", 64, 48), a_record("photo", 4000, 3000), a_record("b", 5000, 3000)], "3 of 3 .*1 are.*; 2 reach"),
    ],
)  # fmt: skip
def test_images_unlike_those_of_training_give_one_warning(trained, capsys, records, words):
    warn_of_new_sizes(records, trained)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (words is not None)
    assert words is None or re.search(words, lines[0]), lines
    old = Grounding("qwen3_vl", "", "", 1024, 512**2, 64, "base")
    warn_of_new_sizes(records, old)
    assert capsys.readouterr().err == ""


def test_labels_are_drawn_with_their_scores(tmp_path):
    path = make_image(tmp_path / "a.png", 400, 300)
    objects = {"bbox": [[100, 100, 300, 200]], "category": ["RBC"], "score": [0.934]}
    draw_predictions([{"id": "sub/a.png", "image": str(path), "objects": objects}], tmp_path / "drawn")
    with Image.open(path) as image:
        drawing.draw_boxes(image, objects["bbox"], ["RBC 0.93"], "red").save(tmp_path / "wanted.jpg", quality=90)
    assert (tmp_path / "drawn" / "sub" / "a.png.jpg").read_bytes() == (tmp_path / "wanted.jpg").read_bytes()
    long = drawing.caption("x" * 500, 0.5)
    assert long.endswith("… 0.50") and len(long) <= drawing.MAX_LABEL


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    draw = np.random.default_rng(3)
    for i in range(4):
        image = Image.new("RGB", (200 + 30 * i, 160), "white")
        x, y = (int(value) for value in draw.integers(10, 60, 2))
        ImageDraw.Draw(image).rectangle((x, y, x + 70, y + 60), fill="red")
        image.save(folder / f"{i}.png")
    return folder


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def without_time(line: str) -> dict:
    return {key: value for key, value in json.loads(line).items() if key != "seconds"}


@pytest.mark.slow
def test_a_killed_evaluation_continues_and_ends_like_one_that_was_not_killed(pages, tmp_path):
    def words(out: Path) -> list[str]:
        where = ["--ckpt", EMBEDDED, "--images", str(pages), "--classes", "red square", "--out", str(out)]
        return [
            *where,
            *stated_words(),
            "--max-new-tokens",
            "40",
            "--batch-size",
            "1",
            "--export",
            "coco,yolo,supervision",
        ]

    evaluate.main(words(tmp_path / "whole"))
    out = tmp_path / "killed"
    partial = out / "predictions.jsonl.partial"
    process = subprocess.Popen([sys.executable, "evaluate.py", *words(out)], cwd=ROOT, env=os.environ)
    began = time.monotonic()
    while not (partial.is_file() and len(lines_of(partial)) >= 3) and time.monotonic() - began < 120:
        assert process.poll() is None, "it finished before it was killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = [line for line in lines_of(partial)[1:] if line.endswith("}")]
    assert 0 < len(before) < 4 and not (out / "predictions.jsonl").exists()
    evaluate.main(words(out))
    after, whole = lines_of(out / "predictions.jsonl"), lines_of(tmp_path / "whole" / "predictions.jsonl")
    assert set(before) <= {*after}, "predictions of the killed run are kept to the byte"
    assert [without_time(line) for line in after] == [without_time(line) for line in whole]
    names = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert names == sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file())
    for name in names:
        if name.name != "predictions.jsonl":
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert (out / "yolo" / "labels" / "0.png.txt").is_file() and (out / "pictures" / "0.png.jpg").is_file()
