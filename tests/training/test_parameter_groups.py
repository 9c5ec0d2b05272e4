"""Learning rates by part: which weights belong to which part, and that a rate of 0 leaves them as they are."""

import math
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText

from boxtune.common.errors import UserError
from boxtune.families import FAMILIES
from boxtune.models.head_files import head_weights
from boxtune.training.parameter_groups import Group, describe_rates, freeze, part_of, split_groups, trained_groups
from boxtune.training.phases import LearningRates, read_phases
from boxtune.training.recipe import load_recipe
from boxtune.training.setup_losses import choose_rates
from tests.helpers.training import log_history, train

RATES = [f"--{part}_lr" for part in ("vision", "merger", "llm")]
ALL_PARTS = ["--lora_parts", "language_attention", "language_mlp", "vision_attention", "vision_mlp", "merger"]


def on_meta(folder) -> torch.nn.Module:
    """A model without its weights."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_every_family_belongs_to_a_part(family, tiny_models):
    model = on_meta(tiny_models[family])
    parts = {name: part_of(name, FAMILIES[family]) for name, _ in model.named_parameters()}
    assert set(parts.values()) == {"vision", "merger", "llm"}
    for word, part in (("merger", "merger"), ("patch_embed", "vision"), ("embed_tokens", "llm"), ("layers.", "llm")):
        assert {parts[name] for name in parts if word in name} == {part}
    assert part_of("lm_head.weight", FAMILIES[family]) == "llm"  # of an untied head
    counts = {group.part: len(weights) for group, weights in trained_groups(model).items()}
    assert counts == {part: [*parts.values()].count(part) for part in counts}


def test_weights_of_adapters_prompt_and_head_belong_to_their_parts():
    family, below = FAMILIES["qwen3_vl"], "base_model.model."
    for name, part in {
        "model.visual.blocks.0.attn.qkv.lora_A.default.weight": "vision",
        "model.visual.deepstack_merger_list.0.linear_fc1.lora_B.default.weight": "merger",
        "model.language_model.layers.0.mlp.up_proj.lora_A.default.weight": "llm",
        "soft_prompt.embeddings": "llm",
        "detection_head.decoder.layers.0.fc1.weight": "detection",
        "detection_head.adapters.vision.down.weight": "adapter",
        "audio.linear.weight": None,
    }.items():
        assert part_of(name, family) == part_of(below + name, family) == part


def test_a_trained_weight_of_no_part_is_an_error_that_names_it(tiny_models):
    model = on_meta(tiny_models["qwen3_vl"])
    model.audio = torch.nn.Linear(2, 2)
    with pytest.raises(UserError) as error:
        freeze(model, LearningRates(1e-3, {"llm": 0}))
    assert error.value.problems == ["audio.weight", "audio.bias"]


def test_nothing_to_train_is_an_error_that_names_the_keys(tiny_models):
    model = on_meta(tiny_models["qwen3_vl"])
    frozen = {"vision": 0, "merger": 0, "llm": 0}
    with pytest.raises(UserError, match=r"are 0 from epoch 0 on; .* vision_lr, merger_lr, llm_lr"):
        freeze(on_meta(tiny_models["qwen3_vl"]), LearningRates(1e-3, frozen))
    phases = read_phases([{"until": 2, "llm_lr": 1}, {"until": 3, "detection_lr": 1}])
    with pytest.raises(UserError, match="are 0 from epoch 2 on"):
        freeze(model, LearningRates(1e-3, frozen, phases))


def test_groups_keep_the_weight_decay_of_each_weight(tiny_models):
    model = on_meta(tiny_models["qwen3_vl"])
    named = dict(model.named_parameters())
    plain = [weight for name, weight in named.items() if "norm" in name or name.endswith("bias")]
    decayed = [weight for weight in named.values() if all(weight is not other for other in plain)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=1
    )
    split_groups(optimizer, model)
    places = {
        weight: (Group(g["part"], g["is_peft"]), g["weight_decay"])
        for g in optimizer.param_groups
        for weight in g["params"]
    }
    assert len(optimizer.param_groups) == 6 and len(places) == len(named)
    for name, weight in named.items():
        assert places[weight][0].part == part_of(name, FAMILIES["qwen3_vl"])
        assert places[weight][1] == (0.0 if any(weight is other for other in plain) else 0.1)


def test_the_rates_of_each_group_are_printed(tiny_models):
    model = on_meta(tiny_models["qwen3_vl"])
    phases = read_phases([{"until": 2, "llm_lr": 0}, {"until": 9, "llm_lr": 1e-5}])
    text = describe_rates(model, LearningRates(1e-3, {"vision": 0, "merger": 3e-4, "adapter": 1}, phases))
    count = sum(
        weight.numel() for name, weight in model.named_parameters() if ".visual.merger" in name or "deepstack" in name
    )
    assert f"  merger: {count:,} parameters, 0.0003\n" in text
    assert "parameters, 0, 1e-05 from epoch 2\n" in text and "parameters, frozen\n" in text
    assert text.endswith("note: adapter_lr has no effect, because this run trains no such weights")


# ---- training ----------------------------------------------------------------------------------------------------------


def weights_of(folder, word: str = "") -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in load_file(folder / "adapter_model.safetensors").items() if word in name}


def are_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_same_rate_for_every_part_trains_as_without_these_keys(squares, tmp_path):
    options = (*ALL_PARTS, "--max_steps", 3, "--learning_rate", 1e-3, "--weight_decay", 0.1, "--warmup_steps", 1)
    plain = train(squares, tmp_path / "plain", *options)
    parts = train(squares, tmp_path / "parts", *options, *(word for key in RATES for word in (key, 1e-3)))
    assert are_equal(weights_of(plain / "final"), weights_of(parts / "final"))
    groups = [torch.load(run / "checkpoint-3" / "optimizer.pt")["param_groups"] for run in (plain, parts)]
    assert [len(each) for each in groups] == [2, 3] and "part" not in groups[0][0]
    assert not any("/llm" in key for entry in log_history(plain, 3) for key in entry)
    for entry in log_history(parts, 3)[:3]:
        norms = [entry[f"grad_norm/{part}"] for part in ("vision", "merger", "llm")]
        assert math.hypot(*norms) == pytest.approx(entry["grad_norm"], rel=1e-5)
        assert entry["weight_norm/llm"] > entry["weight_norm/merger"] > 0
        assert entry["learning_rate/llm"] == pytest.approx(entry["learning_rate"])


def write_phases(tmp_path, text: str):
    path = tmp_path / "phases.yaml"
    path.write_text(f"phases: {text}\n")
    return path


def test_a_group_at_rate_0_stays_bit_equal_and_learns_in_its_own_phase(squares, tmp_path, capsys):
    """16 steps are an epoch. Frozen weights count neither for the clipped norm nor for the moments of AdamW."""
    options = (*ALL_PARTS, "--weight_decay", 0.5, "--max_grad_norm", 0.1, "--learning_rate", 1e-3, "--merger_lr", 1e-4)
    options += ("--warmup_steps", 0, "--lr_scheduler_type", "constant")
    frozen = train(squares, tmp_path / "frozen", *options, "--vision_lr", 0)
    assert "parameters, frozen" in capsys.readouterr().out
    phases = write_phases(tmp_path, "[{until: 0.125, vision_lr: 0}, {until: 1, llm_lr: 0, peft_lr: 2e-3}]")
    run = train(
        squares,
        tmp_path / "run",
        *options,
        "--max_steps",
        3,
        "--save_steps",
        1,
        "--save_total_limit",
        9,
        overlay=phases,
    )
    assert are_equal(weights_of(run / "checkpoint-2"), weights_of(frozen / "final"))
    untouched = [weight for name, weight in weights_of(frozen / "final", "blocks").items() if "lora_B" in name]
    assert untouched and not any(weight.any() for weight in untouched)
    state = torch.load(run / "checkpoint-2" / "optimizer.pt")
    with_moments = {part: [] for part in ("vision", "merger", "llm")}
    for group in state["param_groups"]:
        with_moments[group["part"]] += [number in state["state"] for number in group["params"]]
    assert [{*found} for found in with_moments.values()] == [{False}, {True}, {True}]
    assert all(weight.any() for weight in weights_of(run / "checkpoint-3", "blocks").values())
    assert [entry["learning_rate/peft"] for entry in log_history(run, 3)[2:3]] == pytest.approx([2e-3])


def test_only_the_detection_head_is_trained_if_the_rates_of_the_rest_are_0(squares, tmp_path):
    """Its adapters are frozen until epoch 0.125, the third of 16 steps."""
    phases = tmp_path / "phases.yaml"
    phases.write_text("vision_lr: 0\nllm_lr: 0\ndetection_lr: 1.0e-3\nadapter_lr: 1.0e-3\nwarmup_steps: 0\n")
    phases.write_text(f"{phases.read_text()}phases: [{{until: 0.125, adapter_lr: 0}}, {{until: 1}}]\n")
    options = ("--max_steps", 3, "--save_steps", 1, "--save_total_limit", 9)
    run = train(squares, tmp_path / "run", *options, config="tiny_detection_head", overlay=phases)
    heads = [load_file(head_weights(run / f"checkpoint-{step}")) for step in (1, 2, 3)]
    is_equal = [{name: torch.equal(one[name], two[name]) for name in one} for one, two in pairwise(heads)]
    assert {equal for name, equal in is_equal[0].items() if name.startswith("adapters.")} == {True}
    assert not all(equal for name, equal in is_equal[1].items() if name.startswith("adapters."))
    assert not all(equal for name, equal in is_equal[0].items() if not name.startswith("adapters."))
    assert not any(weight.any() for name, weight in weights_of(run / "final").items() if "lora_B" in name)


def test_the_soft_prompt_learns_at_the_rate_of_the_language_model_or_at_peft_lr(squares, tmp_path):
    phases = write_phases(tmp_path, "[{until: 0.125, llm_lr: 0}, {until: 1, llm_lr: 0, peft_lr: 1e-3}]")
    options = (
        "--num_virtual_tokens",
        2,
        "--warmup_steps",
        0,
        "--max_steps",
        3,
        "--save_steps",
        1,
        "--save_total_limit",
        9,
    )
    run = train(squares, tmp_path / "run", *options, overlay=phases)
    prompts = [load_file(run / f"checkpoint-{step}" / "prompt_embeddings.safetensors") for step in (1, 2, 3)]
    assert [are_equal(one, two) for one, two in pairwise(prompts)] == [True, False]


def test_phases_that_end_before_the_run_are_refused_when_max_steps_says_how_long_it_is(squares, tmp_path, capsys):
    phases = write_phases(tmp_path, "[{until: 0.05, vision_lr: 0}]")
    with pytest.raises(SystemExit) as stop:
        train(squares, tmp_path / "run", overlay=phases)
    assert stop.value.code == 2
    assert "the last ends at epoch 0.05, but the run has 0.125 epochs" in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_sharded_training_refuses_rates_by_part(variable, monkeypatch):
    with_rate, plain = (
        load_recipe(["--config", "tiny_nutrition_qlora", *words]) for words in (["--llm_lr", "1e-4"], [])
    )
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UserError, match=r"Launch with recipes/accelerate/ddp\.yaml"):
        choose_rates(with_rate)
    assert not choose_rates(plain)
