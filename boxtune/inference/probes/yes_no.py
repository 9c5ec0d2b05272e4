"""Yes/no questions about classes, made from the user's labels as in POPE: half of the right answers are yes, half are no."""

import random

from boxtune.data.questions import answer_category
from boxtune.inference.probes.material import Material, asking
from boxtune.inference.probes.subject import Shown, Subject
from boxtune.metrics.guardrail_rules import Probe, mean_of

ACCURACY, YES_RATE = "pope_accuracy", "pope_yes_rate"


def measure(subject: Subject, material: Material) -> dict[str, Probe]:
    """An answer that begins with neither yes nor no is wrong; it does not count for the rate of yes."""
    if subject.collator.encoder.prompt_opens_thought:
        return {ACCURACY: Probe(None, 0), YES_RATE: Probe(None, 0)}
    present, absent = yes_no_questions(material)
    said = subject.say([*present, *absent])
    right = [True] * len(present) + [False] * len(absent)
    return {
        ACCURACY: mean_of([answer is expected for answer, expected in zip(said, right, strict=True)]),
        YES_RATE: mean_of([answer for answer in said if answer is not None]),
    }


def yes_no_questions(material: Material) -> tuple[list[Shown], list[Shown]]:
    """(questions whose answer is yes, as many whose answer is no), in a fixed choice.

    The classes that an image lacks are those of its labels. A dataset whose images have every class gives no such question;
    then the unrelated images stand in.
    """
    present, absent = [], []
    for one in material.records:
        # Only an image that was asked for all classes shows which ones it lacks.
        if answer_category(one.record["messages"][1]["content"]) != (True, None):
            continue
        objects = one.record["objects"]
        certain = {
            name for name, ignored in zip(*(objects[k] for k in ("category", "ignore")), strict=True) if not ignored
        }
        present += [(one, name) for name in material.classes if name in certain]
        absent += [(one, name) for name in material.classes if name not in objects["category"]]
    if not absent:
        absent = [(one, name) for one in material.unrelated for name in material.classes]
    count = min(len(present), len(absent), max(1, material.suite.questions // 2))
    rng, text = random.Random(material.suite.seed), material.suite.yes_no_question
    chosen = [rng.sample(questions, count) for questions in (present, absent)]
    yes, no = ([asking(one, text.format(name), f"is there {name}") for one, name in pairs] for pairs in chosen)
    return yes, no
