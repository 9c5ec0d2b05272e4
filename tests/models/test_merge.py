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

import boxtune.models.merging as merging
import evaluate
import merge_adapter
from boxtune import Detector
from boxtune.answers.decoding import Decoding
from boxtune.answers.grounding import Grounding
from boxtune.common.errors import UserError
from boxtune.evaluation.merge_options import parse_arguments, target_folder
from boxtune.families import FAMILIES as FAMILY_FACTS
from boxtune.inference import merge_check
from boxtune.inference.merge_check import box_agreement, logit_difference
from boxtune.models.checkpoint import open_checkpoint
from boxtune.models.merged_weights import is_nearest_bf16
from boxtune.models.merging import Lora, merge_shards
from boxtune.models.weight_files import weight_files
from tests.helpers.records import FAMILIES
from tests.helpers.training import train


@pytest.fixture(scope="module")
def runs(tiny_models, squares, tmp_path_factory) -> dict:
    """{family: run folder}, with adapters scaled up so that they change the logits, and short responses."""
    folder, trained = tmp_path_factory.mktemp("runs"), {}
    for family in FAMILIES:
        options = ["--model_name_or_path", tiny_models[family], "--save_strategy", "no"]
        options += ["--lora_parts", *FAMILY_FACTS[family].lora_parts]
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
    tuned = Decoding(repetition_penalty=1.05, suppress_iou=0.7, ask="each", score_threshold=0.25)
    checkpoint.grounding = replace(checkpoint.grounding, decoding=tuned)
    # The language model has 2 layers of 7 linears. The vision tower has 3 blocks of 4 linears (Qwen2.5-VL: 5) and a merger of 2,
    # to which the deepstack mergers of Qwen3-VL add 4.
    assert (
        merge_shards(checkpoint, tmp_path)
        == 14 + {"qwen2_vl": 12 + 2, "qwen2_5_vl": 15 + 2, "qwen3_vl": 12 + 6}[family]
    )
    assert Grounding.load(tmp_path).decoding == tuned
    ours = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    base = AutoModelForImageTextToText.from_pretrained(tiny_models[family], dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, runs[family] / "final").merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=2**-8, atol=1e-6, msg=key)


def with_adapter_config(run: Path, folder: Path, **values) -> Path:
    """A copy of a run's adapter with other values in its config."""
    shutil.copytree(run / "final", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | values))
    return folder


def test_a_rank_stabilized_lora_has_the_scale_of_peft(runs, tiny_models, tmp_path):
    """alpha / √r instead of alpha / r."""
    final = with_adapter_config(runs["qwen2_5_vl"], tmp_path / "final", use_rslora=True)
    (tmp_path / "merged").mkdir()
    merge_shards(open_checkpoint(str(final)), tmp_path / "merged")
    ours = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32).state_dict()
    base = AutoModelForImageTextToText.from_pretrained(tiny_models["qwen2_5_vl"], dtype=torch.float32)
    for key, tensor in PeftModel.from_pretrained(base, final).merge_and_unload().state_dict().items():
        torch.testing.assert_close(ours[key], tensor, rtol=2**-8, atol=1e-6, msg=key)


@pytest.mark.parametrize(
    "values",
    [
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 2}},
        {"use_dora": True},
        {"lora_bias": True},
    ],
    ids=lambda values: next(iter(values)),
)
def test_an_adapter_that_is_more_than_a_plain_lora_is_refused(runs, tmp_path, values):
    final = with_adapter_config(runs["qwen2_5_vl"], tmp_path / "final", **values)
    with pytest.raises(UserError, match="is not a plain LoRA with one rank for all modules"):
        merging.read_lora(final)


def test_an_embedding_or_head_that_was_trained_whole_is_refused(runs, tmp_path):
    """As other programs may train it. It may be tied to another weight."""
    final = with_adapter_config(runs["qwen2_5_vl"], tmp_path / "final", modules_to_save=["lm_head"])
    weights = load_file(final / "adapter_model.safetensors")
    weights["base_model.model.lm_head.weight"] = torch.zeros(2, 2)
    save_file(weights, final / "adapter_model.safetensors", metadata={"format": "pt"})
    (tmp_path / "merged").mkdir()
    with pytest.raises(UserError, match="has trained lm_head whole"):
        merge_shards(open_checkpoint(str(final)), tmp_path / "merged")


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_are_in_the_merged_model(bias, tiny_models, squares, tmp_path, capsys):
    """Qwen2-VL has biases in both towers and in its layer norms."""
    options = ["--model_name_or_path", tiny_models["qwen2_vl"], "--save_strategy", "no", "--load_in_4bit", "false"]
    options += ["--learning_rate", 1e-2, "--warmup_steps", 0, "--lora_bias", bias, "--lora_vision", "false"]
    final = train(squares, tmp_path / "run", *options, "--lora_target_modules", "q_proj", "up_proj") / "final"
    merge_adapter.main(["--ckpt", str(final), "--out", str(tmp_path / "merged"), "--samples", "1", "--skip-nf4"])
    report = json.loads((tmp_path / "merged" / "merge_report.json").read_text())
    assert report["agrees"] is True
    base, merged = (
        load_file(folder / "model.safetensors") for folder in (tiny_models["qwen2_vl"], tmp_path / "merged")
    )
    changed = {key for key in base if key.endswith(".bias") and not torch.equal(base[key].bfloat16(), merged[key])}
    of_queries = {key for key in base if key.endswith("q_proj.bias")}
    assert changed >= of_queries and (changed == of_queries) == (bias == "lora_only")
    assert bias == "lora_only" or {key for key in base if "norm1.bias" in key} <= changed
    trained = {
        key.partition(".layers.")[2].replace(".base_layer", ""): tensor
        for key, tensor in load_file(final / "adapter_model.safetensors").items()
    }
    assert all(torch.equal(merged[key], trained[key.partition(".layers.")[2]].bfloat16()) for key in of_queries)
    with (
        pytest.raises(UserError, match="trained with lora_bias"),
        Detector.from_pretrained(str(final)).without_adapter(),
    ):
        pass


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

    def target(ckpt, *words):
        return target_folder(parse_arguments(["--ckpt", str(ckpt), *words], ""), is_adapter=True)

    assert target(tmp_path / "run" / "final") == tmp_path / "run" / "final_merged"
    assert target(tmp_path / "run" / "final", "--quantize", "nf4") == tmp_path / "run" / "final_merged_nf4"
    monkeypatch.chdir(tmp_path / "run" / "final")
    assert target(".") == tmp_path / "run" / "final_merged"
    # The merge of a Hub adapter does not go into the Hub cache.
    assert target("me/finder") == Path("runs/me--finder/final_merged")


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


# ---- what the comparison of weights refuses ------------------------------------------------------------------------------

FIRST, SECOND = (f"model.language_model.layers.{layer}.self_attn.q_proj" for layer in (0, 1))


def scaled(loras: dict[str, Lora]) -> dict[str, Lora]:
    """One of 31 modules with a scale that is 2 % too large."""
    return loras | {FIRST: loras[FIRST]._replace(scale=1.02 * loras[FIRST].scale)}


def missing(loras: dict[str, Lora]) -> dict[str, Lora]:
    return {path: lora for path, lora in loras.items() if path != FIRST}


def misplaced(loras: dict[str, Lora]) -> dict[str, Lora]:
    """Two layers of the same shape exchange their LoRAs."""
    return loras | {FIRST: loras[SECOND], SECOND: loras[FIRST]}


@pytest.fixture(scope="module")
def barely_trained(squares, tiny_models, tmp_path_factory) -> Path:
    """The adapter of 5 steps at a low learning rate: it changes the logits less than rounding to bf16 does."""
    options = ["--model_name_or_path", tiny_models["qwen2_5_vl"], "--save_strategy", "no"]
    options += ["--lora_parts", *FAMILY_FACTS["qwen2_5_vl"].lora_parts]
    final = (
        train(squares, tmp_path_factory.mktemp("barely") / "run", *options, "--max_steps", 5, "--learning_rate", 2e-5)
        / "final"
    )
    replace(Grounding.load(final), max_new_tokens=12).save(final)
    return final


@pytest.mark.parametrize("wrong", [scaled, missing, misplaced])
def test_a_wrong_merge_of_a_barely_trained_adapter_is_refused(barely_trained, tmp_path, monkeypatch, capsys, wrong):
    read_lora = merging.read_lora
    monkeypatch.setattr(merging, "read_lora", lambda adapter: wrong(read_lora(adapter)))
    out = tmp_path / "merged"
    with pytest.raises(SystemExit) as stop:
        merge_adapter.main(["--ckpt", str(barely_trained), "--out", str(out), "--samples", "1"])
    assert stop.value.code == 2
    number = 2 if wrong is misplaced else 1
    assert (
        f"{number} of 69 tensors differ, for example model.layers.0.self_attn.q_proj.weight" in capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []


def test_a_correct_merge_is_kept_although_no_box_agrees(barely_trained, tmp_path, monkeypatch):
    """Boxes of a barely trained model depend on near-ties."""
    monkeypatch.setattr(merge_check, "box_agreement", lambda merged, reference: 0.0)
    out = tmp_path / "merged"
    merge_adapter.main(["--ckpt", str(barely_trained), "--out", str(out), "--samples", "1"])
    report = json.loads((out / "merge_report.json").read_text())
    assert report["agrees"] is True and report["can_tell"] is False
    assert report["weights"] == {"compared": 69, "adapted": 31, "different": 0, "examples": []}
    assert report["bf16_base_and_adapter"]["box_agreement"] == 0


def test_logits_must_agree_as_well(barely_trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(merge_check, "logit_difference", lambda merged, reference: 0.06)
    with pytest.raises(SystemExit):
        merge_adapter.main(["--ckpt", str(barely_trained), "--out", str(tmp_path / "merged"), "--samples", "1"])
    assert "the relative logit difference is 0.0600, and 0.05 is allowed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_wrong", [False, True])
def test_weights_are_compared_without_memory_for_the_model(barely_trained, tmp_path, monkeypatch, capsys, is_wrong):
    monkeypatch.setattr(merge_check, "fits_memory", lambda folder, precision: False)
    if is_wrong:
        read_lora = merging.read_lora
        monkeypatch.setattr(merging, "read_lora", lambda adapter: missing(read_lora(adapter)))
    arguments = ["--ckpt", str(barely_trained), "--out", str(tmp_path / "merged"), "--samples", "1"]
    if is_wrong:
        with pytest.raises(SystemExit):
            merge_adapter.main(arguments)
        assert "1 of 69 tensors differ" in capsys.readouterr().err
    else:
        merge_adapter.main(arguments)
        assert "logits not compared" in capsys.readouterr().out
        assert json.loads((tmp_path / "merged" / "merge_report.json").read_text())["agrees"] is None


def test_nearest_bf16_number():
    base, (a, b) = torch.tensor([[1.0, 0.5]]), (torch.tensor([[1.0, 2.0]]), torch.tensor([[1 / 256]]))
    lora = Lora(a, b, 0.5)  # base + product is [1 + 2⁻⁹, 0.5 + 2⁻⁸]; the step of bf16 is 2⁻⁷ above 1 and 2⁻⁸ above 0.5
    nearest = torch.tensor([[1.0, 0.50390625]], dtype=torch.bfloat16)
    assert is_nearest_bf16(nearest, base, lora)
    assert not is_nearest_bf16(base.bfloat16(), base, lora)
    assert not is_nearest_bf16(torch.tensor([[1.0078125, 0.50390625]], dtype=torch.bfloat16), base, lora)
    assert not is_nearest_bf16(nearest.float(), base, lora)
    assert not is_nearest_bf16(nearest.T, base, lora)
    # Without a LoRA, every bit counts, and integers are kept.
    assert is_nearest_bf16(torch.tensor([1 / 3]).bfloat16(), torch.tensor([1 / 3]))
    assert not is_nearest_bf16(torch.tensor([1 / 3]), torch.tensor([1 / 3]))
    assert is_nearest_bf16(torch.tensor([7]), torch.tensor([7])) and not is_nearest_bf16(
        torch.tensor([7]), torch.tensor([8])
    )


def test_the_comparison_uses_float32_on_a_gpu_without_bf16(tmp_path, monkeypatch):
    """Emulated bf16 kernels are slow or missing there. float32 needs twice the memory of the bf16 files."""
    save_file({"a": torch.zeros(1000, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    assert merge_check.precision_here() == "bfloat16"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (4000, 8000))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert merge_check.precision_here() == "bfloat16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert merge_check.precision_here() == "float32"
    assert merge_check.fits_memory(tmp_path, "bfloat16")
    assert not merge_check.fits_memory(tmp_path, "float32")


# ---- which files of a base are read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", ["single", "shards", "named"])
def test_the_merge_reads_the_weights_that_transformers_reads(runs, tiny_models, tmp_path, read):
    """A base with several complete sets of weights: single file, shards with an index, a file named in config.json, others."""
    base, final = tmp_path / "base", tmp_path / "final"
    source = AutoModelForImageTextToText.from_pretrained(tiny_models["qwen2_5_vl"])
    source.save_pretrained(base, max_shard_size="300KB")
    for path in tiny_models["qwen2_5_vl"].iterdir():
        if not (base / path.name).exists() and path.suffix != ".safetensors":
            shutil.copy(path, base)
    weights = load_file(tiny_models["qwen2_5_vl"] / "model.safetensors")
    other = {key: tensor + 1 for key, tensor in weights.items()}
    save_file(other, base / "consolidated.safetensors", metadata={"format": "pt"})  # transformers never reads this one
    if read == "named":
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | {"transformers_weights": "my.safetensors"}))
        save_file(
            {key: tensor + 2 for key, tensor in weights.items()}, base / "my.safetensors", metadata={"format": "pt"}
        )
    if read != "shards":
        save_file(other, base / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(runs["qwen2_5_vl"] / "final", final)
    replace(Grounding.load(final), base_model=str(base)).save(final)

    merge_adapter.main(["--ckpt", str(final), "--out", str(tmp_path / "merged"), "--samples", "1", "--skip-nf4"])
    ours = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32).state_dict()
    loaded = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    added = loaded.state_dict()["model.language_model.norm.weight"] - weights_of(
        source, "model.language_model.norm.weight"
    )
    assert added.unique().tolist() == [{"single": 1, "shards": 0, "named": 2}[read]]
    theirs = PeftModel.from_pretrained(loaded, final).merge_and_unload().state_dict()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=2**-8, atol=1e-6, msg=key)


def weights_of(model, key: str) -> torch.Tensor:
    return model.state_dict()[key].float()


def test_a_base_without_weights_or_with_a_missing_shard_is_reported(tiny_models, tmp_path):
    base = tmp_path / "base"
    AutoModelForImageTextToText.from_pretrained(tiny_models["qwen2_5_vl"]).save_pretrained(base, max_shard_size="300KB")
    first = sorted(base.glob("*.safetensors"))[0]
    first.unlink()
    with pytest.raises(UserError, match=f"{first} cannot be read"):
        weight_files(base)
    (base / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"contains no model.safetensors or model.safetensors.index.json"):
        weight_files(base)
