"""check.html: the supervised boxes drawn on the pictures that the model sees, and every token length."""

from pathlib import Path

import numpy as np

from boxtune.batching.label_check import CheckedExample
from boxtune.batching.lengths import Lengths, describe_overlong, overlong
from boxtune.common.drawing import draw_boxes, draw_points, to_data_uri
from boxtune.common.files import write_whole
from boxtune.common.templates import page_template


def _picture(example: CheckedExample) -> str:
    """The seen picture with the decoded boxes, as a data URI."""
    image = example.image
    scale_x, scale_y = image.width / example.record["width"], image.height / example.record["height"]
    # Small inputs are shown enlarged, so that lines and letters do not hide the objects.
    zoom = max(1, round(480 / max(image.size)))
    image = image.resize((image.width * zoom, image.height * zoom))
    for answer in example.answers:
        boxes_xyxy = [[x0 * scale_x, y0 * scale_y, x1 * scale_x, y1 * scale_y] for x0, y0, x1, y1 in answer.boxes_xyxy]
        image = draw_boxes(
            image, [[v * zoom for v in box] for box in boxes_xyxy], answer.labels[: len(boxes_xyxy)], "lime"
        )
        points_xy = [[x * scale_x * zoom, y * scale_y * zoom] for x, y in answer.points_xy]
        image = draw_points(image, points_xy, answer.labels[: len(points_xy)], "lime")
    return to_data_uri(image, max_bytes=120_000)


def length_rows(lengths: list[Lengths]) -> list[dict]:
    """Median, 95th percentile and maximum of image, question, answer and whole."""
    rows = []
    for part in ("image", "question", "answer", "total"):
        values = np.array([getattr(entry, part) for entry in lengths])
        rows.append(
            {
                "part": part,
                "median": int(np.median(values)),
                "p95": int(np.percentile(values, 95)),
                "max": int(values.max()),
            }
        )
    return rows


def write_check_report(
    path: Path,
    title: str,
    examples: list[CheckedExample],
    lengths: list[Lengths],
    max_length: int | None,
    facts: dict[str, str],
) -> None:
    """One self-contained file; faulty examples come first."""
    ordered = sorted(examples, key=lambda example: not example.problems)
    page = page_template(Path(__file__).with_name("label_check_page.html.jinja")).render(
        title=title,
        facts=facts,
        lengths=length_rows(lengths),
        max_length=max_length,
        overlong=describe_overlong(overlong(lengths, max_length)),
        faulty=sum(bool(example.problems) for example in examples),
        examples=[{"example": example, "picture": _picture(example)} for example in ordered],
    )
    write_whole(path, page)
