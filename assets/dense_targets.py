"""Targets of the dense head with which the vision tower is pretrained."""

import torch
from torch.nn import functional

from assets.pretraining_images import Scene
from assets.pretraining_objects import CLASSES
from boxtune.data.records import raster_order

BACKGROUND = len(CLASSES)
# Outputs of the dense head for each image token:
# - a class, or background
# - the distances to the edges of its object, in bins of BIN pixels, starting BEHIND bins behind the token's center
# - the edges of its object, in BINS bins across the image
# - the edges of the next object in raster order, and of the next object of its class, in the same bins
# - whether its object is the first, the first of its class, the last, the last of its class
BINS, BIN, BEHIND = 50, 5, 4
DENSE_PARTS = (len(CLASSES) + 1, 4 * BINS, 4 * BINS, 4 * BINS, 4 * BINS, 4)
FINE_PARTS = DENSE_PARTS[:2]  # of the fine head, which sees patches instead of tokens
NONE = -1.0  # the edges of a next object that does not exist


def dense_targets(scene: Scene, input_size: tuple[int, int], cell: int) -> dict[str, torch.Tensor]:
    """Targets of the dense head, for the image's T tokens in row order. Each token belongs to the object that covers most of it.

    classes, near: as in `nearby`.
    place (T, 4): the object's xyxy as fractions of the image.
    next, next_alike (T, 4): xyxy of the next object in raster order, of any class and of the same class; NONE if there is none.
    ends (T, 4): whether the object is the first, the first of its class, the last, the last of its class.
    """
    classes, near, owner = nearby(scene, input_size, cell)
    if not scene.labels:
        empty = torch.zeros(len(classes), 4)
        return {"classes": classes, "near": near} | dict.fromkeys(("place", "next", "next_alike", "ends"), empty)
    sides = torch.tensor([scene.image.width, scene.image.height] * 2)
    fractions = torch.tensor(scene.boxes_xyxy, dtype=torch.float32) / sides
    following, alike = successors(scene, same_class=False), successors(scene, same_class=True)
    with_none = torch.cat([fractions, torch.full((1, 4), NONE)])  # index -1, no successor, is the last row
    firsts = [[i not in chain for i in range(len(chain))] for chain in (following, alike)]
    lasts = [[i < 0 for i in chain] for chain in (following, alike)]
    return {
        "classes": classes,
        "near": near,
        "place": fractions[owner],
        "next": with_none[following][owner],
        "next_alike": with_none[alike][owner],
        "ends": torch.tensor([firsts[0], firsts[1], lasts[0], lasts[1]], dtype=torch.float32).T[owner],
    }


def nearby(scene: Scene, input_size: tuple[int, int], cell: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(classes, near, owner) of the T cells of `cell` pixels, in row order.

    classes (T,): the class of the object that covers most of the cell, or BACKGROUND.
    near (T, 4): distances from the cell's center outward to the left, top, right and bottom edge, in pixels of the input.
    owner (T,): the object's index.

    A cell is background if no object covers a quarter of it, except the cell under an object's center.
    """
    height, width = input_size
    rows, columns = height // cell, width // cell
    if not scene.labels:
        count = rows * columns
        return torch.full((count,), BACKGROUND), torch.zeros(count, 4), torch.zeros(count, dtype=torch.long)
    scale = torch.tensor([width / scene.image.width, height / scene.image.height] * 2)
    boxes_xyxy = torch.tensor(scene.boxes_xyxy, dtype=torch.float32) * scale  # (N, 4), pixels of the input
    y, x = torch.meshgrid(torch.arange(rows) * cell, torch.arange(columns) * cell, indexing="ij")
    x0, y0, x1, y1 = boxes_xyxy.T[:, :, None]  # (N, 1) each
    x, y = x.reshape(1, -1), y.reshape(1, -1)
    covered = (torch.minimum(x1, x + cell) - torch.maximum(x0, x)).clamp(min=0)
    covered = covered * (torch.minimum(y1, y + cell) - torch.maximum(y0, y)).clamp(min=0) / cell**2  # (N, T)
    center_x, center_y = (x0 + x1) / 2, (y0 + y1) / 2
    covered += (x <= center_x) & (center_x < x + cell) & (y <= center_y) & (center_y < y + cell)
    coverage, owner = covered.max(0)
    classes = torch.tensor([CLASSES.index(label) for label in scene.labels])[owner]
    center = torch.cat([x, y, x, y]).T + cell / 2
    near = (boxes_xyxy[owner] - center) * torch.tensor([-1, -1, 1, 1])
    return torch.where(coverage >= 0.25, classes, BACKGROUND), near, owner


def fine_targets(scene: Scene, input_size: tuple[int, int], patch: int, merge: int) -> dict[str, torch.Tensor]:
    """classes (P,) and near (P, 4) as above, for the image's P patches in the order of the vision tower.

    There the merge × merge patches of each token follow one another.
    """
    rows, columns = (side // patch // merge for side in input_size)
    classes, near, _ = nearby(scene, input_size, patch)

    def in_blocks(values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(0, (rows, merge, columns, merge)).transpose(1, 2).flatten(0, 3)

    return {"classes": in_blocks(classes), "near": in_blocks(near)}


def successors(scene: Scene, same_class: bool) -> list[int]:
    """For each object, the index of the next one in raster order, or -1; with `same_class`, the next one of its class."""
    following, last = [-1] * len(scene.labels), {}
    for i in raster_order(scene.boxes_xyxy):
        chain = scene.labels[i] if same_class else ""
        if chain in last:
            following[last[chain]] = i
        last[chain] = i
    return following


def edge_loss(scores: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of (N, 4 · BINS) scores with a Gaussian of one bin's width around each of the (N, 4) edges, in bins."""
    distance = edges.reshape(-1, 1) - torch.arange(BINS, device=edges.device) - 0.5
    targets = (-(distance**2) / 2).softmax(dim=1)
    return functional.cross_entropy(scores.reshape(-1, BINS), targets) if len(edges) else scores.sum()
