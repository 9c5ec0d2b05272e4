"""One box for each object that several views of an image show. A view is a tile or the whole image.

Two views that overlap both show the part that they share. So two boxes of the same label are the same object if they agree in
that part, even if an inner border of a tile cuts one of them, or both. An IoU of the whole boxes would miss such pairs, and the
intersection over the smaller box (sahi's IOS) would merge a small object with a large one that surrounds it.

Nothing here depends on scores, so that responses that are read again, without scores, are merged in the same way.
"""

from typing import Any

import numpy as np

from boxtune.data.boxes import intersection, match_greedy

# Each box that became part of another adds this to the problems of its prediction.
MERGED = "merged"
# The least IoU, in the part that two views share, of two boxes of the same object. Also the least share of a cut box that lies
# inside the box of which it is a fragment.
AGREEMENT = 0.5
# A box counts as cut if it is nearer to an inner border of its tile than this share of the tile's side.
NEAR_BORDER = 0.02


def merge_views(columns: dict[str, list[Any]], views: list[list[float]], whole: list[float]) -> dict[str, list[Any]]:
    """The columns of objects with one row per object. `views` (xyxy) is the view of each row, `whole` that of the whole image.

    A row has the scores of the best of its boxes. Its box is the first of these that exists: that of the tile that shows most
    around it, if no border cuts it there; that of the whole image; all cut boxes together.
    """
    if not views:
        return columns
    boxes, frames = np.array(columns["bbox"], dtype=float), np.array(views, dtype=float)
    margins = _margins(boxes, frames, np.array(whole))
    groups = _same_objects(boxes, columns["category"], frames, margins)
    best = [max(group, key=lambda i: columns["score"][i]) for group in groups]
    merged = {key: [column[i] for i in best] for key, column in columns.items()}
    merged["bbox"] = [_one_box(boxes[group], margins[group]) for group in groups]
    return merged


def _margins(boxes: np.ndarray, frames: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """(N,): how far each box is from the inner borders of its view, as a share of the view's side; inf in the whole image."""
    sides = np.tile(frames[:, 2:] - frames[:, :2], 2)
    distances = np.abs(boxes - frames) / sides
    distances[frames == whole] = np.inf  # a border of the image cuts nothing
    margins: np.ndarray = distances.min(axis=1)
    return margins


def _same_objects(boxes: np.ndarray, labels: list[str], frames: np.ndarray, margins: np.ndarray) -> list[list[int]]:
    """Groups of positions, one for each object. Boxes of one view are never the same object, except for fragments."""
    shared = intersection(boxes, boxes)
    visible = intersection(boxes, frames)  # [i, j]: area of box i inside the view of box j
    names = np.array([label.strip() for label in labels], dtype=object)
    _, view = np.unique(frames, axis=0, return_inverse=True)
    can_match = (names[:, None] == names[None]) & (view[:, None] != view[None])
    agreement = _ratio(shared, visible + visible.T - shared) * can_match

    groups: list[list[int]] = []
    for number in dict.fromkeys(view.tolist()):  # in the order in which the views were asked about
        own = np.flatnonzero(view == number)
        similarity = np.array([agreement[group][:, own].max(axis=0) for group in groups])
        pairs = match_greedy(similarity.reshape(len(groups), len(own)), AGREEMENT)
        for group, column in pairs:
            groups[group].append(int(own[column]))
        matched = {column for _, column in pairs}
        groups += [[int(i)] for column, i in enumerate(own) if column not in matched]
    return _join_fragments(groups, _ratio(shared, visible) * can_match, margins < NEAR_BORDER)


def _join_fragments(groups: list[list[int]], inside: np.ndarray, is_cut: np.ndarray) -> list[list[int]]:
    """Adds each cut box that matched nothing to the object inside which it lies.

    It is often too narrow a strip for its edges to agree. inside (N, N): the share of box i, as far as the view of box j shows
    it, that lies inside box j; 0 where the two cannot be the same object.
    """
    group_of = {i: group for group in groups for i in group}
    for i in np.flatnonzero(is_cut).tolist():
        j = int(inside[i].argmax())
        if len(group_of[i]) == 1 and inside[i, j] >= AGREEMENT:
            group_of[i].clear()
            group_of[j].append(i)
            group_of[i] = group_of[j]
    return [group for group in groups if group]


def _one_box(boxes: np.ndarray, margins: np.ndarray) -> list[float]:
    """The box of one object from its boxes (N, 4)."""
    is_complete = margins >= NEAR_BORDER
    if not is_complete.any():
        return [*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist()]
    # The whole image shows the object smaller than a tile does, so a tile's box is more precise.
    rank = np.where(is_complete, np.where(np.isinf(margins), 0.0, margins), -1.0)
    chosen: list[float] = boxes[rank.argmax()].tolist()
    return chosen


def _ratio(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    """part / total; 0 where the total is 0."""
    ratio: np.ndarray = np.divide(part, total, out=np.zeros_like(part), where=total > 0)
    return ratio
