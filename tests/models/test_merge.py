"""Merging: the result equals PEFT's own merge and is verified by reloading; a merge that does not agree is not kept."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

import evaluate
import merge_adapter
from boxtune.answers.grounding import Grounding
from boxtune.families import FAMILIES as FAMILY_FACTS
from boxtune.families.family import LORA_PARTS
from boxtune.inference.merge_check import agrees, box_agreement, logit_difference
from boxtune.models.checkpoint import open_checkpoint
from boxtune.models.merging import merge_shards
from tests.helpers.records import FAMILIES
from tests.helpers.training import train


@pytest.fixture(scope="module")
def runs(tiny_models, squares, tmp_path_factory) -> dict:
    """{family: run folder}, with adapters scaled up so that they change the logits, and short responses."""
    folder, trained = tmp_path_factory.mktemp("runs"), {}
    for family in FAMILIES:
        options = ["--model_name_or_path", tiny_models[family], "--save_strategy", "no", "--lora_parts", *LORA_PARTS]
        run = train(squares, folder / family, *options)
        weights = load_file(run / "final" / "adapter_model.safetensors")
        draw = torch.Generator().manual_seed(0)
        for key, tensor in weights.items():
            if "lora_B" in key:
                weights[key] = torch.randn(tensor.shape, generator=draw) * 0.05
        save_file(weights, run / "final" / "adapter_model.safetensors", metadata={"format": "pt"})
        replace(Grounding.load(run / "final"), max_new_tokens=12).save(run / "final")
        trained[family] = run
    return trained


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shards_equal_the_merge_of_peft(runs, tiny_models, tmp_path, family):
    """Both round the same float32 sum to bf16, so they differ by at most one unit in the last place."""
    checkpoint = open_checkpoint(str(runs[family] / "final"))
    # The language model has 2 layers of 7 linears. The vision tower has 3 blocks of 4 linears (Qwen2.5-VL: 5) and a merger of 2,
    # to which the deepstack mergers of Qwen3-VL add 4.
    assert (
        merge_shards(checkpoint, tmp_path)
        == 14 + {"qwen2_vl": 12 + 2, "qwen2_5_vl": 15 + 2, "qwen3_vl": 12 + 6}[family]
    )
    ours = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    base = AutoModelForImageTextToText.from_pretrained(tiny_models[family], dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, runs[family] / "final").merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=2**-8, atol=1e-6, msg=key)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_command_verifies_the_merge_and_writes_a_complete_model(runs, tmp_path, family, capsys):
    out = tmp_path / "merged"
    merge_adapter.main(["--ckpt", str(runs[family] / "final"), "--out", str(out), "--samples", "2"])
    report = json.loads((out / "merge_report.json").read_text())
    assert report["agrees"] is True
    moved = report["bf16_base_and_adapter"]
    assert moved["logit_difference"] < 0.05 < moved["adapter_moves_logits_by"]
    # Quantizing to 4 bits changes the logits more than rounding to bf16.
    assert report["nf4_base_and_adapter"]["logit_difference"] > moved["logit_difference"]
    assert "against bf16 base + adapter" in capsys.readouterr().out
    weights = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    merged = Grounding.load(out)
    trained = Grounding.load(runs[family] / "final")
    assert (merged.system_prompt, merged.max_pixels, merged.codec) == (
        trained.system_prompt,
        trained.max_pixels,
        trained.codec,
    )
    assert merged.base_precision == "bfloat16"
    evaluate.main(["--ckpt", str(out), "--limit", "2", "--out", str(tmp_path / "eval")])
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["provenance"]["base_precision"] == "bfloat16"


def test_the_shards_of_a_base_are_kept(runs, tiny_models, tmp_path):
    base = tmp_path / "base"
    AutoModelForImageTextToText.from_pretrained(tiny_models["qwen2_5_vl"]).save_pretrained(base, max_shard_size="300KB")
    for path in tiny_models["qwen2_5_vl"].iterdir():
        if not (base / path.name).exists() and path.suffix != ".safetensors":
            shutil.copy(path, base)
    shards = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(shards) > 2
    final = tmp_path / "final"
    shutil.copytree(runs["qwen2_5_vl"] / "final", final)
    replace(Grounding.load(final), base_model=str(base)).save(final)
    merge_adapter.main(["--ckpt", str(final), "--out", str(tmp_path / "merged"), "--samples", "1", "--skip-nf4"])
    assert sorted(path.name for path in (tmp_path / "merged").glob("*.safetensors")) == shards
    whole = tmp_path / "whole"
    whole.mkdir()
    merge_shards(open_checkpoint(str(runs["qwen2_5_vl"] / "final")), whole)
    want = load_file(whole / "model.safetensors")
    for shard in shards:
        for key, tensor in load_file(tmp_path / "merged" / shard).items():
            assert torch.equal(tensor, want[key])


def test_a_merge_with_a_changed_base_fails_and_leaves_nothing(runs, tiny_models, tmp_path, monkeypatch, capsys):
    """The merge reads other weights than the comparison, as if the base had been replaced in between."""
    import boxtune.models.merging as merging

    other = tmp_path / "other"
    shutil.copytree(tiny_models["qwen2_5_vl"], other)
    weights = load_file(other / "model.safetensors")
    swapped = {key: tensor.flip(0).contiguous() if "mlp" in key else tensor for key, tensor in weights.items()}
    save_file(swapped, other / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(merging, "base_folder", lambda base, revision: other)
    out = tmp_path / "merged"
    with pytest.raises(SystemExit) as stop:
        merge_adapter.main(["--ckpt", str(runs["qwen2_5_vl"] / "final"), "--out", str(out), "--samples", "2"])
    assert stop.value.code == 2
    assert "does not agree" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_wrong_arguments_are_reported(runs, tiny_models, tmp_path, capsys):
    final = runs["qwen2_5_vl"] / "final"
    (tmp_path / "taken").mkdir()
    for arguments, message in [
        (["--ckpt", str(tiny_models["qwen2_5_vl"])], "not an adapter"),
        (["--ckpt", str(final), "--out", str(tmp_path / "taken")], "exists"),
        (["--ckpt", str(final), "--out", str(tmp_path / "taken"), "--overwrite"], "something other than a model"),
        (["--ckpt", str(final), "--out", str(tmp_path / "x"), "--data", str(tmp_path)], "not a prepared dataset"),
        (["--ckpt", str(tmp_path / "nowhere")], "nowhere"),
    ]:
        with pytest.raises(SystemExit) as stop:
            merge_adapter.main(arguments)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_merged_model_is_written_beside_its_adapter(tmp_path, monkeypatch):
    (tmp_path / "run" / "final").mkdir(parents=True)
    assert merge_adapter.merged_folder(str(tmp_path / "run" / "final")) == tmp_path / "run" / "final_merged"
    monkeypatch.chdir(tmp_path / "run" / "final")
    assert merge_adapter.merged_folder(".") == tmp_path / "run" / "final_merged"
    # The merge of a Hub adapter does not go into the Hub cache.
    assert merge_adapter.merged_folder("me/finder") == Path("runs/me--finder/final_merged")


def test_a_merged_model_never_replaces_the_base(runs, tiny_models, tmp_path, capsys):
    base, final = tmp_path / "base", tmp_path / "final"
    shutil.copytree(tiny_models["qwen2_5_vl"], base)
    shutil.copytree(runs["qwen2_5_vl"] / "final", final)
    replace(Grounding.load(final), base_model=str(base)).save(final)
    (tmp_path / "link").symlink_to(base)
    before = (base / "model.safetensors").read_bytes()
    for out in (base, tmp_path / "link"):
        with pytest.raises(SystemExit) as stop:
            merge_adapter.main(["--ckpt", str(final), "--out", str(out), "--overwrite"])
        assert stop.value.code == 2
        assert "is the base of this adapter" in capsys.readouterr().err
    assert (base / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("family", ("qwen2_vl", "qwen2_5_vl"))
def test_keys_on_disk_map_to_module_paths(family):
    """The Hub's files of both families use the names of transformers 4; files saved with transformers 5 use module paths."""
    for key, module in {
        "model.layers.0.self_attn.q_proj.weight": "model.language_model.layers.0.self_attn.q_proj",
        "visual.blocks.0.attn.qkv.weight": "model.visual.blocks.0.attn.qkv",
        "model.language_model.layers.0.mlp.up_proj.weight": "model.language_model.layers.0.mlp.up_proj",
        "model.visual.merger.linear_fc1.weight": "model.visual.merger.linear_fc1",
        "lm_head.weight": "lm_head",
    }.items():
        assert FAMILY_FACTS[family].module_path(key) == module


def test_logit_difference_and_box_agreement():
    logits, others = ([torch.randn(n, 5, generator=torch.manual_seed(n + i)) for n in (3, 1)] for i in (0, 9))
    assert logit_difference(logits, logits) == 0
    a, b = (torch.cat(each).double() for each in (others, logits))
    assert logit_difference(others, logits) == pytest.approx(
        ((a - b).square().mean() / b.square().mean()).sqrt().item()
    )
    assert logit_difference([torch.zeros_like(each) for each in logits], logits) == pytest.approx(1)

    def answer(boxes_xyxy, labels):
        return {"objects": {"bbox": boxes_xyxy, "category": labels}}

    one, none = answer([[0, 0, 10, 10]], ["a"]), answer([], [])
    half, other = answer([[0, 0, 10, 5]], ["a"]), answer([[0, 0, 10, 10]], ["b"])
    assert box_agreement([one, none], [one, none]) == 1
    assert box_agreement([one], [half]) == pytest.approx(0.5)
    assert box_agreement([one], [other]) == 0
    assert box_agreement([one], [none]) == 0
    assert box_agreement([none], [none]) == 1


def test_box_agreement_counts_only_if_there_are_enough_boxes():
    """Responses of a barely trained model depend on near-ties: one box in four images once failed the embedded model."""
    found = {"logit_difference": 0.004, "box_agreement": 0.0, "boxes": 1}
    assert agrees(found)
    assert not agrees(found | {"boxes": 10})
    assert agrees(found | {"boxes": 10, "box_agreement": 0.8})
    assert not agrees(found | {"logit_difference": 0.06})
