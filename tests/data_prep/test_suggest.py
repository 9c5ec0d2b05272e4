"""data_prep recipe: a recipe that loads, whose estimates hold for the real tokens, and whose reasons follow from the data."""

import re
import shlex

import pytest
import yaml
from PIL import Image

from boxtune.answers.codecs import CODECS
from boxtune.answers.conversation import SYSTEM_PROMPT, format_sentence
from boxtune.answers.grounding import Grounding
from boxtune.batching.collator import DetectionCollator
from boxtune.batching.lengths import measure
from boxtune.data.dataset import read_records, write_dataset
from boxtune.models.processors import load_processor
from boxtune.training.recipe import load_recipe
from data_prep.__main__ import main


def record(name: str, size: tuple[int, int], boxes: list, labels: list[str], asked: str) -> dict:
    return {
        "id": name,
        "image": f"/nowhere/{name}.png",
        "width": size[0],
        "height": size[1],
        "objects": {"bbox": boxes, "category": labels, "ignore": [False] * len(boxes)},
        "messages": [
            {"role": "user", "content": f"<image>Detect every {asked} in the image."},
            {"role": "assistant", "content": "<boxes>"},
        ],
    }


@pytest.fixture
def data(tmp_path):
    """Sixty images of two sizes with up to 25 objects; the thinnest is 20 px on an image of 2000 px."""
    classes = ["red blood cell", "white blood cell"]
    records = []
    for i in range(60):
        boxes = [[50 * j, 100, 50 * j + 20 + j, 900] for j in range(i % 26)]
        labels = [classes[j % 2] for j in range(len(boxes))]
        records.append(record(f"p{i}", [(2000, 1500), (1400, 1000)][i % 2], boxes, labels, " and ".join(classes)))
    splits = {"train": records[:50], "validation": records[50:]}
    write_dataset(tmp_path / "cells", name="cells", source_format="voc", classes=classes, splits=splits, problems=[])
    return tmp_path / "cells"


def suggested(data, model: str) -> dict:
    out = data.parent / "recipe.yaml"
    main(["recipe", str(data), "--model", str(model), "--out", str(out), "--overwrite"])
    return yaml.safe_load(out.read_text())


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_the_recipe_loads_and_no_example_exceeds_it(data, tiny_models, family):
    """The lengths are counted by the real tokenizer and processor of the family."""
    values = suggested(data, tiny_models[family])
    recipe = load_recipe(["--config", str(data.parent / "recipe.yaml"), "--requires_gpu", "false", "--bf16", "false"])
    assert recipe.options.data_dir == str(data)
    processor = load_processor(str(tiny_models[family]), None, values["min_pixels"], values["max_pixels"])
    codec = CODECS[family]
    grounding = Grounding(
        codec=family,
        system_prompt=SYSTEM_PROMPT,
        format_sentence=format_sentence(codec),
        min_pixels=values["min_pixels"],
        max_pixels=values["max_pixels"],
        max_new_tokens=1,
        base_model="",
    )
    collator = DetectionCollator(processor, grounding, data)
    longest = max(
        entry.total
        for split in ("train", "validation")
        for entry in measure(read_records(data, split), collator.encoder)
    )
    assert longest <= values["max_length"] < 1.6 * longest


def test_values_follow_from_the_data_and_have_reasons(data, capsys):
    values = suggested(data, "Qwen/Qwen2.5-VL-3B-Instruct")
    text = (data.parent / "recipe.yaml").read_text()
    # 99 % of the objects are thicker than 20 px, so the sides of images of 3 million pixels can shrink to 14 / 20.
    assert 0.8 * 3_000_000 * 0.49 < values["max_pixels"] <= 3_000_000 * 0.49 + 784
    assert values["requires_gpu"] and values["eval_strategy"] == "epoch"
    examples = values["per_device_train_batch_size"] * values["gradient_accumulation_steps"]
    steps = -(-50 // examples) * values["num_train_epochs"]
    assert f"about {steps} steps" in text and 200 <= steps <= 400
    assert "# recipe: 60 images, " in text and "and 25 objects in" in text
    check = f".venv/bin/python check_recipe.py --config {data.parent / 'recipe.yaml'}"
    assert f"next: {check}\n" in capsys.readouterr().out
    # `make` would look for it in recipes.
    assert f"#   {check} " in text and f"#   .venv/bin/python train_sft.py --config {data.parent}" in text
    assert "RECIPE=" not in text


def test_a_recipe_in_recipes_is_run_by_make(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    main(["recipe", str(data), "--model", "Qwen/Qwen2.5-VL-3B-Instruct"])
    text = (tmp_path / "recipes" / "cells.yaml").read_text()
    assert "#   make check RECIPE=cells " in text and "#   make train RECIPE=cells\n" in text
    assert "next: make check RECIPE=cells\n" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_the_command_that_the_recipe_names_prints_its_number(family, tmp_path, tiny_models, capsys):
    """By default, `show` counts at another budget and for another family."""
    sides = [18, 30, 60, 90, 100, 110, 120, 125]
    Image.new("RGB", (2000, 1500)).save(tmp_path / "p.png")
    thin = record(
        "p", (2000, 1500), [[20, 100 * i, 900, 100 * i + side] for i, side in enumerate(sides)], ["x"] * 8, "x"
    )
    splits = {"train": [thin | {"image": str(tmp_path / "p.png")}]}
    write_dataset(tmp_path / "my set", name="d", source_format="x", classes=["x"], splits=splits, problems=[])
    (tmp_path / "tiny_model").symlink_to(tiny_models[family])
    suggested(tmp_path / "my set", tmp_path / "tiny_model")
    text = (tmp_path / "recipe.yaml").read_text()
    small = re.search(r"# At this budget (\d of 8) objects are thinner than a patch", text).group(1)
    command = re.search(r"#   python -m data_prep (show .*)", text).group(1)
    capsys.readouterr()
    main([*shlex.split(command), "--num-images", "0"])
    assert f"too small: {small} objects are thinner" in capsys.readouterr().out


def test_small_images_get_no_larger_budget_than_they_need(tmp_path):
    splits = {"train": [record("a", (100, 80), [[0, 0, 50, 50]], ["x"], "x")]}
    write_dataset(tmp_path / "d", name="d", source_format="x", classes=["x"], splits=splits, problems=[])
    values = suggested(tmp_path / "d", "Qwen/Qwen3-VL-8B-Instruct")
    assert values["max_pixels"] == 8 * 1024 and values["eval_strategy"] == "no"
    splits = {"train": [record("a", (24, 24), [[0, 0, 20, 20]], ["x"], "x")]}
    odd = tmp_path / "my #1: x"
    write_dataset(odd, name="d", source_format="x", classes=["x"], splits=splits, problems=[])
    values = suggested(odd, "Qwen/Qwen3-VL-8B-Instruct")
    assert values["max_pixels"] >= values["min_pixels"] and values["data_dir"] == str(odd)


def test_user_errors(data, tmp_path, capsys):
    def failure(*args) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["recipe", *map(str, args)])
        assert stop.value.code == 2
        return capsys.readouterr().err

    assert "the name matches none of the families qwen2_vl" in failure(data, "--model", "openai/clip")
    out = tmp_path / "r.yaml"
    out.write_text("mine")
    assert "exists. Use --overwrite" in failure(data, "--model", "Qwen/Qwen2-VL-2B-Instruct", "--out", out)
    assert out.read_text() == "mine"
    (tmp_path / "model").mkdir()
    for text in ("{corrupt", "[]", '{"model_type": "llava"}'):
        (tmp_path / "model" / "config.json").write_text(text)
        assert "config.json" in failure(data, "--model", tmp_path / "model", "--out", tmp_path / "new.yaml")
