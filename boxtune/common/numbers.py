"""Numbers as a person reads them, in terminal tables and on pages alike."""


def format_number(value: float | int | None) -> str:
    """Three decimals for a fraction, a dash for what is undefined."""
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def format_difference(before: float | int | None, after: float | int | None) -> str:
    if before is None or after is None:
        return "–"
    if isinstance(after, int) and isinstance(before, int):
        return f"{after - before:+d}"
    return f"{round(after - before, 3) + 0.0:+.3f}"  # adding zero turns −0 into 0


def format_interval(interval: list[float] | None) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
