"""The LM loss of conversations with teachers (boxtune/batching/teachers.py): two means, one for each kind of response.

A teacher's response is as long as a student's, and there may be several. In one mean over all tokens, students would count for
little, although they alone are asked as in evaluation. So the teachers' tokens and the students' each have a mean of their own
over the whole step, and the loss is the sum of the two. In steps without teachers it is SFTTrainer's.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from boxtune.batching.encoder import IGNORE_INDEX


@contextmanager
def token_log_probs(model: torch.nn.Module) -> Iterator[list[Tensor]]:
    """A list that holds the (N, T − 1) log-probabilities of the labels, from the latest forward pass inside the `with` block.

    model: the one with TRL's fused LM head. SFTTrainer only returns their mean.
    """
    found: list[Tensor] = []

    def keep(module, args, output) -> None:
        found[:] = [output.log_probs]

    hook = model.register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


def count_tokens(batch: dict[str, Tensor]) -> Tensor:
    """(2,) number of supervised tokens in the responses of teachers and of students."""
    supervised = batch["labels"] != IGNORE_INDEX
    teachers = batch["teacher_tokens"]
    return torch.stack([(supervised & teachers).sum(), (supervised & ~teachers).sum()])


def split_lm_loss(log_probs: Tensor, teacher_tokens: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """{"teacher_lm", "student_lm"}: this batch's share of both means.

    log_probs: (N, T − 1), those of the labels from the second token on; 0 where a token is not supervised.
    teacher_tokens: (N, T). counts: (2,) number of tokens in the whole step, as in `count_tokens`.
    """
    teachers = teacher_tokens[:, 1:]
    sums = torch.stack([-log_probs[teachers].float().sum(), -log_probs[~teachers].float().sum()])
    teacher, student = sums / counts.clamp(min=1)
    return {"teacher_lm": teacher, "student_lm": student}
