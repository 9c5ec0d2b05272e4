"""Guardrails in training: what scripted metrics decide, that the decisions survive in the log history, and real runs."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState

from boxtune.common.errors import UserError
from boxtune.metrics.guardrail_rules import Probe
from boxtune.training.guardrail_stops import StopLimits
from boxtune.training.guardrails import BASELINE, Guardrails, read_baseline, read_history
from boxtune.training.recipe import load_recipe
from boxtune.training.unfreezing import BLOCKS, Unfreezing
from tests.helpers.training import train

GOOD = {"irrelevant_pass_rate": 1.0, "hallucination_rate": 0.0}
BAD = {"irrelevant_pass_rate": 0.5, "hallucination_rate": 0.5}


class Run:
    """The trainer's calls around evaluations, with probes from a script."""

    def __init__(self, *script: dict[str, float], every: int = 1, unfreezing: Unfreezing | None = None):
        answers = iter(script)
        self.guardrails = Guardrails(
            lambda model: {name: Probe(value, 8) for name, value in next(answers).items()},
            every,
            StopLimits(),
            0.1,
            0.1,
            unfreezing,
        )
        self.state, self.control = TrainerState(), TrainerControl()
        self.model = torch.nn.Dropout()
        self.begin()

    def begin(self) -> None:
        self.guardrails.on_train_begin(None, self.state, self.control, model=self.model)

    def evaluate(self, eval_loss: float = 1.0, train_loss: float = 1.0) -> dict[str, float]:
        """One evaluation; returns its metrics."""
        self.state.global_step += 10
        self.state.log_history.append({"step": self.state.global_step, "loss": train_loss})
        metrics = {"eval_loss": eval_loss, **self.guardrails.measure(self.model, self.state, "eval")}
        self.state.log_history.append({"step": self.state.global_step, **metrics})
        self.guardrails.on_evaluate(None, self.state, self.control, metrics=metrics)
        return metrics


def test_the_baseline_is_measured_once_before_the_first_step():
    run = Run(GOOD)
    assert run.state.log_history == [{"step": 0, BASELINE: GOOD}]
    run.begin()  # a resumed run; the script has no second answer
    assert read_baseline(run.state.log_history) == GOOD
    assert run.model.training


def test_a_run_that_forgets_stops_and_names_the_figures(capsys):
    run = Run(GOOD, GOOD, BAD)
    run.evaluate()
    assert not run.control.should_training_stop
    run.evaluate()
    assert run.control.should_training_stop
    printed = capsys.readouterr().out
    assert "stopping at step 20: irrelevant_pass_rate fell from 1.00 to 0.50, by more than 0.20" in printed
    assert "hallucination_rate rose from 0.00 to 0.50" in printed


def test_probes_are_asked_at_every_so_many_evaluations():
    run = Run(GOOD, GOOD, GOOD, every=2)
    measured = [len(run.evaluate()) > 1 for _ in range(4)]
    assert measured == [False, True, False, True]


def test_the_history_takes_the_training_losses_since_the_evaluation_before():
    log = [{"step": 5, "loss": 3.0}, {"step": 10, "loss": 1.0}, {"step": 10, "eval_loss": 2.5}]
    log += [{"step": 20, "loss": 1.0}, {"step": 20, "eval_loss": 1.5}, {"step": 20, "eval_loss": 1.5}]
    assert [evaluation.gap for evaluation in read_history(log)] == [0.5, 0.5, None]


@pytest.mark.parametrize(
    ("probes", "expected"),
    [(GOOD, 0), (BAD, 2), ({"irrelevant_pass_rate": 0.9, "hallucination_rate": 0.1}, 0), ({}, 2)],
)
def test_only_a_checkpoint_within_the_limits_may_be_the_best(probes, expected):
    run = Run(GOOD)
    metrics = {f"eval_guardrail_{name}": value for name, value in probes.items()}
    assert len(run.guardrails.selection_problems(metrics, run.state)) == expected


# ---- progressive unfreezing ----------------------------------------------------------------------------------------------


def test_more_blocks_train_only_while_the_guardrails_hold(capsys):
    slipping = {
        "irrelevant_pass_rate": 0.85,
        "hallucination_rate": 0.0,
    }  # may not be selected, but does not stop the run
    unfreezing = Unfreezing([2, 4, 6], "visual.blocks", 8)
    run = Run(GOOD, slipping, GOOD, GOOD, GOOD, unfreezing=unfreezing)
    trained = []
    for _ in range(4):
        run.evaluate()
        trained.append(unfreezing.blocks(run.state))
    assert trained == [2, 4, 6, 6]
    assert "the last 2 vision blocks train on, not 4, because the guardrails do not hold" in capsys.readouterr().out
    assert [entry[BLOCKS] for entry in run.state.log_history if BLOCKS in entry] == [4, 6]


def test_waiting_blocks_lose_their_gradients():
    unfreezing = Unfreezing([1, 2], "model.visual.blocks", 3)
    names = [f"base.model.visual.blocks.{i}.lora_A.weight" for i in range(3)] + ["base.model.layers.0.lora_A.weight"]
    parameters = {name: torch.nn.Parameter(torch.ones(1)) for name in names}
    for parameter in parameters.values():
        parameter.grad = torch.ones(1)
    model = SimpleNamespace(named_parameters=parameters.items)
    state = TrainerState()
    unfreezing.clear_waiting(model, state)
    assert [parameter.grad is not None for parameter in parameters.values()] == [False, False, True, True]
    for parameter in parameters.values():
        parameter.grad = torch.ones(1)
    state.log_history.append({"step": 1, BLOCKS: 2})
    unfreezing.clear_waiting(model, state)
    assert [parameter.grad is not None for parameter in parameters.values()] == [False, True, True, True]


@pytest.mark.parametrize("stages", [[0, 2], [2, 2], [4, 2], [2, 9]])
def test_stages_that_do_not_rise_within_the_tower_are_refused(stages):
    with pytest.raises(UserError, match="at most 8, the number of vision blocks"):
        Unfreezing(stages, "visual.blocks", 8)


# ---- real runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> str:
    """The cheapest suite that a run can stop on."""
    path = tmp_path_factory.mktemp("suite") / "two.yaml"
    path.write_text("probes: [unrelated]\nimages: 2\nunrelated_count: 2\n")
    return str(path)


EVALUATED = (
    "--eval_strategy",
    "steps",
    "--eval_steps",
    2,
    "--save_steps",
    2,
    "--save_total_limit",
    9,
    "--warmup_steps",
    0,
)
# The embedded model passes one of the two images. Limits that no run of a few steps breaks:
PATIENT = ("--stop_pass_rate_drop", 1, "--stop_hallucination_rise", 1, "--stop_loss_gap_rise", 100)


@pytest.mark.slow
def test_a_model_that_forgets_is_stopped_and_not_promoted(squares, tmp_path, suite, capsys):
    broken = ("--max_steps", 8, "--learning_rate", 3e-2, "--max_grad_norm", 100, "--load_best_model_at_end", "true")
    with pytest.raises(SystemExit) as stop:
        train(squares, tmp_path / "run", *EVALUATED, *broken, "--guardrails", suite)
    printed = capsys.readouterr().out
    assert stop.value.code == 1
    assert "guardrails before training: irrelevant_pass_rate " in printed
    assert "irrelevant_pass_rate fell from" in printed and "cannot be the best checkpoint" in printed
    assert "none keeps the guardrails" in printed
    assert not (tmp_path / "run" / "final").exists()


@pytest.mark.slow
def test_asking_the_guardrails_changes_no_step(squares, tmp_path, suite):
    options = (*EVALUATED, "--lora_dropout", 0.1)
    asked = train(squares, tmp_path / "asked", *options, *PATIENT, "--guardrails", suite, "--select_pass_rate_drop", 1)
    plain = train(squares, tmp_path / "plain", *options)
    weights = [load_file(run / "final" / "adapter_model.safetensors") for run in (asked, plain)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_the_adapters_of_waiting_blocks_stay_zero_until_their_turn(squares, tmp_path, suite):
    limits = (*PATIENT, "--select_pass_rate_drop", 1, "--select_hallucination_rise", 1)
    stages = ("--vision_stages", 1, 2, "--guardrails", suite, "--max_steps", 4, "--learning_rate", 1e-3)
    run = train(squares, tmp_path / "run", *EVALUATED, *limits, *stages)
    for step, trained in ((2, [7]), (4, [6, 7])):
        weights = load_file(run / f"checkpoint-{step}" / "adapter_model.safetensors")
        moved = {int(name.split("blocks.")[1].split(".")[0]) for name in weights if _moved(name, weights[name])}
        assert sorted(moved) == trained, f"step {step}"


def _moved(name: str, weight: torch.Tensor) -> bool:
    return "visual.blocks." in name and "lora_B" in name and bool(weight.any())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--guardrails", "nope", "--eval_strategy", "steps"), "no guardrail suite 'nope'"),
        (("--final_guardrails", "nope"), "final_guardrails: no guardrail suite"),
        (("--guardrails", "tiny"), "set eval_strategy: steps or epoch"),
        (("--vision_stages", "2"), "set guardrails: small"),
        (("--guardrails", "tiny", "--eval_strategy", "steps", "--select_pass_rate_drop", "2"), "must be from 0 to 1"),
    ],
)
def test_keys_that_cannot_work_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        load_recipe(["--config", "tiny_nutrition_qlora", "--eval_strategy", "no", *words])
