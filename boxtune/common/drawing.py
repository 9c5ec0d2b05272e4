"""Boxes, points and labels drawn on images, and images small enough to be embedded in a page."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageColor, ImageDraw, ImageFont

Color = str | tuple[int, int, int]
XY = tuple[float, float]

# Longer labels are cut, because a model may write its whole response into a label.
MAX_LABEL = 60
# JPEG qualities that `to_data_uri` tries.
QUALITIES = (82, 70, 55, 40, 25, 10)


def draw_boxes(
    image: Image.Image, boxes_xyxy: Sequence[Sequence[float]], labels: list[str], color: Color, dashed: bool = False
) -> Image.Image:
    """A copy of an RGB image with one rectangle and label per box, in pixels. Lines and text scale with the image."""
    image = image.copy()
    draw, width = ImageDraw.Draw(image), _line_width(image)
    for (x0, y0, x1, y1), label in zip(boxes_xyxy, labels, strict=True):
        if dashed:
            corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
            for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
                _dashed_line(draw, start, end, color, width)
        else:
            draw.rectangle((x0, y0, x1, y1), outline=color, width=width)
        _draw_label(draw, image, (x0, y0), label, color)
    return image


def draw_points(
    image: Image.Image, points_xy: Sequence[Sequence[float]], labels: list[str], color: Color
) -> Image.Image:
    """A copy of an RGB image with a ring and a label at each point, in pixels."""
    image = image.copy()
    draw, width = ImageDraw.Draw(image), _line_width(image)
    for (x, y), label in zip(points_xy, labels, strict=True):
        draw.circle((x, y), 4 * width, outline=color, width=width)
        draw.circle((x, y), width, fill=color)
        _draw_label(draw, image, (x + 5 * width, y), label, color)
    return image


def draw_prediction(image: Image.Image, objects: Mapping[str, list[Any]], scale: float = 1.0) -> Image.Image:
    """A copy of an RGB image with the `objects` of a prediction in red, each with its label and score.

    `scale` converts the coordinates of the objects to pixels of this image.
    """
    draw, places = (draw_points, objects["point"]) if "point" in objects else (draw_boxes, objects["bbox"])
    captions = [caption(label, score) for label, score in zip(objects["category"], objects["score"], strict=True)]
    return draw(image, [[value * scale for value in place] for place in places], captions, "red")


def caption(label: str, score: float) -> str:
    """ "RBC 0.93". A long label is cut so that the score remains."""
    score_length = len(" 0.93")
    return f"{_shorten(label, MAX_LABEL - score_length)} {score:.2f}"


def thumbnail(image: Image.Image, side: int = 480) -> Image.Image:
    """A copy whose longest side is at most `side` pixels. Smaller images keep their size."""
    image = image.copy()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def to_data_uri(image: Image.Image, max_bytes: int = 60_000) -> str:
    """An RGB image as a JPEG data URI, with the best of QUALITIES whose file fits `max_bytes`, or else the lowest."""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= max_bytes:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _line_width(image: Image.Image) -> int:
    return max(2, round(max(image.size) / 400))


def _draw_label(draw: ImageDraw.ImageDraw, image: Image.Image, corner: XY, text: str, color: Color) -> None:
    """Text on a background of `color`, above the corner if there is room, and always inside the image."""
    if not text:
        return
    text = _shorten(text, MAX_LABEL)
    font = ImageFont.load_default(size=max(12, round(max(image.size) / 45)))
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    padding = _line_width(image)
    width, height = right - left + 2 * padding, bottom - top + 2 * padding
    x = max(0, min(corner[0], image.width - width))
    y = corner[1] - height if corner[1] >= height else min(corner[1], image.height - height)
    draw.rectangle((x, y, x + width, y + height), fill=color)
    draw.text((x + padding - left, y + padding - top), text, font=font, fill=_text_color(color))


def _text_color(background: Color) -> str:
    """Black on light backgrounds, white on dark ones."""
    red, green, blue = ImageColor.getrgb(background)[:3] if isinstance(background, str) else background
    luma = 0.3 * red + 0.59 * green + 0.11 * blue
    return "black" if luma > 140 else "white"


def _dashed_line(draw: ImageDraw.ImageDraw, start: XY, end: XY, color: Color, width: int) -> None:
    """A horizontal or vertical line of dashes and gaps, each four line widths long."""
    (x0, y0), (x1, y1) = start, end
    length, dash = max(abs(x1 - x0), abs(y1 - y0)), 4 * width
    position = 0.0
    while position < length:
        a, b = position / length, min(position + dash, length) / length
        draw.line((x0 + (x1 - x0) * a, y0 + (y1 - y0) * a, x0 + (x1 - x0) * b, y0 + (y1 - y0) * b), color, width)
        position += 2 * dash
