"""check.html: the supervised boxes, drawn on the images that the model sees, and the token lengths."""

from pathlib import Path

import numpy as np

from boxtune.batching.label_check import CheckedExample
from boxtune.batching.lengths import Lengths, describe_overlong, overlong, overlong_remedy
from boxtune.common.drawing import draw_boxes, draw_points, to_data_uri
from boxtune.common.files import write_whole
from boxtune.common.problems import list_problems
from boxtune.common.templates import page_template


def _draw_example(example: CheckedExample) -> str:
    """The image that the model sees with the decoded boxes or points, as a data URI."""
    image = example.image
    zoom = max(1, round(480 / max(image.size)))  # lines and letters would hide the objects of a small image
    scale_x = zoom * image.width / example.record["width"]
    scale_y = zoom * image.height / example.record["height"]
    image = image.resize((image.width * zoom, image.height * zoom))
    for answer in example.answers:
        boxes_xyxy = [[x0 * scale_x, y0 * scale_y, x1 * scale_x, y1 * scale_y] for x0, y0, x1, y1 in answer.boxes_xyxy]
        points_xy = [[x * scale_x, y * scale_y] for x, y in answer.points_xy]
        image = draw_boxes(image, boxes_xyxy, answer.labels[: len(boxes_xyxy)], "lime")
        image = draw_points(image, points_xy, answer.labels[: len(points_xy)], "lime")
    return to_data_uri(image, max_bytes=120_000)


def length_rows(lengths: list[Lengths]) -> list[dict[str, str | int]]:
    """Median, 95th percentile and maximum of the tokens of image, question, answer, teachers if any, and the whole example."""
    rows: list[dict[str, str | int]] = []
    teachers = ("teachers",) if any(entry.teachers for entry in lengths) else ()
    for part in ("image", "question", "answer", *teachers, "total"):
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
    noise_objects: float = 0.0,
) -> None:
    """Write one self-contained HTML file. Examples with problems come first."""
    too_long = overlong(lengths, max_length)
    ordered = sorted(examples, key=lambda example: not example.problems)
    page = page_template(Path(__file__).with_name("label_check_page.html.jinja")).render(
        title=title,
        facts=facts,
        lengths=length_rows(lengths),
        max_length=max_length,
        overlong=len(too_long),
        overlong_list="\n".join(list_problems(describe_overlong(too_long))),
        remedy=overlong_remedy(too_long, noise_objects) if too_long else "",
        faulty=sum(bool(example.problems) for example in examples),
        examples=[{"example": example, "image": _draw_example(example)} for example in ordered],
    )
    write_whole(path, page)
