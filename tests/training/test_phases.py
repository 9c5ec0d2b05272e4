"""Learning rates by part and epoch, as plain numbers, and what is refused in a recipe."""

import pytest

from boxtune.common.errors import UserError
from boxtune.training.phases import LearningRates, ends_early, read_phases
from boxtune.training.recipe import load_recipe

PHASES = [
    {"until": 5, "detection_lr": "1e-4", "adapter_lr": 5e-4, "llm_lr": 0},
    {"until": "15", "llm_lr": "1e-5"},
    {"until": 25, "llm_lr": "5e-6", "peft_lr": 2e-6},
]


def test_a_phase_replaces_the_rates_of_the_keys_until_its_epoch():
    rates = LearningRates(1e-3, {"llm": 3e-4, "vision": 7e-5}, read_phases(PHASES))
    stated = {epoch: rates.stated("llm", False, epoch) for epoch in (0, 4.99, 5, 14.9, 15, 24.9)}
    assert stated == {0: 0, 4.99: 0, 5: 1e-5, 14.9: 1e-5, 15: 5e-6, 24.9: 5e-6}
    assert rates.stated("detection", False, 4) == 1e-4 and rates.stated("adapter", False, 4) == 5e-4
    # Without a rate in the phase: that of the key, or else learning_rate.
    assert rates.stated("vision", False, 4) == 7e-5 and rates.stated("detection", False, 5) == 1e-3
    # LoRA and soft prompt have the rate of their part unless the phase has peft_lr.
    assert [rates.stated("llm", True, epoch) for epoch in (4, 5, 15)] == [0, 1e-5, 2e-6]
    assert rates.starts() == [0, 5, 15]


def test_only_a_rate_of_0_in_every_phase_freezes_for_the_whole_run():
    rates = LearningRates(1e-3, {"llm": 0, "vision": 0}, read_phases(PHASES))
    assert rates.is_frozen("vision", False) and not rates.is_frozen("llm", False)
    assert not rates.is_frozen("vision", True)  # peft_lr of the last phase
    assert LearningRates(1e-3, {"peft": 0}).is_frozen("llm", True)
    assert not LearningRates(1e-3, {"peft": 0}).is_frozen("llm", False)


def test_the_head_is_frozen_until_its_epoch():
    rates = LearningRates(1e-3, {"detection": 1e-4}, detection_freeze_epochs=1.5)
    assert [rates.at("detection", False, epoch, 3, 9) for epoch in (0, 1.4, 1.5)] == [0, 0, 1e-4]
    assert [rates.at("adapter", False, epoch, 3, 9) for epoch in (0, 1.4, 1.5)] == [0, 0, 1e-3]
    assert rates.at("llm", False, 0, 3, 9) == 1e-3
    assert rates.starts() == [0, 1.5] and not rates.is_frozen("detection", False)


def test_vision_warm_up_and_tail_of_the_language_model():
    rates = LearningRates(1e-3, {"merger": 4e-4}, vision_warmup_steps=4, llm_lr_tail=0.1)
    merger = [rates.at("merger", True, 0.0, step, 8) for step in range(6)]
    assert merger == pytest.approx([1e-4, 2e-4, 3e-4, 4e-4, 4e-4, 4e-4])
    assert [rates.at("vision", False, 0.0, step, 8) for step in (0, 7)] == [2.5e-4, 1e-3]
    llm = [rates.at("llm", True, 0.0, step, 8) for step in range(8)]
    assert llm == pytest.approx([1e-3] * 6 + [1e-4] * 2)


def test_keys_that_are_left_out_change_nothing():
    assert not LearningRates(1e-3)
    for keys in ({"rates": {"llm": 0}}, {"phases": read_phases(PHASES)}, {"detection_freeze_epochs": 1}):
        assert LearningRates(1e-3, **keys)
    assert LearningRates(1e-3, vision_warmup_steps=1) and LearningRates(1e-3, llm_lr_tail=0.1)


def load(tmp_path, text: str):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return load_recipe(["--config", "tiny_nutrition_qlora", "--overlay", str(path)])


def test_phases_of_a_recipe_are_read_with_numbers_as_text(tmp_path):
    """YAML reads 1e-5 as text inside a mapping."""
    recipe = load(tmp_path, "phases:\n- {until: 2, llm_lr: 1e-5}\n- until: 900\n  peft_lr: 2.0e-4\n")
    first, second = read_phases(recipe.options.phases)
    assert (first.until, first.rates) == (2, {"llm": 1e-5}) and (second.until, second.rates) == (900, {"peft": 2e-4})


def test_all_problems_of_phases_are_reported_at_once(tmp_path):
    rows = ["{until: 3, llm_rate: 1}", "{llm_lr: 1}", "{until: 3, llm_lr: fast}", "{until: 4, vision_lr: -1}", "5"]
    with pytest.raises(UserError) as error:
        load(tmp_path, f"phases: [{', '.join(rows)}]\nvision_lr: -2\nllm_lr_tail: 0\n")
    message = str(error.value)
    for expected in (
        "phases: 1: unknown key 'llm_rate'; use until and any of vision_lr, merger_lr",
        "phases: 2: until: None must be an epoch after 3",
        "phases: 3: llm_lr: 'fast' must be a number",
        "phases: 3: until: 3 must be an epoch after 3",
        "phases: 4: vision_lr: -1 must be a number, 0 or more",
        "phases: 5: 5 must be a mapping",
        "vision_lr: -2.0 must be 0 or more",
        "llm_lr_tail: 0.0 must be above 0, at most 1",
    ):
        assert expected in message


@pytest.mark.parametrize("phases", ["phases: []", "phases: {until: 3}", "phases: 5"])
def test_phases_of_the_wrong_shape_are_refused(phases, tmp_path):
    with pytest.raises(UserError, match="phases"):
        load(tmp_path, phases)


def test_phases_must_cover_the_run(tmp_path):
    phases = "max_steps: -1\nphases: [{until: 5, llm_lr: 0}, {until: 9, llm_lr: 1e-5}]\n"
    load(tmp_path, f"{phases}num_train_epochs: 9\n")
    with pytest.raises(UserError, match="the last ends at epoch 9, but the run has 10 epochs"):
        load(tmp_path, f"{phases}num_train_epochs: 10\n")
    assert ends_early((), 10) is None


def test_optimizers_that_step_in_the_backward_pass_are_refused(tmp_path):
    with pytest.raises(UserError, match="optim: galore_adamw_layerwise changes weights during the backward pass"):
        load(tmp_path, "optim: galore_adamw_layerwise\n")
