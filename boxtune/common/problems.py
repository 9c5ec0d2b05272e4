"""Lists in messages: at most twenty problems, then how many of each kind there are; at most twenty names in a sentence."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

MAX_EXAMPLES = 20
_MAX_KINDS = 20
_MAX_KIND_LENGTH = 200

# Parts of a problem that are values. What remains is its kind.
_QUOTED = r"(?<!\w)'(?:[^'\\]|\\.)*'(?!\w)|\"(?:[^\"\\]|\\.)*\""
_VALUES = re.compile(rf"{_QUOTED}|(?<!\S)\S*/\S*?(?=[:;,.)]*(?:\s|$))|(?<![\w.])[-+]?\d[\d.]*(?:e[-+]?\d+)?(?!\w)")
_BRACKETS = re.compile(r"[\[({][^\[\](){}]*…[^\[\](){}]*[\])}]")  # around values
_CUT_OFF = re.compile(
    r"(?:[\[({][^\])}]*|(?<!\w)['\"][^'\"]*)$"
)  # a shortened value, without its closing bracket or quote


class Problem(str):
    """A problem that knows what is wrong apart from where it is, so that problems of one kind can be counted."""

    parts: tuple[str, str]

    def __new__(cls, where: str, what: str) -> "Problem":
        """The text `where: what`. `what` may be a Problem itself, with a narrower place."""
        problem = super().__new__(cls, f"{where}: {what}")
        problem.parts = where, what
        return problem

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]  # pickled with errors of worker processes
        return self.parts


def join_names(names: Iterable[str]) -> str:
    """The names with commas between them, or twenty of them and how many more there are."""
    names = [*names]
    more = f" and {len(names) - MAX_EXAMPLES} more" if len(names) > MAX_EXAMPLES else ""
    return ", ".join(names[:MAX_EXAMPLES]) + more


def list_problems(problems: Sequence[str], bullet: str = "  - ") -> list[str]:
    """The lines of a message: all problems, or twenty of them and the number of each kind.

    The examples are the first of each kind and then the first of all, in the order of the problems.
    """
    if len(problems) <= MAX_EXAMPLES:
        return [f"{bullet}{problem}" for problem in problems]
    kinds: defaultdict[str, list[int]] = defaultdict(list)  # the positions of the problems of each kind
    for number, problem in enumerate(problems):
        kinds[_kind(_what(problem))].append(number)
    first_of_kinds = [numbers[0] for numbers in kinds.values()]
    chosen = sorted(list(dict.fromkeys([*first_of_kinds, *range(MAX_EXAMPLES)]))[:MAX_EXAMPLES])
    lines = [f"{bullet}{problems[number]}" for number in chosen]
    more = f"  … and {len(problems) - MAX_EXAMPLES} more"
    if len(kinds) > len(problems) / 2 or [*kinds] == ["…"]:  # bare names, such as ids
        return [*lines, f"{more}."]
    return [*lines, f"{more}. All {len(problems)} by kind:", *_counts(kinds, problems)]


def _counts(kinds: dict[str, list[int]], problems: Sequence[str]) -> Iterator[str]:
    """A line for each kind, the most frequent first."""
    by_count = sorted(kinds.items(), key=lambda item: -len(item[1]))
    for kind, numbers in by_count[:_MAX_KINDS]:
        label = _common_text([_what(problems[number]) for number in numbers]) or kind
        yield f"  {len(numbers):7} × {label:.{_MAX_KIND_LENGTH}}"
    if rest := [len(numbers) for _, numbers in by_count[_MAX_KINDS:]]:
        yield f"  {sum(rest):7} × of {len(rest)} other kinds"


def _what(problem: str) -> str:
    """What is wrong: the problem without the place at its start, such as `train.json: ` or `line 7: `."""
    if isinstance(problem, Problem):
        what = problem.parts[1]
        return _what(what) if isinstance(what, Problem) else what
    where, _, what = problem.partition(": ")
    return what or where


def _kind(what: str) -> str:
    """The problem with an ellipsis for every value: "id 'a' is unknown" → "id … is unknown"."""
    return _simplified(_VALUES.sub("…", what))


def _common_text(whats: list[str]) -> str | None:
    """Problems of one kind with an ellipsis only for the values that differ; None if their values do not correspond."""
    values = [_VALUES.findall(what) for what in whats]
    if len({len(row) for row in values}) > 1:
        return None
    common = iter([column[0] if len(set(column)) == 1 else "…" for column in zip(*values, strict=True)])
    return _simplified(_VALUES.sub(lambda _: next(common), whats[0]))


def _simplified(text: str) -> str:
    """The text with one ellipsis for brackets that hold one, and for a value whose end is cut off."""
    before = ""
    while text != before:
        text, before = _BRACKETS.sub("…", text), text
    return _CUT_OFF.sub("…", text)
