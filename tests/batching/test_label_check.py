"""`make check` must accept correct setups and catch every setup that shifts boxes."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from transformers import AutoConfig

import check_recipe
from boxtune.answers.codecs import CODECS
from boxtune.batching.encoder import expected_input_size
from boxtune.batching.label_check import check_batch
from boxtune.data.boxes import box_xyxy_to_xywh
from boxtune.data.dataset import read_info, read_records
from boxtune.models.config import codec_for
from boxtune.models.processors import set_pixel_budget
from tests.helpers.collators import as_examples, make_collator
from tests.helpers.records import FAMILIES

BUDGET = {"min_pixels": None, "max_pixels": 30_000}


def check(collator, records, family, folder, ground_truth=None):
    """Problems that the check finds when `collator` renders `records` and the dataset has `ground_truth`."""
    batch = collator(as_examples(*records))
    codec = codec_for(AutoConfig.from_pretrained(folder))
    checked = check_batch(batch, ground_truth or records, collator.processor, codec, collator.grounding)
    return [problem for example in checked for problem in example.problems]


@pytest.fixture
def records(squares):
    return [record for record in read_records(squares, "train") if record["objects"]["bbox"]][:6]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_correct_setup_passes(tiny_models, squares, records, family):
    collator = make_collator(tiny_models[family], squares, **BUDGET)
    assert check(collator, records, family, tiny_models[family]) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_image_shown_is_the_one_in_the_batch(tiny_models, squares, records, family):
    collator = make_collator(tiny_models[family], squares, **BUDGET)
    batch = collator(as_examples(*records))
    checked = check_batch(batch, records, collator.processor, collator.codec, collator.grounding)
    for example in checked:
        want = collator.load(example.record).resize(example.image.size)
        assert example.image.size[::-1] == example.input_size
        difference = np.abs(np.asarray(example.image, dtype=float) - np.asarray(want, dtype=float))
        # The two resizing methods differ only along the edges of the squares.
        assert np.median(difference) <= 2
        assert difference.mean() < 6


def broken_records(records, change):
    return [
        record | {"objects": record["objects"] | {"bbox": [change(box, record) for box in record["objects"]["bbox"]]}}
        for record in records
    ]


def swap_axes(box, record):
    return [box[1], box[0], box[3], box[2]]


def as_xywh(box, record):
    return box_xyxy_to_xywh([box])[0].tolist()


@pytest.mark.parametrize("change", [swap_axes, as_xywh])
@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_box_conventions_are_caught(tiny_models, squares, records, family, change):
    collator = make_collator(tiny_models[family], squares, **BUDGET)
    problems = check(collator, broken_records(records, change), family, tiny_models[family], ground_truth=records)
    assert len(problems) >= len(records) // 2


def test_unresized_pixels_are_caught(tiny_models, squares, records):
    """Coordinates of the original image while the model sees a resized one: the most common failure of other projects."""
    collator = make_collator(tiny_models["qwen2_5_vl"], squares, **BUDGET)
    original = collator.encoder.encode
    collator.encoder.encode = lambda record, *sizes: original(record, (record["height"], record["width"]))
    batch = collator(as_examples(*records))
    codec = CODECS["qwen2_5_vl"]
    checked = check_batch(batch, records, collator.processor, codec, collator.grounding)
    assert sum(bool(example.problems) for example in checked) >= len(records) - 1


def test_coordinates_of_another_budget_are_caught(tiny_models, squares, records):
    collator = make_collator(tiny_models["qwen2_5_vl"], squares, **BUDGET)
    other = make_collator(tiny_models["qwen2_5_vl"], squares, min_pixels=None, max_pixels=8_000)
    original = collator.encoder.encode

    def encode(record, *sizes):
        return original(record, expected_input_size(other.processor, (record["height"], record["width"])))

    collator.encoder.encode = encode
    batch = collator(as_examples(*records))
    checked = check_batch(batch, records, collator.processor, CODECS["qwen2_5_vl"], collator.grounding)
    assert all("more than rounding" in example.problems[0] for example in checked)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_budget_that_the_checkpoint_would_not_store_is_caught(tiny_models, squares, records, family):
    collator = make_collator(tiny_models[family], squares, **BUDGET)
    set_pixel_budget(collator.processor, None, 60_000)
    assert any("pixel budget" in problem for problem in check(collator, records, family, tiny_models[family]))


@pytest.mark.parametrize(("family", "wrong"), [(f, w) for f in FAMILIES for w in FAMILIES if f != w])
def test_the_codec_of_another_family_is_caught(tiny_models, squares, records, family, wrong):
    collator = make_collator(tiny_models[family], squares, **BUDGET)
    collator.encoder.codec = CODECS[wrong]
    collator.grounding = replace(collator.grounding, codec=wrong)
    assert len(check(collator, records, family, tiny_models[family])) >= len(records) - 1


def run_check(squares, tmp_path, *extra):
    with pytest.raises(SystemExit) as stop:
        check_recipe.main(
            ["--config", "tiny_nutrition_qlora", "--data_dir", str(squares), "--output_dir", str(tmp_path), *extra]
        )
        raise SystemExit(0)
    return stop.value.code


def test_the_command_passes_and_draws_the_examples(squares, tmp_path, capsys):
    assert run_check(squares, tmp_path) == 0
    assert "16 of 16 sampled examples decode back to the boxes of the prepared dataset" in capsys.readouterr().out
    page = (tmp_path / "check.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 16
    assert "red square" in page


def test_tiles_decode_back_to_their_boxes(squares, tmp_path, capsys):
    """The sample is drawn from whole images and tiles."""
    assert run_check(squares, tmp_path, "--tiles", "100") == 0
    printed, page = capsys.readouterr().out, (tmp_path / "check.html").read_text(encoding="utf-8")
    assert "32 of 32 sampled examples decode back to the boxes" in printed and "(tile " in page


def test_irrelevant_examples_are_checked_and_drawn(squares, tmp_path, capsys):
    words = ("--irrelevant_images", "generated", "--irrelevant_share", "0.2", "--irrelevant_answer", "无关图片")
    assert run_check(squares, tmp_path, *words) == 0
    printed, page = capsys.readouterr().out, (tmp_path / "check.html").read_text(encoding="utf-8")
    assert "20 of 20 sampled examples decode back to the boxes" in printed and page.count("无关图片") >= 4


def test_a_class_without_training_objects_is_named(squares, tmp_path, capsys):
    shutil.copytree(squares, tmp_path / "data")
    records = list(read_records(squares, "validation"))
    name, other = read_info(squares)["classes"][0], "blue moon"
    for record in records:
        record["objects"]["category"] = [other if label == name else label for label in record["objects"]["category"]]
    (tmp_path / "data" / "validation.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    info = read_info(squares)
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(info | {"classes": [*info["classes"], other]}))
    run_check(tmp_path / "data", tmp_path)
    count = sum(record["objects"]["category"].count(other) for record in records)
    assert (
        count
        and f"no object in training, but in evaluation, of class {other} ({count} in validation)"
        in capsys.readouterr().err
    )


def test_examples_without_boxes_prove_nothing(squares, tmp_path, capsys):
    """Nothing was compared, so nothing decodes back."""
    shutil.copytree(squares, tmp_path / "data")
    records = list(read_records(squares, "train"))
    bare = [record | {"objects": {"bbox": [], "category": [], "ignore": []}} for record in records]
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in bare))
    run_check(tmp_path / "data", tmp_path)
    out = capsys.readouterr().out
    assert f"no boxes were checked: none of the {len(bare)} sampled examples contains any" in out
    (page,) = tmp_path.rglob("check.html")
    assert "decode back" not in out + page.read_text() and "No box was checked" in page.read_text()


def test_the_command_shows_twenty_overlong_examples_and_the_remedy(squares, tmp_path, capsys):
    assert run_check(squares, tmp_path, "--max_length", "80") == 1
    out = capsys.readouterr()
    longest = int(re.search(r"the longest has (\d+) tokens", out.out).group(1))
    remedy = f"22 of 22 examples exceed max_length 80; raise max_length to {longest}, lower max_pixels, or set `overlong: drop`"
    assert remedy in out.err
    assert out.err.count("tokens (image ") == 20 and f": {longest} tokens" in out.err.splitlines()[1]
    assert "… and 2 more. All 22 by kind:" in out.err
    (page,) = tmp_path.rglob("check.html")
    text = page.read_text()
    assert f"raise max_length to {longest}" in text and text.count("tokens (image ") == 20
    assert text.index("data:image/jpeg") < text.index("tokens (image ")  # the images come first
    # The remedy works.
    assert run_check(squares, tmp_path, "--max_length", str(longest)) == 0
    assert "raise max_length" not in capsys.readouterr().err
