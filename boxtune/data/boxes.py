"""Box arithmetic in numpy. Every function names its format: `xyxy` is [x0, y0, x1, y1], `xywh` [x0, y0, width, height],
`yxyx` [y0, x0, y1, x1], `cxcywh` [centre x, centre y, width, height]."""

import numpy as np
from numpy.typing import ArrayLike

# COCO's object sizes, and the areas in pixels of the original image that separate them. An area equal to a limit belongs to
# the larger size.
COCO_SIZES = ("small", "medium", "large")
COCO_SIZE_LIMITS = (32**2, 96**2)


def _as_boxes(boxes: ArrayLike) -> np.ndarray:
    """(N, 4) float64; an empty list gives (0, 4)."""
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def box_xywh_to_xyxy(boxes_xywh: ArrayLike) -> np.ndarray:
    x, y, w, h = _as_boxes(boxes_xywh).T
    return np.stack([x, y, x + w, y + h], axis=1)


def box_xyxy_to_xywh(boxes_xyxy: ArrayLike) -> np.ndarray:
    x0, y0, x1, y1 = _as_boxes(boxes_xyxy).T
    return np.stack([x0, y0, x1 - x0, y1 - y0], axis=1)


def box_cxcywh_to_xyxy(boxes_cxcywh: ArrayLike) -> np.ndarray:
    cx, cy, w, h = _as_boxes(boxes_cxcywh).T
    return np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=1)


def box_xyxy_to_cxcywh(boxes_xyxy: ArrayLike) -> np.ndarray:
    x0, y0, x1, y1 = _as_boxes(boxes_xyxy).T
    return np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], axis=1)


def box_yxyx_to_xyxy(boxes_yxyx: ArrayLike) -> np.ndarray:
    return _as_boxes(boxes_yxyx)[:, [1, 0, 3, 2]]


def box_area(boxes_xyxy: ArrayLike) -> np.ndarray:
    """(N,) areas."""
    x0, y0, x1, y1 = _as_boxes(boxes_xyxy).T
    areas: np.ndarray = (x1 - x0) * (y1 - y0)
    return areas


def intersection(boxes_a_xyxy: ArrayLike, boxes_b_xyxy: ArrayLike) -> np.ndarray:
    """(N, M) intersection areas of all pairs."""
    a, b = _as_boxes(boxes_a_xyxy)[:, None], _as_boxes(boxes_b_xyxy)[None]
    width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    areas: np.ndarray = width.clip(min=0) * height.clip(min=0)
    return areas


def box_iou(boxes_a_xyxy: ArrayLike, boxes_b_xyxy: ArrayLike) -> np.ndarray:
    """(N, M) intersection over union of all pairs; 0 where both boxes are empty."""
    overlap = intersection(boxes_a_xyxy, boxes_b_xyxy)
    union = box_area(boxes_a_xyxy)[:, None] + box_area(boxes_b_xyxy)[None] - overlap
    iou: np.ndarray = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    return iou


def match_greedy(similarity: np.ndarray, threshold: float = 0.0) -> list[tuple[int, int]]:
    """One-to-one pairs (row, column) of an (N, M) similarity matrix, chosen greedily.

    The highest similarity comes first; ties go to the lower row, then to the lower column. Pairs with a similarity of 0 or
    below `threshold` are never made.
    """
    rows, columns = np.nonzero((similarity > 0) & (similarity >= threshold))
    order = np.lexsort((columns, rows, -similarity[rows, columns]))
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    pairs: list[tuple[int, int]] = []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
            pairs.append((row, column))
    return pairs
