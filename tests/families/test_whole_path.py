"""The families that other tests leave out, from annotations to a merged model: convert, check, train, evaluate, merge, reload."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import check_recipe
import evaluate
import merge_adapter
from boxtune.answers.grounding import Grounding
from boxtune.families import FAMILIES
from boxtune.models.checkpoint import open_checkpoint
from boxtune.models.loading import load_model
from data_prep.__main__ import main as data_prep
from tests.helpers.stated import stated_words
from tests.helpers.training import log_history, train

NEWER = ("qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
THOUGHT = {"qwen3_vl_moe": "", "qwen3_5": "<think>\n\n</think>\n\n", "qwen3_5_moe": "<think>\n\n</think>\n\n"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve images with a bright box each, converted."""
    folder = tmp_path_factory.mktemp("newer")
    items, draw = [], np.random.default_rng(0)
    for i in range(12):
        pixels = draw.integers(0, 90, (80, 100 + 20 * (i % 3), 3), dtype=np.uint8)
        pixels[8:48, 10:50] = 250
        Image.fromarray(pixels).save(folder / f"{i}.png")
        corners = [10 / pixels.shape[1], 0.1, 50 / pixels.shape[1], 0.6]
        items.append({"image": f"{i}.png", "objects": [{"class": "box", "bbox_aabb": corners}]})
    (folder / "list.json").write_text(json.dumps(items))
    data_prep(["aabb", str(folder / "list.json"), "--out", str(folder / "data")])
    return folder / "data"


@pytest.mark.parametrize("family", NEWER)
def test_from_annotations_to_a_merged_model(family, data, tiny_models, tmp_path, capsys):
    parts = FAMILIES[family].lora_parts
    options = ["--model_name_or_path", str(tiny_models[family]), "--load_in_4bit", "false", "--lora_parts", *parts]
    words = ["--config", "tiny_nutrition_qlora", "--data_dir", data, "--output_dir", tmp_path / "run", *options]
    check_recipe.main([str(word) for word in words])
    count = json.loads((data / "dataset.json").read_text())["splits"]["train"]["images"]
    assert f"{count} of {count} sampled examples decode back" in capsys.readouterr().out

    run = train(data, tmp_path / "run", *options)
    assert all(0 < entry["loss"] < 20 for entry in log_history(run) if "loss" in entry)
    final = run / "final"
    adapter = load_file(final / "adapter_model.safetensors")
    assert {
        part for part, found in json.loads((final / "run.json").read_text())["modules"]["adapted"].items() if found
    } == {*parts}
    unchanged = {key for key, tensor in adapter.items() if "lora_B" in key and not tensor.any()}
    # The last deepstack merger adds to image tokens after the last layer, on which no response depends.
    assert all("deepstack_merger_list.1" in key for key in unchanged)
    grounding = Grounding.load(final)
    assert (grounding.codec, grounding.think_prefix) == (family, THOUGHT[family])

    evaluate.main(
        [
            "--ckpt",
            str(final),
            "--data",
            str(data),
            "--limit",
            "2",
            "--out",
            str(tmp_path / "eval"),
            "--max-new-tokens",
            "12",
        ]
    )
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text())["parse"]["images"] == 2

    merge_adapter.main(["--ckpt", str(final), "--out", str(tmp_path / "merged"), "--samples", "1"])
    report = json.loads((tmp_path / "merged" / "merge_report.json").read_text())
    assert report["agrees"] is True and report["weights"]["different"] == 0
    assert report["weights"]["adapted"] == len(adapter) // 2
    assert open_checkpoint(str(tmp_path / "merged")).grounding.think_prefix == THOUGHT[family]
    load_model(str(tmp_path / "merged"), dtype=torch.bfloat16)  # refuses missing, unexpected and misshapen weights
    assert_experts_are_those_of_the_base(tmp_path / "merged", tiny_models[family], family)


def assert_experts_are_those_of_the_base(merged, base, family) -> None:
    with safe_open(merged / "model.safetensors", "pt") as ours, safe_open(base / "model.safetensors", "pt") as theirs:
        experts = [key for key in theirs.keys() if ".experts." in key]  # noqa: SIM118
        assert bool(experts) == family.endswith("_moe")
        assert all(torch.equal(ours.get_tensor(key), theirs.get_tensor(key)) for key in experts)


def test_nf4_keeps_the_gates_of_the_delta_nets_in_full_precision(data, tiny_models, tmp_path):
    parts = ["language_attention", "language_linear_attention", "language_mlp"]
    run = train(data, tmp_path / "run", "--model_name_or_path", tiny_models["qwen3_5"], "--lora_parts", *parts)
    counts = json.loads((run / "final" / "run.json").read_text())["modules"]["quantised"]
    assert counts["language"] == {"nf4": 13, "full": 2} and counts["vision"]["nf4"] == counts["head"]["nf4"] == 0


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen3_5_moe"])
def test_a_mixture_of_experts_in_4_bits_is_refused(family, data, tiny_models, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train(data, tmp_path / "run", "--model_name_or_path", tiny_models[family], "--load_in_4bit", "true")
    assert stop.value.code == 2
    # layers × experts × (gate, up and down) × hidden × intermediate × 2 bytes
    assert f"{2 * 4 * 3 * 64 * 48 * 2:,} bytes would stay unquantized" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit) as stop:
        words = ["--ckpt", str(tiny_models[family]), "--data", str(data), "--precision", "nf4", "--out", str(tmp_path)]
        evaluate.main([*words, *stated_words(family)])
    assert stop.value.code == 2 and "--precision bfloat16" in capsys.readouterr().err


def test_parts_that_the_model_lacks_stop_a_run_or_are_left_out_with_a_note(data, tiny_models, tmp_path, capsys):
    options = ("--lora_parts", "language_attention", "language_linear_attention", "merger")
    with pytest.raises(SystemExit) as stop:
        train(data, tmp_path / "stopped", *options)
    assert stop.value.code == 2 and "no linears in language_linear_attention" in capsys.readouterr().err
    run = train(data, tmp_path / "run", *options, "--skip_missing_parts", "true")
    note = "note: this model has no language_linear_attention; LoRA adapts language_attention, merger only"
    assert note in capsys.readouterr().out
    adapted = json.loads((run / "final" / "run.json").read_text())["modules"]["adapted"]
    assert {part for part, found in adapted.items() if found} == {"language_attention", "merger"}
