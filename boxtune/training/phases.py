"""The learning rate of each part of a model over a run: its recipe keys, and the phases that replace their values.

Only plain numbers: boxtune/training/parameter_groups.py says which weights belong to a part, and sets the rates.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

# The parts of a model that have learning rates of their own.
PARTS = ("vision", "merger", "llm", "detection", "adapter")
# Replaces the rates of the parts for the weights of LoRA and of the soft prompt.
PEFT = "peft"
RATE_KEYS = tuple(f"{name}_lr" for name in (*PARTS, PEFT))
# The share of a run after which `llm_lr_tail` applies.
TAIL_START = 0.75


@dataclass(frozen=True)
class Phase:
    """The rates of the epochs before `until` that no earlier phase has. rates: {part or PEFT: learning rate}."""

    until: float
    rates: Mapping[str, float]


@dataclass(frozen=True)
class LearningRates:
    """The recipe keys of learning rates. As a boolean: whether the recipe uses any of them.

    default: `learning_rate`, the rate of each part that has none of its own. rates: {part or PEFT: learning rate}, without
    those that the recipe leaves out. detection_freeze_epochs: the head and its adapters have rate 0 before that epoch.
    vision_warmup_steps: linear warm-up of the vision tower and merger. llm_lr_tail: factor of the language model's rate in the
    last quarter of the run.
    """

    default: float
    rates: Mapping[str, float] = field(default_factory=dict)
    phases: tuple[Phase, ...] = ()
    detection_freeze_epochs: float = 0
    vision_warmup_steps: int = 0
    llm_lr_tail: float = 1

    def __bool__(self) -> bool:
        others = self.detection_freeze_epochs, self.vision_warmup_steps, self.llm_lr_tail != 1
        return bool(self.rates or self.phases or any(others))

    def stated(self, part: str, is_peft: bool, epoch: float) -> float:
        """The rate that the recipe states for an epoch."""
        if part in ("detection", "adapter") and epoch < self.detection_freeze_epochs:
            return 0.0
        current = next((phase.rates for phase in self.phases if epoch < phase.until), {})
        return self._chosen(part, is_peft, {**self.rates, **current})

    def at(self, part: str, is_peft: bool, epoch: float, step: int, steps: int) -> float:
        """The rate of a step, before the schedule's own warm-up and decay. steps: number of steps of the run."""
        rate = self.stated(part, is_peft, epoch)
        if part in ("vision", "merger") and step < self.vision_warmup_steps:
            return rate * (step + 1) / self.vision_warmup_steps
        return rate * self.llm_lr_tail if part == "llm" and step >= TAIL_START * steps else rate

    def starts(self) -> list[float]:
        """The epochs at which a stated rate may change."""
        return sorted({0.0, self.detection_freeze_epochs, *(phase.until for phase in self.phases[:-1])})

    def is_frozen(self, part: str, is_peft: bool) -> bool:
        """Whether the rate is 0 in the whole run."""
        return not any(self._chosen(part, is_peft, rates) for rates in self._stages())

    def uses(self, name: str) -> bool:
        """Whether a part or PEFT has a rate of its own at some time."""
        return any(name in rates for rates in self._stages())

    def _stages(self) -> list[Mapping[str, float]]:
        return [{**self.rates, **phase.rates} for phase in self.phases] or [self.rates]

    def _chosen(self, part: str, is_peft: bool, rates: Mapping[str, float]) -> float:
        own = rates.get(part, self.default)
        return rates.get(PEFT, own) if is_peft else own


def read_phases(values: list[dict] | None) -> tuple[Phase, ...]:
    """The phases of a recipe. `values` have passed `phase_problems`."""
    return tuple(
        Phase(float(value["until"]), {key.removesuffix("_lr"): float(value[key]) for key in value if key != "until"})
        for value in values or ()
    )


def phase_problems(values: list[dict] | None) -> Iterator[str]:
    """Everything that is wrong with the recipe key `phases`."""
    if values is None:
        return
    if not values:
        yield "phases: the list is empty; omit it or name at least one phase, such as {until: 5, llm_lr: 0}"
    earlier = 0.0
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            yield f"phases: {number}: {value!r} must be a mapping such as {{until: 5, llm_lr: 0}}"
            continue
        for key in [key for key in value if key not in ("until", *RATE_KEYS)]:
            yield f"phases: {number}: unknown key {key!r}; use until and any of {', '.join(RATE_KEYS)}"
        for key in [key for key in RATE_KEYS if key in value and not _number(value[key]) >= 0]:
            yield f"phases: {number}: {key}: {value[key]!r} must be a number, 0 or more"
        until = _number(value.get("until"))
        if not until > earlier:
            yield f"phases: {number}: until: {value.get('until')!r} must be an epoch after {earlier:g}, the end before it"
        else:
            earlier = until


def ends_early(phases: tuple[Phase, ...], epochs: float) -> str | None:
    """Why phases do not cover a run of so many epochs, or None."""
    if not phases or phases[-1].until >= epochs:
        return None
    return f"phases: the last ends at epoch {phases[-1].until:g}, but the run has {epochs:g} epochs; raise its until"


def _number(value: object) -> float:
    """The finite number of a YAML value, which may be text such as 1e-5; NaN if it is none."""
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan
