"""Box arithmetic in numpy. Every function names its format: `xyxy` is [x0, y0, x1, y1], `xywh` [x0, y0, width, height],
`yxyx` [y0, x0, y1, x1], `cxcywh` [centre x, centre y, width, height]."""

import numpy as np

# COCO's classes of object size, and the areas in pixels of the original image that divide them. An area at a limit is larger.
COCO_SIZES = ("small", "medium", "large")
COCO_SIZE_LIMITS = (32**2, 96**2)


def _as_boxes(boxes) -> np.ndarray:
    """(N, 4) float64; an empty list is (0, 4)."""
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def box_xywh_to_xyxy(boxes_xywh) -> np.ndarray:
    x, y, w, h = _as_boxes(boxes_xywh).T
    return np.stack([x, y, x + w, y + h], axis=1)


def box_xyxy_to_xywh(boxes_xyxy) -> np.ndarray:
    x0, y0, x1, y1 = _as_boxes(boxes_xyxy).T
    return np.stack([x0, y0, x1 - x0, y1 - y0], axis=1)


def box_cxcywh_to_xyxy(boxes_cxcywh) -> np.ndarray:
    cx, cy, w, h = _as_boxes(boxes_cxcywh).T
    return np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=1)


def box_xyxy_to_cxcywh(boxes_xyxy) -> np.ndarray:
    x0, y0, x1, y1 = _as_boxes(boxes_xyxy).T
    return np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], axis=1)


def box_yxyx_to_xyxy(boxes_yxyx) -> np.ndarray:
    return _as_boxes(boxes_yxyx)[:, [1, 0, 3, 2]]


def box_area(boxes_xyxy) -> np.ndarray:
    """(N,) areas."""
    x0, y0, x1, y1 = _as_boxes(boxes_xyxy).T
    return (x1 - x0) * (y1 - y0)


def intersection(boxes_a_xyxy, boxes_b_xyxy) -> np.ndarray:
    """(N, M) intersection areas of every pair."""
    a, b = _as_boxes(boxes_a_xyxy)[:, None], _as_boxes(boxes_b_xyxy)[None]
    width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    return width.clip(min=0) * height.clip(min=0)


def box_iou(boxes_a_xyxy, boxes_b_xyxy) -> np.ndarray:
    """(N, M) intersection over union of every pair."""
    overlap = intersection(boxes_a_xyxy, boxes_b_xyxy)
    union = box_area(boxes_a_xyxy)[:, None] + box_area(boxes_b_xyxy)[None] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def match_greedy(similarity: np.ndarray, threshold: float = 0.0) -> list[tuple[int, int]]:
    """One-to-one pairs (row, column) of a similarity matrix, highest first, ties by row and then column.

    Pairs of similarity 0, or below `threshold`, are never made.
    """
    rows, columns = np.nonzero((similarity > 0) & (similarity >= threshold))
    order = np.lexsort((columns, rows, -similarity[rows, columns]))
    used_rows, used_columns, pairs = set(), set(), []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
            pairs.append((row, column))
    return pairs
