"""data_prep show: objects too small for a budget, duplicates, similar names, and the page itself."""

import random
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from boxtune.data.dataset import write_dataset
from boxtune.families import FAMILIES
from data_prep.__main__ import main
from data_prep.tools.duplicates import duplicate_boxes, similar_names
from data_prep.tools.object_sizes import image_tokens, keeping_budget, too_small

QWEN = FAMILIES["qwen2_5_vl"]


def record(name: str, boxes: list, size=(1000, 1000), labels: list[str] | None = None, image: str = "") -> dict:
    labels = labels or ["cell"] * len(boxes)
    return {
        "id": name,
        "image": image or f"{name}.png",
        "width": size[0],
        "height": size[1],
        "objects": {"bbox": boxes, "category": labels, "ignore": [False] * len(boxes)},
        "messages": [
            {"role": "user", "content": "<image>Detect every cell in the image."},
            {"role": "assistant", "content": "<boxes>"},
        ],
    }


def scenery(path, seed: int, shift: int = 0, quality: int | None = None, size: int = 300):
    """An image with some structure of its own; `shift` and `quality` make near copies."""
    draw_random = random.Random(seed)
    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(25):
        x, y, r = (draw_random.uniform(0, size), draw_random.uniform(0, size), draw_random.uniform(20, 70))
        color = tuple(draw_random.randrange(256) for _ in range(3))
        draw.ellipse((x - r + shift, y - r, x + r + shift, y + r), fill=color)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **({"quality": quality} if quality else {}))
    return path


def test_an_object_is_too_small_where_it_is_thinner_than_a_patch():
    """An image of 1000 × 1000 shrinks to half its sides at 250,000 pixels: 28 px become 14, a patch of Qwen2.5-VL."""
    records = [record("a", [[0, 0, 28, 500], [0, 0, 27, 500], [0, 0, 500, 27]])]
    assert too_small(records, QWEN, 250_000).tolist() == [False, True, True]
    assert too_small(records, QWEN, 4_000_000).tolist() == [False] * 3  # images are not enlarged
    assert too_small(records, FAMILIES["qwen3_vl"], 250_000).tolist() == [True] * 3


def test_the_suggested_budget_keeps_objects_that_are_large_enough_in_the_original():
    draw = np.random.default_rng(0)
    records = [record(str(i), [[0, 0, float(side), 900]]) for i, side in enumerate(draw.uniform(5, 400, 400))]
    budget = keeping_budget(records, QWEN)
    resolved = [r for r in records if r["objects"]["bbox"][0][2] >= 14]
    assert budget % 784 == 0
    assert too_small(resolved, QWEN, budget).mean() <= 0.01 < too_small(resolved, QWEN, budget * 0.9).mean()
    assert keeping_budget([record("a", [])], QWEN) is None
    assert image_tokens(records[:1], QWEN, 784_000).tolist() == [1000]


def test_duplicate_boxes():
    boxes = [[10, 10, 110, 110], [10, 10, 110, 111], [10, 10, 110, 60], [10, 10, 110, 110]]
    found = duplicate_boxes([record("a", boxes, labels=["x", "x", "x", "y"]), record("b", boxes[:1])])
    assert [(name, label) for name, label, _ in found] == [("a", "x")] and found[0][2] == pytest.approx(100 / 101)


@pytest.mark.parametrize(
    ("classes", "alike"),
    [
        (["cat", "Cat"], True),
        (["cat", "cats"], True),
        (["nutrition-table", "nutrition table"], True),
        (["platelets", "platelet s"], True),
        (["bicycle", "bycicle"], True),
        (["part 1", "part 2"], False),
        (["grade A", "grade B"], False),
        (["cat", "car"], False),
        (["RBC", "WBC"], False),
        (["table", "title"], False),
        (["C++", "C#"], False),
        (["<5", ">5"], False),
    ],
)
def test_similar_names(classes, alike):
    assert bool(similar_names(classes)) == alike


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "images"
    paths = [str(scenery(folder / f"{i}.png", seed=i)) for i in range(4)]
    copy = str(scenery(folder / "copy.jpg", seed=0, quality=40))
    boxes = [[10, 10, 110, 110], [10, 10, 110, 111], [50, 200, 58, 290]]
    splits = {
        "train": [record(f"t{i}", boxes, (300, 300), ["cell", "cell", "Cells"], path) for i, path in enumerate(paths)],
        "validation": [record("v<b>", [], (300, 300), image=copy)],
    }
    write_dataset(tmp_path / "data", name="d", source_format="x", classes=["cell", "Cells"], splits=splits, problems=[])
    return tmp_path / "data"


@pytest.mark.parametrize("flag", ["--num-images", "--pictures"])
def test_the_page_lists_suspicious_findings(data, capsys, flag):
    main(["show", str(data), "--max-pixels", "22500", flag, "3"])
    printed, page = capsys.readouterr().out, data.with_name("data.html").read_text()
    assert (
        "too small: 4 of 12 objects are thinner than a patch (14 px) at max_pixels 22500; 4 of them are so thin in"
        in printed
    )
    assert (
        "duplicate boxes: 4 pair(s)" in printed
        and "Remove one box of each pair" in printed
        and "similar names: " in printed
    )
    assert (
        "similar images: 1 pair(s) of images look like the same photo, " in printed
        and "1 of them are in diff" in printed
    )
    assert "Compare the examples." in printed and "if they are copies, keep only one" in printed
    assert "nothing suspicious" not in printed
    assert "<td>22500</td>" in page and "this page&#39;s --max-pixels" in page
    assert "t0 (train) and v&lt;b&gt; (validation)" in page and "&#39;cell&#39; and &#39;Cells&#39;" in page
    assert page.count("data:image/jpeg;base64,") == 3
    assert not re.search(r"(src|href)=\"https?:", page)


def test_a_clean_dataset_has_no_findings(tmp_path, capsys):
    path = str(scenery(tmp_path / "a.png", 1))
    splits = {"train": [record("a", [[10, 10, 110, 110]], (300, 300), image=path)]}
    write_dataset(tmp_path / "d", name="d", source_format="x", classes=["cell"], splits=splits, problems=[])
    main(["show", str(tmp_path / "d"), "--out", str(tmp_path / "page.html")])
    assert "Nothing suspicious" in (tmp_path / "page.html").read_text()
    assert capsys.readouterr().out == f"nothing suspicious\nwritten to {tmp_path / 'page.html'}\n"


def test_images_that_are_too_long_are_named_with_the_remedy(tmp_path, capsys):
    members = []
    for name, size in (("fine", (300, 100)), ("wide", (301, 100)), ("high", (40, 200))):
        Image.new("RGB", size, "white").save(tmp_path / f"{name}.png")
        members.append(record(name, [[5, 5, 35, 65]], size, image=str(tmp_path / f"{name}.png")))
    write_dataset(tmp_path / "d", name="d", source_format="x", classes=["cell"], splits={"train": members}, problems=[])
    main(["show", str(tmp_path / "d")])
    printed = capsys.readouterr().out
    assert "long images: 2 of 3 images are longer than 3:1." in printed and "Set `tiles` in the recipe" in printed
    page = (tmp_path / "d.html").read_text()
    assert "high: 40 × 200, 5.0:1" in page and "wide: 301 × 100, 3.0:1" in page and "fine: 300 × 100" not in page


@pytest.mark.parametrize("splits", [("train", "test"), ()])
def test_a_split_without_objects_that_count_is_suspicious(tmp_path, capsys, splits):
    path = str(scenery(tmp_path / "a.png", 1))
    members = {
        "train": [record("a", [[10, 10, 110, 110]], (300, 300), image=path)],
        "test": [record("b", [[10, 10, 110, 110]], (300, 300), image=str(scenery(tmp_path / "b.png", 2)))],
    }
    members["test"][0]["objects"]["ignore"] = [True]
    splits = {split: members[split] for split in splits}
    write_dataset(tmp_path / "d", name="d", source_format="x", classes=["cell"], splits=splits, problems=[])
    main(["show", str(tmp_path / "d")])
    assert f"no objects: no object counts in {'test' if splits else 'any split'}, " in capsys.readouterr().out
    page = (tmp_path / "d.html").read_text()
    assert "Nothing suspicious" not in page
    assert ("test: 1 image(s), 1 ignored object(s)" in page) == bool(splits)


def test_the_page_cannot_replace_a_folder(data, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["show", str(data), "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert f"name a file, such as {tmp_path / 'show.html'}." in capsys.readouterr().err


def test_unreadable_images_are_all_listed(data, capsys):
    (data.parent / "images" / "1.png").write_bytes(b"corrupt")
    (data.parent / "images" / "2.png").unlink()
    with pytest.raises(SystemExit) as stop:
        main(["show", str(data)])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and "2 image(s) cannot be read" in message and "t1: " in message and "t2: " in message


@pytest.mark.parametrize(
    "args", [["--max-pixels", "100"], ["--pictures", "-1"], ["--num-images", "-1"], ["--family", "gpt"]]
)
def test_invalid_arguments(data, args):
    with pytest.raises(SystemExit) as stop:
        main(["show", str(data), *args])
    assert stop.value.code == 2 and not data.with_name("data.html").exists()
