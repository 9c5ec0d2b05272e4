"""Numbers formatted for people, in terminal tables and on pages."""

from collections.abc import Iterable


def format_number(value: float | int | None) -> str:
    """Fractions with three decimals, counts as they are, a dash for undefined values."""
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def format_difference(before: float | int | None, after: float | int | None) -> str:
    """`after` minus `before` with its sign; a dash if one of them is undefined."""
    if before is None or after is None:
        return "–"
    if isinstance(after, int) and isinstance(before, int):
        return f"{after - before:+d}"
    return f"{round(after - before, 3) + 0.0:+.3f}"  # adding zero turns −0 into 0


def format_interval(interval: list[float] | None) -> str:
    """ "0.412 to 0.538"; empty if there is no interval."""
    return f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""


def format_ranges(numbers: Iterable[int]) -> str:
    """[0, 20, 21, 22] → "0, 20-22"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
