"""The images of a YOLO source: those that data.yaml lists, or all images of the folder."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.formats.yolo_labels import is_of_run, label_folder, warn_of_runs
from data_prep.formats.yolo_settings import Settings
from data_prep.reading.image_finder import ImageFinder, list_images
from data_prep.reading.names import is_absolute, tails
from data_prep.reading.source import Options, Source
from data_prep.reading.split_names import ALIASES, split_of
from data_prep.reading.text_files import read_text

# How YAML writes that a split has no images.
_NOTHING = ("", "null", "~")


@dataclass
class Images:
    """`by_split` holds (image, split) pairs. `label_folders` is {folder that may contain label files: split}. The split is
    None if data.yaml names none. `declared` are the splits that data.yaml names."""

    by_split: list[tuple[Path, str | None]] = field(default_factory=list)
    label_folders: dict[Path, str | None] = field(default_factory=dict)
    declared: frozenset[str | None] = frozenset()


def find_images(settings: Settings, options: Options, found: Source) -> Images:
    """The images of the splits in data.yaml; if it has none, all images."""
    declared = [
        (word, settings.values[word])
        for words in ALIASES.values()
        for word in words
        if settings.values.get(word, "") not in _NOTHING
    ]
    if not declared:
        return _images_of_folder(settings, options, found)
    declared_images = _DeclaredImages(settings, options, found)
    for word, value in declared:
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, str):
                declared_images.add(word, entry)
            else:
                found.errors.append(f"{settings.where}: {word} must be a path or a list of paths")
    splits = frozenset(split_of(word) for word, _ in declared)
    return Images(list(dict.fromkeys(declared_images.by_split)), declared_images.label_folders, splits)


def _images_of_folder(settings: Settings, options: Options, found: Source) -> Images:
    folder = options.images or settings.root
    listed = list_images(folder, options)
    drawn = [path for path in listed if is_of_run(path, folder)]
    warn_of_runs("image", drawn, found)
    images = sorted({*listed} - {*drawn})
    label_folders = dict.fromkeys([*map(label_folder, images), settings.root])
    return Images([(path, None) for path in images], label_folders)


class _DeclaredImages:
    """Collects the images of the paths in data.yaml."""

    def __init__(self, settings: Settings, options: Options, found: Source) -> None:
        self.settings = settings
        self.options = options
        self.found = found
        self.by_split: list[tuple[Path, str | None]] = []
        self.label_folders: dict[Path, str | None] = {}
        self._listed_as: dict[Path, str] = {}  # the name of each image in the text files so far

    def add(self, word: str, entry: str) -> None:
        """Adds the images of one path, a folder or a text file, that data.yaml gives for the split called `word`."""
        place = self._resolve(entry)
        if place is None:
            self._warn_of_absent(word, entry)
        elif place.is_dir():
            self._add_folder(place, word, entry)
        else:
            self._add_list(place, word)

    def _resolve(self, entry: str) -> Path | None:
        """The absolute path of an entry: below the `path` of data.yaml or next to data.yaml; also without the ../ that Roboflow
        writes, or without the first folders of another machine's path. None if it does not exist."""
        root, images = self.settings.root, self.options.images
        folders = [root / str(self.settings.values.get("path") or ""), root, *([images] if images else [])]
        without_parents = re.sub(r"^(\.\./)+", "", entry)
        spellings = [entry, without_parents, *(tails(entry)[1:] if is_absolute(entry) else [])]
        candidates = (folder / spelling for spelling in spellings for folder in folders)
        return next((Path(os.path.abspath(path)) for path in candidates if os.path.exists(path)), None)

    def _warn_of_absent(self, word: str, entry: str) -> None:
        expected = os.path.abspath(self.settings.root / str(self.settings.values.get("path") or "") / entry)
        consequence = ", so images of the other splits will be used for training" if split_of(word) == "train" else ""
        self.found.warnings.append(
            f"{self.settings.where} names {word}: {entry}, which does not exist{consequence}. If this is not intended, correct "
            f"the path; there is no {expected}"
        )

    def _add_folder(self, folder: Path, word: str, entry: str) -> None:
        split = split_of(word)
        images = list_images(folder, self.options)
        if not images:
            self.found.warnings.append(f"{self.settings.where} names {word}: {entry}, which contains no image")
        self.by_split += [(path, split) for path in images]
        self.label_folders[label_folder(folder / "any")] = split
        self.label_folders.update((label_folder(path), split) for path in images)

    def _add_list(self, path: Path, word: str) -> None:
        """Adds the images that a text file lists, one on each line."""
        images = self.options.images
        finder = ImageFinder([self.settings.root, path.parent, *([images] if images else [])], images is not None)
        for line in filter(str.strip, read_text(path).splitlines()):
            name = os.path.normpath(line.strip().replace("\\", "/"))
            image = _find_listed(name, finder)
            if image in [folder / name for folder in finder.folders]:
                name = os.path.abspath(image)  # the same for all spellings of this path
            image = Path(os.path.abspath(image))
            first = self._listed_as.setdefault(image, name)
            if first != name:
                self.found.errors.append(f"{path}: {first} and {name} both match {image}, and there is no other match")
            self.by_split.append((image, split_of(word)))


def _find_listed(name: str, finder: ImageFinder) -> Path:
    """The image of a name; else without `data/`, which CVAT writes before names of files that are not in such a folder."""
    image = finder.find(name)
    if os.path.isfile(image):
        return image
    without_data = finder.find(name.removeprefix("data/"))
    return without_data if os.path.isfile(without_data) else image
