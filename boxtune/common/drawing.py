"""Boxes, points and labels on a picture, and pictures small enough to travel inside a page."""

import base64
import io

from PIL import Image, ImageColor, ImageDraw, ImageFont

# Longer labels are cut: a model that rambles may put its whole answer into one.
MAX_LABEL = 60


def draw_boxes(
    image: Image.Image, boxes_xyxy: list, labels: list[str], color: str | tuple[int, int, int], dashed: bool = False
) -> Image.Image:
    """A copy of an RGB image with one rectangle and label per box; lines and letters grow with the picture."""
    image = image.copy()
    draw, width = ImageDraw.Draw(image), _line_width(image)
    for (x0, y0, x1, y1), label in zip(boxes_xyxy, labels, strict=True):
        if dashed:
            for start, end in (((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x1, y1), (x0, y1)), ((x0, y1), (x0, y0))):
                _dashed_line(draw, start, end, color, width)
        else:
            draw.rectangle((x0, y0, x1, y1), outline=color, width=width)
        _label(draw, image, (x0, y0), label, color)
    return image


def draw_points(
    image: Image.Image, points_xy: list, labels: list[str], color: str | tuple[int, int, int]
) -> Image.Image:
    """A copy of an RGB image with a ring and label at each point."""
    image = image.copy()
    draw, width = ImageDraw.Draw(image), _line_width(image)
    for (x, y), label in zip(points_xy, labels, strict=True):
        draw.circle((x, y), 4 * width, outline=color, width=width)
        draw.circle((x, y), width, fill=color)
        _label(draw, image, (x + 5 * width, y), label, color)
    return image


def draw_prediction(image: Image.Image, objects: dict, scale: float = 1.0) -> Image.Image:
    """A copy of an RGB image with a prediction's `objects` in red, each with its label and score.

    `scale` is the image's pixels for each of those that the objects are given in.
    """
    draw, places = (draw_points, objects["point"]) if "point" in objects else (draw_boxes, objects["bbox"])
    captions = [caption(*pair) for pair in zip(objects["category"], objects["score"], strict=True)]
    return draw(image, [[value * scale for value in place] for place in places], captions, "red")


def caption(label: str, score: float) -> str:
    """ "RBC 0.93"; a label that is too long loses its end, not the score."""
    label = label if len(label) <= MAX_LABEL - 5 else label[: MAX_LABEL - 6] + "…"
    return f"{label} {score:.2f}"


def thumbnail(image: Image.Image, side: int = 480) -> Image.Image:
    """A copy that is at most `side` pixels long and broad; a smaller picture keeps its size."""
    image = image.copy()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def to_data_uri(image: Image.Image, max_bytes: int = 60_000) -> str:
    """An RGB image as a JPEG data URI. Quality falls in steps until the file fits `max_bytes`, at the lowest step it stays."""
    for quality in (82, 70, 55, 40, 25, 10):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= max_bytes:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _line_width(image: Image.Image) -> int:
    return max(2, round(max(image.size) / 400))


def _label(draw: ImageDraw.ImageDraw, image: Image.Image, corner: tuple[float, float], text: str, color) -> None:
    """Dark or light letters on a plate of the box's colour, above the corner where there is room."""
    if not text:
        return
    text = text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "…"
    font = ImageFont.load_default(size=max(12, round(max(image.size) / 45)))
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    pad = _line_width(image)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = max(0, min(corner[0], image.width - width))
    y = corner[1] - height if corner[1] >= height else min(corner[1], image.height - height)
    draw.rectangle((x, y, x + width, y + height), fill=color)
    red, green, blue = ImageColor.getrgb(color)[:3] if isinstance(color, str) else color
    ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 140 else "white"
    draw.text((x + pad - left, y + pad - top), text, font=font, fill=ink)


def _dashed_line(draw: ImageDraw.ImageDraw, start, end, color, width: int) -> None:
    """An axis-parallel line in dashes of four widths."""
    (x0, y0), (x1, y1) = start, end
    length, dash = max(abs(x1 - x0), abs(y1 - y0)), 4 * width
    at = 0.0
    while at < length:
        a, b = at / length, min(at + dash, length) / length
        draw.line((x0 + (x1 - x0) * a, y0 + (y1 - y0) * a, x0 + (x1 - x0) * b, y0 + (y1 - y0) * b), color, width)
        at += 2 * dash
