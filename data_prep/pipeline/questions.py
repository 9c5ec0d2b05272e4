"""Which classes each image's question asks for (--questions)."""

from typing import Any

from boxtune.data.questions import NO_DESCRIPTIONS, Descriptions, turns_for
from boxtune.data.records import Message
from data_prep.pipeline.hashing import fraction_of


def ask(
    item_id: str,
    objects: dict[str, list[Any]],
    classes: list[str],
    questions: str,
    descriptions: Descriptions = NO_DESCRIPTIONS,
) -> list[Message]:
    """The question and its placeholder answer, for all classes or for a single one.

    `questions` is "all", "mixed" (single classes that are present or absent, drawn by the id) or "most-common".
    """
    present = [name for name, ignored in zip(objects["category"], objects["ignore"], strict=True) if not ignored]
    single = None
    if questions == "mixed":
        single = _drawn_class(item_id, present, set(objects["category"]), classes)
    elif questions == "most-common" and present:
        single = max(classes, key=present.count)  # the first one of a tie
    return turns_for(classes, single, descriptions)


def _drawn_class(item_id: str, present: list[str], labeled: set[str], classes: list[str]) -> str | None:
    """A present class for a quarter of the images, an absent one for another quarter, else None; only the id decides.

    A class that has only ignored objects is in `labeled` but not in `present`: it counts as neither present nor absent.
    """
    draw = fraction_of(f"question {item_id}")
    if draw < 0.5:
        return None
    if draw < 0.75:
        candidates = [name for name in classes if name in present]
    else:
        candidates = [name for name in classes if name not in labeled]
    if not candidates:
        return None
    return candidates[int(fraction_of(f"class {item_id}") * len(candidates))]
