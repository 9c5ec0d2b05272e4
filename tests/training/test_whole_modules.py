"""Modules that are trained whole beside LoRA: trained at the rate of their part, saved, loaded again, evaluated and merged."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import evaluate
import merge_adapter
from boxtune.common.errors import UserError
from boxtune.models.checkpoint import load_checkpoint_model, open_checkpoint
from boxtune.models.placement import lora_targets
from boxtune.models.soft_prompt import without_adapter
from boxtune.models.weight_files import weight_files
from boxtune.models.whole_modules import whole_module_paths
from tests.helpers.records import ROOT
from tests.helpers.training import train

BASE = ROOT / "assets" / "tiny_qwen3_vl"
MERGERS = ["model.visual.merger", "model.visual.deepstack_merger_list.0"]
OPTIONS = (
    "--lora_modules_to_save",
    "merger",
    "--lora_llm_layers",
    "-1",
    "--lora_vision_blocks",
    "0",
    "--warmup_steps",
    0,
)


@pytest.fixture(scope="module")
def run(squares, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    return train(squares, folder, *OPTIONS, "--merger_lr", 1e-2, "--save_steps", 1)


def base_weights() -> dict[str, torch.Tensor]:
    [file] = set(weight_files(BASE).values())
    return load_file(file)


def whole_weights(final: Path) -> dict[str, torch.Tensor]:
    """{key in the base's file: trained value} of the modules that were trained whole."""
    weights = load_file(final / "adapter_model.safetensors")
    return {key.removeprefix("base_model.model."): weight for key, weight in weights.items() if ".lora_" not in key}


def test_the_mergers_are_trained_in_float32_at_their_own_rate_and_saved_with_the_adapter(run):
    trained, base = whole_weights(run / "final"), base_weights()
    assert {key.rpartition(".")[0].rpartition(".")[0] for key in trained} == {*MERGERS}
    assert len(trained) == len([key for key in base if key.startswith(tuple(f"{path}." for path in MERGERS))])
    moved = {key: (trained[key] - base[key].float()).abs().max() for key in trained if key.endswith("weight")}
    assert all(weight.dtype == torch.float32 for weight in trained.values())
    # Two steps of AdamW at 1e-2 that the cosine schedule halves once, from the base's own values: LoRA's rate is ten times lower.
    assert all(5e-3 < distance < 3e-2 for distance in moved.values())
    config = json.loads((run / "final" / "adapter_config.json").read_text())
    assert sorted(config["modules_to_save"]) == sorted(MERGERS)
    modules = json.loads((run / "run.json").read_text())["modules"]
    assert sorted(modules["whole"]) == sorted(MERGERS) and modules["layers"]["language_attention"] == [4]
    assert modules["quantised"]["vision"] == {"nf4": 0, "full": 8 * 4 + 4}  # their copies do not count


def test_a_checkpoint_is_loaded_again_with_them_and_without_the_adapter_is_the_base(run):
    model = load_checkpoint_model(open_checkpoint(str(run / "final")), "float32")
    merger = model.base_model.model.model.visual.merger
    trained, base = whole_weights(run / "final"), base_weights()
    hidden = torch.randn(4, 192, generator=torch.Generator().manual_seed(0))
    own = merger(hidden)
    for values, outputs in ((trained, own), (base, None)):
        expected = AutoModelForImageTextToText.from_pretrained(BASE, dtype=torch.float32).model.visual.merger
        expected.load_state_dict(
            {key.removeprefix(f"{MERGERS[0]}."): v for key, v in values.items() if MERGERS[0] in key}
        )
        if outputs is None:
            with without_adapter(model):
                outputs = merger(hidden)
        assert torch.equal(outputs, expected(hidden))


def test_evaluation_and_merging_use_them_and_the_merge_is_exact(run, tmp_path):
    final = str(run / "final")
    evaluate.main(["--ckpt", final, "--base", "--limit", "2", "--max-new-tokens", "8", "--out", str(tmp_path / "eval")])
    assert (tmp_path / "eval" / "metrics.json").is_file() and (tmp_path / "eval" / "base" / "metrics.json").is_file()
    merge_adapter.main(["--ckpt", final, "--out", str(tmp_path / "merged"), "--samples", "1"])
    assert json.loads((tmp_path / "merged" / "merge_report.json").read_text())["agrees"] is True
    merged, trained = load_file(tmp_path / "merged" / "model.safetensors"), whole_weights(run / "final")
    for key, weight in base_weights().items():
        if key in trained:
            assert torch.equal(merged[key], trained[key].bfloat16())
        elif ".layers.4." not in key:
            assert torch.equal(merged[key], weight.bfloat16())
    _, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(report.values())


def test_a_merge_that_forgets_them_is_refused(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("boxtune.models.merging.read_whole", lambda adapter: {})
    with pytest.raises(SystemExit):
        merge_adapter.main(["--ckpt", str(run / "final"), "--out", str(tmp_path / "merged"), "--samples", "1"])
    assert "deepstack_merger_list.0" in capsys.readouterr().err and not (tmp_path / "merged").exists()


def test_a_resumed_run_continues_with_them(run, squares, tmp_path):
    """Bit-identical to the uninterrupted run, so weights, moments and dtype came back."""
    options = (*OPTIONS, "--merger_lr", 1e-2, "--save_steps", 1)
    train(squares, tmp_path / "run", *options, "--resume_from_checkpoint", run / "checkpoint-1")
    resumed, whole = (load_file(folder / "final" / "adapter_model.safetensors") for folder in (tmp_path / "run", run))
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_they_train_in_a_model_of_16_bits_without_autocast(squares, tmp_path):
    """The rest of the model computes in bf16; the mergers and their small updates stay in float32."""
    options = (
        *OPTIONS,
        "--dtype",
        "bfloat16",
        "--load_in_4bit",
        "false",
        "--eval_images",
        2,
        "--eval_strategy",
        "steps",
    )
    final = train(squares, tmp_path / "run", *options, "--eval_steps", 2, "--learning_rate", 1e-6) / "final"
    trained, base = whole_weights(final), base_weights()
    key = f"{MERGERS[0]}.linear_fc1.weight"
    assert trained[key].dtype == torch.float32
    assert 0 < (trained[key] - base[key].float()).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["lm_head"], "lm_head: embeddings and LM head cannot be trained whole beside LoRA"),
        (["language_model"], "language_model: embeddings and LM head cannot be trained whole"),
        (["mergr"], "mergr: no such module; use merger, or a module path such as model.visual.pos_embed"),
        (["erger"], "erger: no such module"),
        (["visual.blocks.2.attn"], "visual.blocks.2.attn: model.visual.blocks.2.attn has LoRA as well"),
        (["merger", "merger.norm"], "model.visual.merger.norm: is inside another of these modules"),
    ],
)
def test_modules_that_cannot_be_trained_whole_are_reported(names, problem, tiny_models):
    model = AutoModelForImageTextToText.from_pretrained(tiny_models["qwen3_vl"])
    with pytest.raises(UserError) as error:
        whole_module_paths(model, names, lora_targets(model, vision=True))
    assert any(line.startswith(problem) for line in error.value.problems)


def test_names_are_full_paths_their_ends_or_the_merger(tiny_models):
    model = AutoModelForImageTextToText.from_pretrained(tiny_models["qwen3_vl"])
    targets = lora_targets(model)
    mergers = ["model.visual.merger", *(f"model.visual.deepstack_merger_list.{i}" for i in (0, 1))]
    assert sorted(whole_module_paths(model, ["merger"], targets)) == sorted(mergers)
    assert sorted(whole_module_paths(model, ["deepstack_merger_list", "visual.merger"], targets)) == sorted(mergers)
    assert whole_module_paths(model, ["model.visual.pos_embed"], targets) == ["model.visual.pos_embed"]
