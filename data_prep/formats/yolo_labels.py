"""YOLO's label files: where they are, and their rows."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from boxtune.common.files import files_below
from data_prep.formats.yolo_settings import NAME_FILES, Settings
from data_prep.reading.annotation_files import is_output
from data_prep.reading.names import normal
from data_prep.reading.source import Options, Row, Source
from data_prep.reading.text_files import read_text
from data_prep.reading.values import number

# Where YOLO detectors write their predictions, and images with them; YOLOv5 calls its runs exp, exp2 and so on.
_RUN = re.compile(r"(^|/)runs/(detect|segment|pose|obb|(train|val)/exp\d*)/")


def is_of_run(path: Path, folder: Path) -> bool:
    """Whether a file below `folder` is output of a detector rather than part of the dataset."""
    return _RUN.search(os.path.relpath(path, folder)) is not None


def warn_of_runs(kind: str, paths: list[Path], found: Source) -> None:
    """Adds a warning about files of detector runs, if there are any."""
    if paths:
        found.warnings.append(f"{len(paths)} {kind}(s) are output of a detector and are left out, such as {paths[0]}")


def label_folder(image: Path) -> Path:
    """The folder of an image's label file: the image's folder with its last part `images` replaced by `labels`."""
    parts = list(image.parent.parts)
    for i in range(len(parts) - 1, -1, -1):
        if parts[i] == "images":
            return Path(*parts[:i], "labels", *parts[i + 1 :])
    return image.parent


def holds_rows(path: Path) -> bool:
    """Whether a text file begins with a row of at least five numbers."""
    first = path.read_text(encoding="utf-8", errors="replace").strip().partition("\n")[0].split()
    return len(first) >= 5 and all(isinstance(number(token), int | float) for token in first)


class LabelFiles:
    """The label files of a source."""

    def __init__(self, settings: Settings, options: Options, found: Source) -> None:
        self.settings = settings
        self.options = options
        self.found = found
        self._by_name: dict[Path, dict[str, Path]] = {}  # {folder: {normalized name: text file}}

    def find(self, image: Path) -> Path | None:
        """The label file of an image, or None."""
        candidates = self.candidates(image)
        return next((path for path in candidates if path.is_file()), None) or next(
            (path for name in candidates if (path := self._spelled_otherwise(name))), None
        )

    def _spelled_otherwise(self, path: Path) -> Path | None:
        """The file whose name differs from that of `path` by Unicode normalization only."""
        if path.parent not in self._by_name:
            files = path.parent.iterdir() if path.parent.is_dir() else ()
            self._by_name[path.parent] = {normal(file.name): file for file in files if file.suffix == ".txt"}
        return self._by_name[path.parent].get(normal(path.name))

    def candidates(self, image: Path) -> list[Path]:
        """The paths where the label file of an image may be."""
        root, images = self.settings.root, self.options.images
        name = image.stem + ".txt"
        paths = [label_folder(image) / name, image.with_suffix(".txt"), image.parent / "labels" / name]
        if images:
            below = os.path.relpath(image.with_suffix(".txt"), images)
            paths += [root / below, root / "labels" / below, root / name, root / "labels" / name]
        return list(dict.fromkeys(paths))

    def read(self, path: Path) -> list[Row]:
        """The objects in a label file. Rows of unknown classes are errors of the source."""
        rows, names = [], self.settings.names
        for line_number, line in enumerate(read_text(path).splitlines(), 1):
            if not line.strip():
                continue
            first, *values = [number(token) for token in line.split()]
            if not isinstance(first, int | float) or first not in names:
                self.found.errors.append(
                    f"{path}:{line_number}: class {first!r}, but the classes are numbered from {min(names)} to {max(names)}"
                )
            else:
                rows.append(Row(self._box_of(values), names[int(first)]))
        return rows

    def _box_of(self, values: list[Any]) -> list[Any]:
        """The box in the numbers of a row, [cx, cy, w, h]. Numbers that are not a box are returned as they are."""
        # A pose row has key points after the box; other rows have a confidence or nothing.
        if "kpt_shape" in self.settings.values or len(values) == 5:
            return values[:4]
        if len(values) < 6 or len(values) % 2 or not all(isinstance(value, int | float) for value in values):
            return values
        # A polygon: x y x y …
        x0, x1, y0, y1 = min(values[::2]), max(values[::2]), min(values[1::2]), max(values[1::2])
        return [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]

    def without_image(self, folders: dict[Path, str | None], used: Iterable[Path]) -> Iterator[tuple[Path, str | None]]:
        """(label file, split) of the label files in `folders`, {folder: split}, that no image uses."""
        seen = {*used}
        for folder, split in folders.items():
            is_label_folder = "labels" in Path(os.path.relpath(folder, self.settings.root)).parts
            for path in files_below(folder) if folder.is_dir() else []:
                is_text = path.suffix == ".txt" and path.name not in NAME_FILES
                if not is_text or path in seen or is_output(path, self.options):
                    continue
                seen.add(path)
                # Text files next to images may be notes.
                if is_label_folder or holds_rows(path):
                    yield path, split
