"""Guardrails in training: the probes at evaluations, what they decide, and which checkpoint may be the best."""

from collections.abc import Callable
from statistics import mean
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, TrainerCallback, TrainerState

from boxtune.metrics.guardrail_rules import Probe, promotion_problems
from boxtune.training.console import say
from boxtune.training.guardrail_stops import Evaluation, StopLimits, stop_reasons
from boxtune.training.kept_state import keeping_state
from boxtune.training.unfreezing import Unfreezing

# Keys of the log history, which is saved with every checkpoint: the probes before the first step, in an entry of its own, and
# the prefix of a probe in the entry of an evaluation.
BASELINE = "guardrail_baseline"
PREFIX = "eval_guardrail_"

Ask = Callable[[PreTrainedModel | PeftModel], dict[str, Probe]]


class Guardrails(TrainerCallback):
    """Asks the probes before the first step and at evaluations, and stops a run whose model forgets.

    ask: measures the probes of a model; the same result in every process. every: at every so many evaluations. pass_drop,
    hallucination_rise: limits of a checkpoint that may be selected as the best (guardrail_rules.promotion_problems).
    All that was measured is in the log history, so a resumed run continues with it.
    """

    def __init__(
        self,
        ask: Ask,
        every: int,
        limits: StopLimits,
        pass_drop: float,
        hallucination_rise: float,
        unfreezing: Unfreezing | None = None,
    ):
        self.ask, self.every, self.limits = ask, every, limits
        self.pass_drop, self.hallucination_rise = pass_drop, hallucination_rise
        self.unfreezing = unfreezing

    def measure(self, model: PreTrainedModel | PeftModel, state: TrainerState, prefix: str) -> dict[str, float]:
        """{prefix + "_guardrail_NAME": value} at an evaluation; empty if it is not the turn of this one."""
        if (len(read_history(state.log_history)) + 1) % self.every:
            return {}
        return {f"{prefix}_guardrail_{name}": value for name, value in values(self.ask(model)).items()}

    def selection_problems(self, metrics: dict[str, float], state: TrainerState) -> list[str]:
        """Why the model of an evaluation with these metrics may not be selected as the best; empty if it may."""
        baseline = read_baseline(state.log_history)
        probes = {name: Probe(value, 0, baseline.get(name)) for name, value in _probes_in(metrics).items()}
        return promotion_problems(probes, self.pass_drop, self.hallucination_rise)

    def keeps(self, state: TrainerState, selects_best: bool) -> bool:
        """Whether the model at the end of a run keeps the guardrails: the best checkpoint, or else that of the last probes."""
        if selects_best:
            return state.best_model_checkpoint is not None
        probed = [entry for entry in state.log_history if _probes_in(entry)]
        return not probed or not self.selection_problems(probed[-1], state)

    # ---- called by the trainer -----------------------------------------------------------------------------------------

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if not read_baseline(state.log_history):
            with keeping_state(model):
                model.eval()
                baseline = values(self.ask(model))
            state.log_history.append({"step": state.global_step, BASELINE: baseline})
            say(f"guardrails before training: {_shown(baseline)}")

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        history, baseline = read_history(state.log_history), read_baseline(state.log_history)
        if history[-1].probes:
            say(f"guardrails at step {state.global_step}: {_shown(history[-1].probes)}")
        reasons = stop_reasons(history, baseline, self.limits)
        if reasons:
            say(f"stopping at step {state.global_step}: {'; '.join(reasons)}")
            control.should_training_stop = True
        elif self.unfreezing and history[-1].probes:
            self.unfreezing.after_evaluation(state, self.selection_problems(metrics, state))


def values(probes: dict[str, Probe]) -> dict[str, float]:
    """{probe: value}, without those that could not be measured."""
    return {name: probe.value for name, probe in probes.items() if probe.value is not None}


def read_baseline(log_history: list[dict[str, Any]]) -> dict[str, float]:
    """The probes before the first step; empty if they have not been asked."""
    return next((entry[BASELINE] for entry in log_history if BASELINE in entry), {})


def read_history(log_history: list[dict[str, Any]]) -> list[Evaluation]:
    """The evaluations of a run so far."""
    losses: list[float] = []
    history = []
    for entry in log_history:
        if "loss" in entry:
            losses.append(entry["loss"])
        if "eval_loss" in entry:
            train_loss = mean(losses) if losses else None
            history.append(Evaluation(entry["step"], _probes_in(entry), entry["eval_loss"], train_loss))
            losses = []
    return history


def _probes_in(metrics: dict[str, Any]) -> dict[str, float]:
    return {key.removeprefix(PREFIX): value for key, value in metrics.items() if key.startswith(PREFIX)}


def _shown(probes: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in probes.items())
