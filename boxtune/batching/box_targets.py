"""Targets of the box losses for a batch, as tensors: true digits, boxes and decisions, and where each is predicted."""

import torch
from torch import Tensor

from boxtune.answers.codecs import Codec
from boxtune.batching.answer_tokens import AnswerTokens


def collate_targets(
    answers: list[tuple[int, int, AnswerTokens]], input_sizes: list[tuple[int, int]], codec: Codec
) -> dict[str, Tensor]:
    """The targets of a batch, from its responses as (row, position of the response's first token, its tokens).

    digit_at (D, 2): row and position of the hidden state that predicts a digit. digit (D,): its true value. place (D,): its
    place value, 1, 10, 100, … edge (D,): 4 · box + 0…3 for x0, y0, x1, y1.
    boxes_xyxy (B, 4): true boxes as written in the response. sides (B, 4): coordinates of the image's far border.
    decision_at (S, 2): row and position that predict a decision. decision_tokens (S, 2): the tokens that continue and stop.
    goes_on (S,): whether continuing is right.
    All are integers: DeepSpeed casts floating-point inputs to the model's dtype, and bfloat16 would lose the last digit.
    """
    digit_at, digit, place, edge, boxes, sides = [], [], [], [], [], []
    decision_at, decision_tokens, goes_on = [], [], []
    for row, start, answer in answers:
        extent = codec.frame.extent(input_sizes[row])
        for tokens in () if codec.is_click else answer.objects:
            box = []
            for i, number in enumerate(tokens.numbers):
                places = [10 ** (len(number) - 1 - k) for k in range(len(number))]
                values = [answer.digits[index] for index in number]
                digit_at += [(row, start + index - 1) for index in number]
                digit += values
                place += places
                edge += [4 * len(boxes) + i] * len(number)
                box.append(sum(value * worth for value, worth in zip(values, places, strict=True)))
            boxes.append(box)
            sides.append(extent * 2)
        for decision in answer.decisions:
            decision_at.append((row, start + decision.index - 1))
            decision_tokens.append((decision.go_on, decision.stop))
            goes_on.append(decision.goes_on)
    return {
        "digit_at": torch.tensor(digit_at, dtype=torch.long).reshape(-1, 2),
        "digit": torch.tensor(digit, dtype=torch.long),
        "place": torch.tensor(place, dtype=torch.long),
        "edge": torch.tensor(edge, dtype=torch.long),
        "boxes_xyxy": torch.tensor(boxes, dtype=torch.long).reshape(-1, 4),
        "sides": torch.tensor(sides, dtype=torch.long).reshape(-1, 4),
        "decision_at": torch.tensor(decision_at, dtype=torch.long).reshape(-1, 2),
        "decision_tokens": torch.tensor(decision_tokens, dtype=torch.long).reshape(-1, 2),
        "goes_on": torch.tensor(goes_on, dtype=torch.bool),
    }


def target_counts(targets: dict[str, Tensor]) -> Tensor:
    """(3,) number of boxes, of decisions to stop and of decisions to continue: the denominators of iou, fp and fn loss."""
    goes_on = targets["goes_on"]
    boxes = torch.tensor(len(targets["boxes_xyxy"]), device=goes_on.device)
    return torch.stack([boxes, (~goes_on).sum(), goes_on.sum()])
