"""Progressive unfreezing: adapters of the last vision blocks first, those of more blocks while the guardrails hold."""

import re
from collections.abc import Sequence

from torch import nn
from transformers import TrainerState

from boxtune.common.errors import UserError
from boxtune.training.console import say

# The key of a change in the log history, which is saved with every checkpoint: how many vision blocks train from then on.
BLOCKS = "trained_vision_blocks"


class Unfreezing:
    """stages: how many of the last vision blocks train, in rising order, such as (2, 4, 6). path: of the vision blocks.

    All adapters exist from the start. Those that wait get no gradient, so they stay zero and the optimizer leaves them alone.
    """

    def __init__(self, stages: Sequence[int], path: str, depth: int):
        """Raises UserError unless the stages rise from at least 1 to at most `depth`, the number of vision blocks."""
        if list(stages) != sorted(set(stages)) or not 1 <= min(stages) <= max(stages) <= depth:
            raise UserError(
                f"vision_stages: the numbers must rise from at least 1 to at most {depth}, the number of vision blocks; got "
                f"{list(stages)}."
            )
        self.stages, self.path, self.depth = list(stages), path, depth

    def blocks(self, state: TrainerState) -> int:
        """How many of the last blocks train now."""
        changes = [entry[BLOCKS] for entry in state.log_history if BLOCKS in entry]
        return changes[-1] if changes else self.stages[0]

    def after_evaluation(self, state: TrainerState, problems: list[str]) -> None:
        """Go on to the next stage if the guardrails hold, which means that there are no `problems`. Prints the decision."""
        now = self.blocks(state)
        following = next((stage for stage in self.stages if stage > now), None)
        if following is None:
            return
        if problems:
            say(
                f"the last {now} vision blocks train on, not {following}, because the guardrails do not hold: "
                f"{'; '.join(problems)}"
            )
            return
        state.log_history.append({"step": state.global_step, BLOCKS: following})
        say(f"the guardrails hold, so the last {following} vision blocks train from step {state.global_step} on")

    def clear_waiting(self, model: nn.Module, state: TrainerState) -> None:
        """Drop the gradients of the blocks whose turn has not come."""
        block = re.compile(rf"(?:^|\.){re.escape(self.path)}\.(\d+)\.")
        first = self.depth - self.blocks(state)
        for name, parameter in model.named_parameters():
            found = block.search(name)
            if found and int(found[1]) < first:
                parameter.grad = None
