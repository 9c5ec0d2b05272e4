"""The generated product images: repeatable, exactly labeled, varied, and readable by the programs that use them."""

import argparse
import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks.constant_box import best_constant_box, relative_boxes, score_constant_box
from boxtune.common.errors import UserError
from boxtune.data.dataset import read_info, read_records
from boxtune.data.records import image_path
from data_prep.products.geometry import bound, visible_part
from data_prep.products.packages import make_package
from data_prep.products.placing import CLOSE_TABLE, SMALLEST_TABLE, VIEWS, compose
from data_prep.products.scenes import draw_image
from data_prep.tools import nutrition

NUM_IMAGES, SEED, SIZE = 120, 0, 256


def run(*argv: object) -> None:
    parser = argparse.ArgumentParser()
    nutrition.add_arguments(parser)
    nutrition.main(parser.parse_args([str(word) for word in argv]))


def digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("nutrition") / "data"
    run("--out", directory, "--num-images", NUM_IMAGES, "--seed", SEED, "--size", SIZE)
    return directory


@pytest.fixture(scope="module")
def records(prepared) -> list[dict]:
    return [record for split in ("train", "validation", "test") for record in read_records(prepared, split)]


def test_the_prepared_set_keeps_the_contract(prepared, records):
    info = read_info(prepared)
    assert (info["name"], info["format"], info["classes"]) == ("nutrition", "nutrition", ["nutrition-table"])
    assert {split: summary["images"] for split, summary in info["splits"].items()} == {
        "train": 96,
        "validation": 12,
        "test": 12,
    }
    assert len({record["id"] for record in records}) == NUM_IMAGES == len(list((prepared / "images").iterdir()))
    for record in records:
        with Image.open(image_path(record, prepared)) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (record["width"], record["height"]))
        assert record["messages"][0]["content"] == "<image>Detect every nutrition-table in the image."


def test_the_same_seed_gives_the_same_files_and_a_larger_dataset_contains_the_smaller(prepared, tmp_path):
    run("--out", tmp_path / "again", "--num-images", 20, "--seed", SEED, "--size", SIZE)
    run("--out", tmp_path / "repeated", "--num-images", 20, "--seed", SEED, "--size", SIZE)
    assert digests(tmp_path / "again") == digests(tmp_path / "repeated")
    many, few = digests(prepared / "images"), digests(tmp_path / "again" / "images")
    assert len(few) == 20
    assert few.items() <= many.items()
    for split in ("train", "validation", "test"):
        first = (tmp_path / "again" / f"{split}.jsonl").read_text()
        assert (prepared / f"{split}.jsonl").read_text().startswith(first)


def test_another_seed_gives_other_images():
    drawn = [draw_image(seed, index, SIZE) for seed in (0, 1) for index in (0, 1)]
    assert len({one.image.tobytes() for one in drawn}) == 4


def test_images_have_zero_to_three_tables(records):
    counts = [len(record["objects"]["bbox"]) for record in records]
    assert set(counts) == {0, 1, 2, 3}
    assert 0.05 <= counts.count(0) / len(counts) <= 0.2


def largest_shares(records: list[dict], view: str) -> list[float]:
    """The share of the image that the largest table's box covers, for each image of a view with a table."""
    boxes = [relative_boxes(record) for record in records if record["view"] == view]
    return [float(np.prod(box[:, 2:] - box[:, :2], axis=1).max()) for box in boxes if len(box)]


def test_most_images_are_close_views_of_a_large_table(records):
    views = [record["view"] for record in records]
    assert set(views) == set(VIEWS)
    assert 0.7 <= views.count("close") / NUM_IMAGES <= 0.9
    smallest, largest = CLOSE_TABLE
    close, distant = largest_shares(records, "close"), largest_shares(records, "distant")
    assert smallest - 0.001 <= min(close) <= max(close) <= largest + 0.001
    assert 0.22 <= np.median(close) <= 0.4
    assert np.percentile(close, 90) > 0.4
    assert np.median(distant) < smallest


def test_both_views_have_images_without_a_table(records):
    assert {record["view"] for record in records if not record["objects"]["bbox"]} == set(VIEWS)


def test_a_close_view_without_a_table_shows_another_panel_as_large():
    """Otherwise, every large panel would be a nutrition table."""
    width, height = 320, 240
    for seed in range(15):
        (package,) = compose(np.random.default_rng(seed), width, height, 0, "close")
        parts = [visible_part(package.outline(rectangle), width, height) for _, rectangle in package.panels]
        boxes = [bound(part) for part in parts if len(part)]
        shares = [(x1 - x0) * (y1 - y0) / (width * height) for x0, y0, x1, y1 in boxes]
        assert not package.tables
        assert max(shares) >= CLOSE_TABLE[0], seed


def test_boxes_are_inside_and_large_enough_to_see(records):
    for record in records:
        width, height = record["width"], record["height"]
        for x0, y0, x1, y1 in record["objects"]["bbox"]:
            assert 0 <= x0 < x1 <= width, record["id"]
            assert 0 <= y0 < y1 <= height, record["id"]
            assert min(x1 - x0, y1 - y0) >= SMALLEST_TABLE * min(width, height) - 0.1, record["id"]


def test_boxes_are_where_the_tables_are_painted():
    """Paint each table alone as a mask through the package's own warp: the mask's bound is the label."""
    tables = jars = cut = 0
    for index in range(80):
        rng = np.random.default_rng((11, index))
        width, height = (int(side) for side in rng.integers(200, 500, 2))
        for package in compose(rng, width, height, index % 4, VIEWS[index // 4 % 2]):
            for x0, y0, x1, y1 in package.tables:
                face = Image.new("RGBA", package.face.size)
                ImageDraw.Draw(face).rectangle((x0, y0, x1 - 1, y1 - 1), fill="white")
                part, corner = package.warp(face, (width, height))
                mask = Image.new("L", (width, height))
                mask.paste(part.getchannel("A").point(lambda alpha: 255 * (alpha > 127)), corner)
                label = bound(visible_part(package.outline((x0, y0, x1, y1)), width, height))
                assert np.abs(np.subtract(mask.getbbox(), label)).max() < 1.5, (index, mask.getbbox(), label)
                tables, jars, cut = tables + 1, jars + (package.bend > 0), cut + (0 in label)
    assert tables > 60, tables
    assert jars and cut, (jars, cut)  # bent ones and cut ones were among them


def test_painted_tables_look_unlike_what_is_around_them(prepared, records):
    """Print is full of edges: the labeled parts of the images have far more of them than the rest."""
    inside, outside = [], []
    for record in records:
        with Image.open(image_path(record, prepared)) as image:
            grey = np.asarray(image.convert("L").reduce(2), dtype=float)
        edges = np.abs(np.diff(grey, axis=0))
        labelled = np.zeros(edges.shape, dtype=bool)
        for x0, y0, x1, y1 in np.array(record["objects"]["bbox"]).reshape(-1, 4) / 2:
            labelled[round(y0) : round(y1), round(x0) : round(x1)] = True
        inside.append(edges[labelled])
        outside.append(edges[~labelled])
    assert np.concatenate(inside).mean() > 1.5 * np.concatenate(outside).mean()


def test_no_constant_box_wins(prepared):
    train = read_records(prepared, "train")
    for box in best_constant_box(train).values():
        for split in ("train", "validation", "test"):
            scores = score_constant_box(read_records(prepared, split), box)
            assert scores["f1"] < 0.35, (split, scores)
            assert scores["mean_iou_gt"] < 0.35, (split, scores)


def test_the_constant_box_is_found_where_there_is_one():
    """All ground truth is at the same relative place, on images of different sizes, so one box fits all but the empty image."""
    boxes = [([10, 20, 60, 80], 100, 100), ([20, 20, 120, 80], 200, 100), ([10, 40, 60, 160], 100, 200)]
    records = [
        {"width": w, "height": h, "objects": {"bbox": [box], "category": ["t"], "ignore": [False]}}
        for box, w, h in boxes
    ]
    records.append({"width": 50, "height": 50, "objects": {"bbox": [], "category": [], "ignore": []}})
    for box in best_constant_box(records).values():
        assert score_constant_box(records, box) == {"mean_iou_gt": pytest.approx(1), "f1": pytest.approx(6 / 7)}
    np.testing.assert_allclose(best_constant_box(records)["mean_iou_gt"], [0.1, 0.2, 0.6, 0.8], atol=0.01)


def test_the_constant_box_beats_every_box_of_a_grid(records):
    """The search finds at least what trying all boxes of a coarse grid finds."""
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    grid = [[a, b, c, d] for a in ticks for b in ticks for c in ticks for d in ticks if a < c and b < d]
    chosen = best_constant_box(records)
    for metric, box in chosen.items():
        best = score_constant_box(records, box)[metric]
        assert best >= max(score_constant_box(records, candidate)[metric] for candidate in grid[::3])
        assert best > 0


def test_a_single_image_makes_a_training_split_only(tmp_path):
    run("--out", tmp_path / "one", "--num-images", 1, "--size", SIZE)
    assert list(read_info(tmp_path / "one")["splits"]) == ["train"]


@pytest.mark.parametrize("folder", [False, True])
def test_open_food_facts_columns_as_datasets_reads_them(tmp_path, prepared, folder):
    datasets = pytest.importorskip("datasets")
    target = tmp_path / ("parquet" if folder else "all.parquet")
    run("--as-openfoodfacts", target, "--num-images", 20, "--seed", SEED, "--size", SIZE)
    files = (
        {"train": str(target / "train.parquet"), "val": str(target / "val.parquet")}
        if folder
        else {"train": str(target)}
    )
    assert sorted(os.listdir(tmp_path)) == [target.name]  # nothing temporary stays behind
    tables = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert {split: len(table) for split, table in tables.items()} == (
        {"train": 18, "val": 2} if folder else {"train": 20}
    )
    features = tables["train"].features
    assert list(features) == ["image_id", "image", "width", "height", "meta", "objects"]
    assert isinstance(features["image"], datasets.Image)
    assert features["width"] == datasets.Value("int64")
    assert features["objects"]["bbox"] == datasets.List(datasets.List(datasets.Value("float32")))
    expected = {
        record["id"]: record for split in ("train", "validation", "test") for record in read_records(prepared, split)
    }
    for table in tables.values():
        for row in table:
            record = expected[row["image_id"]]
            assert row["image"].size == (row["width"], row["height"]) == (record["width"], record["height"])
            assert row["objects"]["category_name"] == record["objects"]["category"]
            assert row["objects"]["category_id"] == [0] * len(record["objects"]["category"])
            boxes_yxyx = np.array(row["objects"]["bbox"]).reshape(-1, 4)
            np.testing.assert_allclose(boxes_yxyx[:, [1, 0, 3, 2]], relative_boxes(record), atol=1e-6)


def test_the_parquet_holds_the_same_jpeg_bytes_as_the_prepared_set(tmp_path, prepared):
    datasets = pytest.importorskip("datasets")
    run("--as-openfoodfacts", tmp_path / "few.parquet", "--num-images", 3, "--seed", SEED, "--size", SIZE)
    table = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "few.parquet"), cache_dir=str(tmp_path / "cache"), split="train"
    ).cast_column("image", datasets.Image(decode=False))
    for row in table:
        assert row["image"]["bytes"] == (prepared / "images" / f"{row['image_id']}.jpg").read_bytes()
        Image.open(io.BytesIO(row["image"]["bytes"])).verify()


def test_all_impossible_arguments_are_named_at_once():
    with pytest.raises(UserError) as caught:
        run("--num-images", 0, "--seed", -1, "--size", 8)
    assert [problem.split()[0] for problem in caught.value.problems] == ["give", "--num-images", "--seed", "--size"]


def test_nothing_is_overwritten_unasked(tmp_path):
    kept = tmp_path / "data" / "mine.txt"
    kept.parent.mkdir()
    kept.write_text("precious")
    for extra in ([], ["--overwrite"]):
        with pytest.raises(UserError):
            run("--out", kept.parent, "--num-images", 1, *extra)
    parquet = tmp_path / "a.parquet"
    parquet.write_text("precious")
    (tmp_path / "b.parquet").mkdir()
    with pytest.raises(UserError, match=r"a\.parquet"):
        run("--as-openfoodfacts", parquet, "--num-images", 1)
    with pytest.raises(UserError, match="These are folders"):
        run("--as-openfoodfacts", tmp_path / "b.parquet", "--num-images", 1, "--overwrite")
    assert kept.read_text() == parquet.read_text() == "precious" and not os.listdir(tmp_path / "b.parquet")
    assert sorted(os.listdir(tmp_path)) == ["a.parquet", "b.parquet", "data"]


def test_overwrite_replaces_the_whole_set(tmp_path):
    run("--out", tmp_path / "set", "--num-images", 3, "--size", SIZE)
    run("--out", tmp_path / "set", "--num-images", 2, "--size", SIZE, "--overwrite")
    lines = (tmp_path / "set" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["product_000000", "product_000001"]
    assert len(os.listdir(tmp_path / "set" / "images")) == 2
    assert os.listdir(tmp_path) == ["set"]


def test_packages_can_be_a_few_pixels_wide():
    """Jars are bent in strips, of which a narrow one has fewer."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        package = make_package(rng, 14, 40, 0.1, tables=0)
        part, _ = package.moved((50, 50)).warp(package.face, (100, 100))
        assert part.getbbox()
