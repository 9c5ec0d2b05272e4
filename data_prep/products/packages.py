"""One food package and its projection into an image.

The face is drawn flat, bent around a cylinder if the package is a jar, and then projected. `Package.warp` moves pixels and
`Package.outline` moves points by the same map, so a table's box follows from its warped outline.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from PIL import Image

from data_prep.products.faces import KINDS, MARGIN, Panel, Rectangle, draw_face
from data_prep.products.geometry import signed_area
from data_prep.products.textures import RGB
from data_prep.products.words import pick

BRIGHTNESS = (1.12, 0.7, 0.5, 0.82)  # of a carton's sides: top, right, bottom, left


@dataclass
class Package:
    """A package in an image.

    `projection` is the (3, 4) camera matrix that maps homogeneous coordinates (x, y, z, 1) to the image. The origin is the
    center of the face, and lengths are in pixels of the face.
    """

    face: Image.Image  # RGBA, flat
    panels: list[Panel]
    color: RGB
    depth: float  # of a carton; 0 is flat
    bend: float  # half the angle of the visible part of a jar, in radians; 0 is flat
    sag: float  # how much lower the middle of a bent face is than its edges
    projection: np.ndarray

    @property
    def tables(self) -> list[Rectangle]:
        """The nutrition tables, in pixels of the flat face."""
        return [rectangle for kind, rectangle in self.panels if kind == "nutrition"]

    def project(self, points_xyz: np.ndarray | list[tuple[float, float, float]]) -> np.ndarray:
        """(N, 3) points relative to the center of the face → (N, 2) points in the image."""
        warped = np.column_stack([points_xyz, np.ones(len(points_xyz))]) @ self.projection.T
        points: np.ndarray = warped[:, :2] / warped[:, 2:]
        return points

    def moved(self, by_xy: tuple[float, float]) -> "Package":
        """The same package at another position in the image."""
        shift = np.array([[1, 0, by_xy[0]], [0, 1, by_xy[1]], [0, 0, 1]])
        return replace(self, projection=shift @ self.projection)

    def zoomed(self, factor: float) -> "Package":
        """The same package, magnified around the image's origin."""
        return replace(self, projection=np.diag([factor, factor, 1]) @ self.projection)

    def polygons(self) -> list[tuple[np.ndarray, float]]:
        """(4, 2) corners in the image and brightness of every visible side; the front is last."""
        x, y = self.face.width / 2 - MARGIN, self.face.height / 2 - MARGIN
        corners = [(-x, -y, 0), (x, -y, 0), (x, y, 0), (-x, y, 0)]
        points = self.project([*corners, *((x, y, self.depth) for x, y, _ in corners)])
        sides = [(points[[i, (i + 1) % 4, (i + 1) % 4 + 4, i + 4]], BRIGHTNESS[i]) for i in range(4)]
        # The front's corners are in clockwise order, so those of a side that faces the camera are counterclockwise.
        # Very narrow sides are left out, because they would only make the edge ragged.
        sliver = 0.02 * signed_area(points[:4])
        return [(side, light) for side, light in sides if signed_area(side) < -sliver] + [(points[:4], 1.0)]

    def outline(self, rectangle: Rectangle) -> np.ndarray:
        """(64, 2) points in the image along the edge of a rectangle of the flat face, clockwise."""
        x0, y0, x1, y1 = rectangle
        t = np.linspace(0, 1, 16, endpoint=False)[:, None]
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)], dtype=float)
        x, y = np.concatenate([a + (b - a) * t for a, b in pairwise(corners)]).T
        width, height = self.face.size
        if self.bend:
            angle = self.bend * (2 * x / width - 1)
            x = width / 2 * (1 + np.sin(angle) / math.sin(self.bend))
            y = y * (1 - self.sag / height) + self.sag * _sagging(angle, self.bend)
        return self.project(np.stack([x - width / 2, y - height / 2, np.zeros_like(x)], axis=1))

    def warp(self, face: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, tuple[int, int]]:
        """A face of this package's size, projected into an image of `size`: (RGBA part of the image, its top left corner)."""
        face = _bend(face, self.bend, self.sag) if self.bend else face
        front = self.polygons()[-1][0]
        low = np.floor(front.min(axis=0) - 2).clip(0, size).astype(int)
        high = np.ceil(front.max(axis=0) + 2).clip(low + 1, np.maximum(size, low + 1)).astype(int)
        to_middle = np.array([[1, 0, -face.width / 2], [0, 1, -face.height / 2], [0, 0, 1]])
        to_part = np.array([[1, 0, -low[0]], [0, 1, -low[1]], [0, 0, 1]])
        back = np.linalg.inv(to_part @ self.projection[:, [0, 1, 3]] @ to_middle)
        coefficients = (back / back[2, 2]).ravel()[:8].tolist()
        extent = tuple((high - low).tolist())
        part = face.transform(extent, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
        return part, tuple(low.tolist())


def _sagging(angle: np.ndarray, bend: float) -> np.ndarray:
    """How low points at an angle of a cylinder appear: 0 at the edges, 1 in the middle."""
    height: np.ndarray = (np.cos(angle) - math.cos(bend)) / (1 - math.cos(bend))
    return height


def _bend(face: Image.Image, bend: float, sag: float, strips: int = 24) -> Image.Image:
    """The flat face as it appears on a cylinder, in vertical strips."""
    width, height = face.size
    strips = min(strips, width)  # a strip is at least one pixel wide
    edges = np.linspace(0, width, strips + 1).round().astype(int).tolist()
    angles = np.arcsin((2 * np.array(edges) / width - 1) * math.sin(bend))
    x = width / 2 * (1 + angles / bend)
    stretch = height / (height - sag)
    top = -sag * _sagging(angles, bend) * stretch
    bottom = top + height * stretch
    mesh = [
        ((edges[i], 0, edges[j], height), (x[i], top[i], x[i], bottom[i], x[j], bottom[j], x[j], top[j]))
        for i, j in zip(range(strips), range(1, strips + 1), strict=True)
    ]
    return face.transform(face.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def make_package(
    rng: np.random.Generator, width: int, height: int, roll: float, tables: int, column: float | None = None
) -> Package:
    """A random package of about `width` × `height` pixels at the image's origin, rotated by `roll` (radians). `column` is the
    approximate width of the columns in which it is printed."""
    kind = pick(rng, KINDS)
    face = draw_face(rng, kind, width, height, tables, column)
    depth = width * rng.uniform(0.15, 0.5) if kind == "carton" else 0.0
    bend = rng.uniform(0.8, 1.2) if kind == "jar" else 0.0
    projection = _camera(rng, roll, 2.2 * max(width, height))
    sag = height * rng.uniform(0.01, 0.06)
    return Package(face.image, face.panels, face.color, depth, bend, sag, projection)


def _camera(rng: np.random.Generator, roll: float, distance: float) -> np.ndarray:
    """The (3, 4) projection of a package that is rotated by `roll` and slightly turned away from the camera (radians)."""
    yaw, pitch = rng.normal(0, 0.2, 2).clip(-0.5, 0.5)
    (cy, sy), (cp, sp), (cr, sr) = ((math.cos(angle), math.sin(angle)) for angle in (yaw, pitch, roll))
    turn_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    turn_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    turn_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    lens = np.diag([distance, distance, 1])
    camera: np.ndarray = lens @ np.column_stack([turn_z @ turn_x @ turn_y, (0, 0, distance)])
    return camera
