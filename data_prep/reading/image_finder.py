"""Finding the images of a source: those that annotations name, and those in a folder."""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from boxtune.common.files import IMAGE_SUFFIXES, files_below, is_image
from data_prep.reading.annotation_files import AnnotationFile, is_output
from data_prep.reading.names import is_absolute, relative_name, safe_name, tails
from data_prep.reading.source import Options
from data_prep.reading.split_names import ALIASES, split_of


class ImageFinder:
    """Finds the images that a source names, in a list of folders that are tried in order."""

    def __init__(self, folders: list[Path], named_by_user: bool = False) -> None:
        """`named_by_user`: the folders come from --images, so an image may be found without the folders in its name."""
        self.folders = folders
        self.named_by_user = named_by_user
        self._by_stem: dict[Path, dict[str, list[Path]]] = {}

    def find(self, name: str) -> Path:
        """The image of that name; else the only image with the same stem, ignoring case; else a path that does not exist."""
        name = name.replace("\\", "/")
        for path in self._candidates(name):
            if os.path.isfile(path):
                return path
        for path in self._candidates(name):
            if match := self._match_stem(path):
                return match
        return self.folders[0] / name

    def _candidates(self, name: str) -> Iterator[Path]:
        spellings = tails(name) if self.named_by_user or is_absolute(name) else [name]
        return (folder / spelling for spelling in spellings for folder in self.folders)

    def _match_stem(self, path: Path) -> Path | None:
        if path.parent not in self._by_stem:
            self._by_stem[path.parent] = _images_by_stem(path.parent)
        stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
        matches = self._by_stem[path.parent].get(stem.lower(), [])
        return matches[0] if len(matches) == 1 else None


def _images_by_stem(folder: Path) -> dict[str, list[Path]]:
    stems: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()) if os.path.isdir(folder) else []:
        if file.suffix.lower() in IMAGE_SUFFIXES:
            stems.setdefault(file.stem.lower(), []).append(file)
    return stems


def image_finder_for(file: AnnotationFile, options: Options, first: list[Path] | None = None) -> ImageFinder:
    """An ImageFinder for the images of an annotation file. It tries the folders `first`, then those named after the file's
    split, then the usual ones."""
    return ImageFinder([*(first or []), *_image_folders(file, options)], options.images is not None)


def _image_folders(file: AnnotationFile, options: Options) -> list[Path]:
    stem, folder = file.path.stem, file.path.parent
    # CVAT names the image folder after the text that follows `instances_` in the file name, whatever it is.
    words = [*re.findall(r"[a-z]+\d+", stem.lower()), *stem.split("_", 1)[1:]]
    split = split_of(stem) or split_of(folder.name)
    words += ALIASES[split] if split else ()
    roots = _image_roots(file, options)
    own = [root / place for root in roots for word in words for place in (word, f"images/{word}", f"{word}/images")]
    common = [root / place for root in roots for place in ("", "images", "JPEGImages")]
    return [path for path in dict.fromkeys(own + common) if path.is_dir()]


def _image_roots(file: AnnotationFile, options: Options) -> list[Path]:
    """The folders in or below which the images may be."""
    folder, source = file.path.parent, file.source
    if options.images:
        below = folder.relative_to(source) if source.is_dir() else ""
        return [options.images / below, options.images]
    roots = [folder, source if source.is_dir() else folder]
    return [*roots, folder.parent] if folder.name.lower() in {"annotations", "labels"} else roots


def image_name(named: str, image_path: Path, file: AnnotationFile) -> str:
    """The name of an image's item: the name in the annotations, with the extension of the image that was found. If the
    annotation file is in a subfolder of SOURCE and the image is in or below that subfolder: the path relative to SOURCE."""
    if file.source.is_dir() and file.path.parent != file.source and image_path.is_relative_to(file.path.parent):
        return relative_name(image_path, file.source)
    return safe_name(str(PurePosixPath(named.replace("\\", "/")).parent / image_path.name))


def list_images(folder: Path, options: Options) -> list[Path]:
    """Every image at any depth below a folder, sorted, without those of an earlier dataset at --out."""
    paths = (path for path in files_below(folder) if is_image(path))
    return sorted(path for path in paths if not is_output(path, options))
