"""A scatter plot with intervals, a frontier and labels, drawn with PIL: better is always up and to the right.

Values from 0 to 1 are taken for fractions: neither ticks nor intervals go beyond these bounds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 1200, 800
# Drawn larger and reduced, because PIL draws lines and circles without smoothing.
SCALE = 2
LEFT, TOP, RIGHT, BOTTOM = 110, 90, 60, 110  # margins around the plot, in pixels of the result
INK, GRID, FAINT = "#1f2933", "#e4e7eb", "#9aa5b1"
FRONTIER, RECOMMENDED, OTHER = "#2563eb", "#12803b", "#8795a8"
FORBIDDEN, WARNING = "#fdf0ec", "#c93a0c"
RADIUS, FONT = 8, 20

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Axis:
    """is_cost: lower is better, so the axis runs from high to low. is_log: powers of ten. limit: the worst allowed value."""

    title: str
    is_cost: bool = False
    is_log: bool = False
    limit: float | None = None


@dataclass(frozen=True)
class Mark:
    """A run at (x, y), with the intervals of both if there are any."""

    name: str
    x: float
    y: float
    x_interval: list[float] | None = None
    y_interval: list[float] | None = None
    on_frontier: bool = False
    is_recommended: bool = False
    is_base: bool = False


def draw_scatter(marks: Sequence[Mark], across: Axis, up: Axis, title: str) -> Image.Image:
    """An RGB image of WIDTH × HEIGHT pixels."""
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
    draw = ImageDraw.Draw(image)
    limits = [] if across.limit is None else [across.limit]
    xs, ys = [mark.x for mark in marks], [mark.y for mark in marks]
    x_ends = [end for mark in marks for end in mark.x_interval or []] + limits
    y_ends = [end for mark in marks for end in mark.y_interval or []]
    x_ticks, x_place = _scale_of(xs, x_ends, across, LEFT * SCALE, (WIDTH - RIGHT) * SCALE)
    y_ticks, y_place = _scale_of(ys, y_ends, up, (HEIGHT - BOTTOM) * SCALE, TOP * SCALE)

    _draw_forbidden(draw, across, x_place)
    _draw_axes(draw, across, up, x_ticks, y_ticks, x_place, y_place)
    _draw_limit(draw, across, x_place)
    _draw_frontier(draw, [mark for mark in marks if mark.on_frontier], x_place, y_place)
    for mark in marks:
        _draw_intervals(draw, mark, x_place, y_place)
    for mark in sorted(marks, key=lambda mark: (mark.is_recommended, mark.on_frontier)):
        _draw_point(draw, mark, x_place(mark.x), y_place(mark.y))
    _draw_names(draw, marks, x_place, y_place)
    draw.text((LEFT * SCALE, 22 * SCALE), title, fill=INK, font=_font(1.2), anchor="la")
    _draw_legend(draw, marks)
    return image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


# ---- axes ----------------------------------------------------------------------------------------------------------------


def _scale_of(
    values: Sequence[float], ends: Sequence[float], axis: Axis, start: float, end: float
) -> tuple[list[float], Callable[[float], float]]:
    """(values to mark, function from a value to its pixel). ends: of the intervals. start, end: pixels of the worse and of the
    better end of the axis."""
    if axis.is_log:
        # The base, with no trained weights, is placed at the end.
        logs = [math.log10(value) for value in values if value > 0] or [0.0]
        first, last = min(logs) - 0.1, max(logs) + 0.1
        powers = range(math.floor(first), math.ceil(last) + 1)
        steps = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        ticks = [step for step in steps if first <= math.log10(step) <= last]
    else:
        is_fraction = all(0 <= value <= 1 for value in values)
        shown = [*values, *(min(max(value, 0.0), 1.0) if is_fraction else value for value in ends)]
        ticks = nice_ticks(min(shown), max(shown))
        ticks = [tick for tick in ticks if 0 <= tick <= 1] if is_fraction else ticks
        first, last = ticks[0], ticks[-1]
    least, most = first, last
    if axis.is_cost:
        first, last = last, first

    def place(value: float) -> float:
        number = math.log10(max(value, 1)) if axis.is_log else value
        number = min(max(number, least), most)
        return start + (number - first) / (last - first) * (end - start)

    return ticks, place


def nice_ticks(low: float, high: float) -> list[float]:
    """About six round numbers that enclose both values with some room."""
    room = max(0.08 * (high - low), 0.01)
    low, high = low - room, high + room
    raw = (high - low) / 6
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= raw)
    return [round(index * step, 10) for index in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _draw_axes(
    draw: ImageDraw.ImageDraw,
    across: Axis,
    up: Axis,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_place: Callable[[float], float],
    y_place: Callable[[float], float],
) -> None:
    left, top, right, bottom = LEFT * SCALE, TOP * SCALE, (WIDTH - RIGHT) * SCALE, (HEIGHT - BOTTOM) * SCALE
    for tick in x_ticks:
        x = x_place(tick)
        draw.line((x, top, x, bottom), GRID, SCALE)
        draw.text((x, bottom + 10 * SCALE), _tick_text(tick, across), fill=INK, font=_font(0.8), anchor="ma")
    for tick in y_ticks:
        y = y_place(tick)
        draw.line((left, y, right, y), GRID, SCALE)
        draw.text((left - 10 * SCALE, y), _tick_text(tick, up), fill=INK, font=_font(0.8), anchor="rm")
    draw.rectangle((left, top, right, bottom), outline=FAINT, width=SCALE)
    words = f"{across.title} ({'lower' if across.is_cost else 'higher'} is better, to the right)"
    draw.text(((left + right) / 2, bottom + 48 * SCALE), words, fill=INK, font=_font(), anchor="ma")
    draw.text((left, top - 12 * SCALE), f"{up.title} (higher is better)", fill=INK, font=_font(), anchor="lb")


def _tick_text(value: float, axis: Axis) -> str:
    return f"{value:,.0f}" if axis.is_log else f"{value:.10g}"


def _draw_forbidden(draw: ImageDraw.ImageDraw, across: Axis, x_place: Callable[[float], float]) -> None:
    """Where runs are worse than the limit of the rule."""
    if across.limit is not None:
        draw.rectangle((LEFT * SCALE, TOP * SCALE, x_place(across.limit), (HEIGHT - BOTTOM) * SCALE), fill=FORBIDDEN)


def _draw_limit(draw: ImageDraw.ImageDraw, across: Axis, x_place: Callable[[float], float]) -> None:
    if across.limit is None:
        return
    x, top, bottom = x_place(across.limit), TOP * SCALE, (HEIGHT - BOTTOM) * SCALE
    for y in range(top, bottom, 14 * SCALE):
        draw.line((x, y, x, min(y + 7 * SCALE, bottom)), WARNING, SCALE)
    anchor = "rb" if x > (LEFT + WIDTH - RIGHT) / 2 * SCALE else "lb"
    draw.text((x, bottom - 8 * SCALE), f"  limit {across.limit:.3f}  ", fill=WARNING, font=_font(0.8), anchor=anchor)


# ---- points --------------------------------------------------------------------------------------------------------------


def _draw_frontier(
    draw: ImageDraw.ImageDraw,
    marks: Sequence[Mark],
    x_place: Callable[[float], float],
    y_place: Callable[[float], float],
) -> None:
    """Steps from point to point: what lies below and to the left of them is dominated."""
    points = sorted((x_place(mark.x), y_place(mark.y)) for mark in marks)
    corners = points[:1]
    for (x, _), after in pairwise(points):
        corners += [(x, after[1]), after]
    if len(corners) > 1:
        draw.line(corners, FRONTIER, 2 * SCALE, joint="curve")


def _draw_intervals(
    draw: ImageDraw.ImageDraw, mark: Mark, x_place: Callable[[float], float], y_place: Callable[[float], float]
) -> None:
    x, y, cap = x_place(mark.x), y_place(mark.y), 4 * SCALE
    if mark.y_interval:
        low, high = map(y_place, mark.y_interval)
        draw.line((x, low, x, high), FAINT, SCALE)
        for end in (low, high):
            draw.line((x - cap, end, x + cap, end), FAINT, SCALE)
    if mark.x_interval:
        low, high = map(x_place, mark.x_interval)
        draw.line((low, y, high, y), FAINT, SCALE)
        for end in (low, high):
            draw.line((end, y - cap, end, y + cap), FAINT, SCALE)


def _color(mark: Mark) -> str:
    if mark.is_recommended:
        return RECOMMENDED
    return FRONTIER if mark.on_frontier else OTHER


def _draw_point(draw: ImageDraw.ImageDraw, mark: Mark, x: float, y: float) -> None:
    """A filled circle; a ring around the recommended run; a hollow square for the base."""
    radius, color = RADIUS * SCALE, _color(mark)
    if mark.is_base:
        draw.rectangle((x - radius, y - radius, x + radius, y + radius), fill="white", outline=color, width=3 * SCALE)
        return
    draw.circle((x, y), radius, fill=color, outline="white", width=SCALE)
    if mark.is_recommended:
        draw.circle((x, y), radius + 6 * SCALE, outline=color, width=2 * SCALE)


def _draw_names(
    draw: ImageDraw.ImageDraw,
    marks: Sequence[Mark],
    x_place: Callable[[float], float],
    y_place: Callable[[float], float],
) -> None:
    """Each name beside its point, at the place that overlaps other points and names least."""
    room = (RADIUS + 8) * SCALE
    points = [(x_place(mark.x), y_place(mark.y)) for mark in marks]
    taken: list[Box] = [(x - room / 2, y - room / 2, x + room / 2, y + room / 2) for x, y in points]
    taken += _bars(marks, x_place, y_place)
    frame = (LEFT * SCALE, TOP * SCALE, (WIDTH - RIGHT) * SCALE, (HEIGHT - BOTTOM) * SCALE)
    for mark, (x, y) in zip(marks, points, strict=True):
        font = _font(0.9)
        places = [
            (x + dx * distance, y + dy * distance, anchor)
            for distance in (room, 2 * room, 3 * room)
            for dx, dy, anchor in (
                (0.6, -0.6, "lb"), (-0.6, -0.6, "rb"), (0.6, 0.6, "lt"), (-0.6, 0.6, "rt"),
                (1, 0, "lm"), (-1, 0, "rm"), (0, -1, "mb"), (0, 1, "mt"),
            )
        ]  # fmt: skip
        boxes = [draw.textbbox((px, py), mark.name, font=font, anchor=anchor) for px, py, anchor in places]
        costs = [sum(_overlap(box, other) for other in taken) + 3 * _outside(box, frame) for box in boxes]
        chosen = costs.index(min(costs))
        px, py, anchor = places[chosen]
        if chosen >= 8:  # too far away to be read as this point's name without a line
            draw.line((x, y, px, py), FAINT, SCALE)
            _draw_point(draw, mark, x, y)
        color = _color(mark) if mark.on_frontier or mark.is_recommended else INK
        draw.text(
            (px, py), mark.name, fill=color, font=font, anchor=anchor, stroke_width=2 * SCALE, stroke_fill="white"
        )
        taken.append(boxes[chosen])


def _bars(marks: Sequence[Mark], x_place: Callable[[float], float], y_place: Callable[[float], float]) -> list[Box]:
    """The intervals as thin boxes."""
    half, bars = 2 * SCALE, []
    for mark in marks:
        x, y = x_place(mark.x), y_place(mark.y)
        if mark.x_interval:
            left, right = sorted(map(x_place, mark.x_interval))
            bars.append((left, y - half, right, y + half))
        if mark.y_interval:
            high, low = sorted(map(y_place, mark.y_interval))
            bars.append((x - half, high, x + half, low))
    return bars


def _overlap(one: Box, two: Box) -> float:
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    return max(0.0, width) * max(0.0, height)


def _outside(box: Box, frame: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, frame)


def _draw_legend(draw: ImageDraw.ImageDraw, marks: Sequence[Mark]) -> None:
    """What the signs mean, in one line below the plot; only those that are used."""
    entries = [
        ("recommended", Mark("", 0, 0, is_recommended=True), any(mark.is_recommended for mark in marks)),
        ("frontier", Mark("", 0, 0, on_frontier=True), any(mark.on_frontier for mark in marks)),
        ("dominated", Mark("", 0, 0), any(not mark.on_frontier and not mark.is_base for mark in marks)),
        ("base", Mark("", 0, 0, is_base=True), any(mark.is_base for mark in marks)),
    ]
    x, y = (LEFT + 10.0) * SCALE, (HEIGHT - 22) * SCALE
    for words, mark, is_used in entries:
        if is_used:
            _draw_point(draw, mark, x, y)
            draw.text((x + 20 * SCALE, y), words, fill=INK, font=_font(0.8), anchor="lm")
            x += 20 * SCALE + draw.textlength(words, font=_font(0.8)) + 40 * SCALE
    if any(mark.x_interval or mark.y_interval for mark in marks):
        draw.text((x, y), "bars: 95 % interval over seeds", fill=INK, font=_font(0.8), anchor="lm")


def _font(size: float = 1.0) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=round(FONT * size * SCALE))
