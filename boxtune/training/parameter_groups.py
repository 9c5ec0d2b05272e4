"""The trained weights of a model by part: which are frozen, the optimizer's groups, and their gradients, norms and rates."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback, TrainerState

from boxtune.common.errors import UserError
from boxtune.families.family import Family
from boxtune.models.config import family_of
from boxtune.training.phases import PARTS, PEFT, LearningRates, ends_early
from boxtune.training.skipped_steps import SkippedSteps


class Group(NamedTuple):
    """part: one of PARTS. is_peft: whether the weights are LoRA's or the soft prompt's."""

    part: str
    is_peft: bool

    def name(self, rates: LearningRates) -> str:
        """The recipe key of the group's rate, without `_lr`."""
        return PEFT if self.is_peft and rates.uses(PEFT) else self.part


Groups = dict[Group, list[torch.nn.Parameter]]


def part_of(name: str, family: Family) -> str | None:
    """The part to which a parameter belongs, by its path; None if it belongs to none."""
    places = {
        "adapter": r"detection_head\.adapters",
        "detection": "detection_head",
        "merger": family.lora_parts["merger"],
        "vision": re.escape(family.vision_tower),
        "llm": "|".join(map(re.escape, (family.language_model, family.lm_head, "soft_prompt"))),
    }
    return next((part for part, place in places.items() if re.search(rf"\.(?:{place})\.", f".{name}")), None)


def trained_groups(model: torch.nn.Module) -> Groups:
    """The weights that require gradients, by group. Raises UserError that names those that belong to no part."""
    groups: Groups = {}
    unknown = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = part_of(name, family_of(model.config))
        if part is None:
            unknown.append(name)
            continue
        # In an adapted model, all that is trained outside the detection head belongs to the adapter, biases too. Modules that
        # are trained whole have the rate of their part.
        is_whole = ".modules_to_save." in name
        adapted = isinstance(model, PeftModel) and part not in ("detection", "adapter") and not is_whole
        groups.setdefault(Group(part, adapted or ".soft_prompt." in f".{name}"), []).append(parameter)
    if unknown:
        raise UserError(
            f"these trained weights belong to none of {', '.join(PARTS)}, so they have no learning rate; omit the keys that "
            "end in _lr, or do not train them:",
            unknown,
        )
    return {group: groups[group] for group in sorted(groups, key=lambda group: PARTS.index(group.part))}


# ---- before training ---------------------------------------------------------------------------------------------------


def freeze(model: torch.nn.Module, rates: LearningRates) -> None:
    """Freeze the groups whose rate is 0 in the whole run. Raises UserError if nothing would be trained at some time."""
    groups = trained_groups(model)
    for group, weights in groups.items():
        if rates.is_frozen(*group):
            for weight in weights:
                weight.requires_grad_(False)
    idle = [start for start in rates.starts() if not any(rates.stated(*group, start) for group in groups)]
    if idle:
        raise UserError(
            f"all learning rates are 0 from epoch {idle[0]:g} on; raise one of those of this model: "
            f"{', '.join(dict.fromkeys(f'{group.name(rates)}_lr' for group in groups))}."
        )


def describe_rates(model: torch.nn.Module, rates: LearningRates) -> str:
    """The groups with their numbers of parameters and rates, and the keys that have no effect on this model."""
    groups = trained_groups(model)
    lines = ["learning rates:"]
    for group, weights in groups.items():
        count = sum(weight.numel() for weight in weights)
        kind = " (adapter)" if group.is_peft and group.part in ("vision", "merger", "llm") else ""
        lines.append(f"  {group.part}{kind}: {count:,} parameters, {_describe_group(group, rates)}")
    names = {group.part for group in groups} | {PEFT for group in groups if group.is_peft}
    idle = [f"{name}_lr" for name in (*PARTS, PEFT) if rates.uses(name) and name not in names]
    if idle:
        lines.append(f"note: {', '.join(idle)} has no effect, because this run trains no such weights")
    return "\n".join(lines)


def _describe_group(group: Group, rates: LearningRates) -> str:
    if rates.is_frozen(*group):
        return "frozen"
    stated = [(start, rates.stated(*group, start)) for start in rates.starts()]
    changes = [pair for i, pair in enumerate(stated) if i == 0 or pair[1] != stated[i - 1][1]]
    return ", ".join(f"{rate:.3g}" + (f" from epoch {start:g}" if start else "") for start, rate in changes)


def split_groups(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> None:
    """Divide the groups of a new optimizer, which differ in weight decay, by part. Each names its `part` and `is_peft`."""
    group_by_weight = {weight: group for group, weights in trained_groups(model).items() for weight in weights}
    divided = []
    for options in optimizer.param_groups:
        by_group: Groups = {}
        for weight in options["params"]:
            by_group.setdefault(group_by_weight[weight], []).append(weight)
        divided += [{**options, "params": by_group[group], **group._asdict()} for group in sorted(by_group)]
    optimizer.param_groups = divided


# ---- in a step ---------------------------------------------------------------------------------------------------------


class GroupRates(TrainerCallback):
    """Sets the learning rate of each group of the optimizer, for its step only, so the schedule never sees it.

    The schedule gives each group `learning_rate` times its warm-up and decay. A group's rate is in the same ratio to
    `learning_rate`. After a skipped step all rates are lower for a while.
    """

    def __init__(self, rates: LearningRates, skipped_steps: SkippedSteps):
        self.rates, self.skipped_steps = rates, skipped_steps
        self.scheduled: list[float] = []

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        steps_in_epoch = -(-len(train_dataloader) // args.gradient_accumulation_steps)
        if problem := ends_early(self.rates.phases, state.max_steps / steps_in_epoch):
            raise UserError(problem)

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.scheduled = [options["lr"] for options in optimizer.param_groups]
        for options in optimizer.param_groups:
            options["lr"] = options["lr"] * self.factor(options, state) * self.skipped_steps.factor(state)

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        for options, rate in zip(optimizer.param_groups, self.scheduled, strict=True):
            options["lr"] = rate

    def factor(self, options: dict, state: TrainerState) -> float:
        """The ratio of a group's rate to `learning_rate` in the current step. options: a group of the optimizer."""
        if not self.rates:
            return 1.0
        rate = self.rates.at(
            options["part"], options["is_peft"], state.epoch or 0.0, state.global_step, state.max_steps
        )
        return rate / self.rates.default

    def clear_frozen(self, optimizer, state: TrainerState) -> None:
        """Drop the gradients of groups whose rate is 0 now: they count neither for the norm that is clipped nor in the moments
        of the optimizer, and without a gradient there is no weight decay either."""
        for options in optimizer.param_groups:
            if self.factor(options, state) == 0:
                for weight in options["params"]:
                    weight.grad = None

    def measure(self, optimizer, state: TrainerState, loss_scale: float) -> dict[str, Tensor]:
        """{"grad_norm/NAME", "weight_norm/NAME", "learning_rate/NAME"} of the current step. loss_scale: of fp16 training."""
        values: dict[str, Tensor] = {}
        by_name: dict[str, list[dict]] = {}
        for options in optimizer.param_groups:
            group = Group(options["part"], options["is_peft"])
            by_name.setdefault(group.name(self.rates), []).append(options)
        for name, members in by_name.items():
            weights = [weight for options in members for weight in options["params"]]
            device = weights[0].device
            rate = members[0]["lr"] * self.factor(members[0], state) * self.skipped_steps.factor(state)
            values[f"grad_norm/{name}"] = get_total_norm(list(_gradients(weights))).to(device) / loss_scale
            values[f"weight_norm/{name}"] = get_total_norm([weight.detach() for weight in weights])
            values[f"learning_rate/{name}"] = torch.tensor(rate, device=device)
        return values


def _gradients(weights: list[torch.nn.Parameter]) -> Iterator[Tensor]:
    return (weight.grad for weight in weights if weight.grad is not None)
