"""Finding the images of a source: those that annotations name, and those in a folder."""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from boxtune.common.files import IMAGE_SUFFIXES, files_below, is_image
from data_prep.reading.annotation_files import AnnotationFile, is_output
from data_prep.reading.names import is_absolute, normal, relative_name, safe_name, tails, without_suffix
from data_prep.reading.source import Options, Source, problem
from data_prep.reading.split_names import ALIASES, split_of


class ImageFinder:
    """Finds the images that a source names, in a list of folders that are tried in order."""

    def __init__(self, folders: list[Path], named_by_user: bool = False) -> None:
        """`named_by_user`: the folders come from --images, so an image may be found without the folders in its name."""
        self.folders = folders
        self.named_by_user = named_by_user
        self._by_stem: dict[Path, dict[str, list[Path]]] = {}
        self._folders: dict[Path, Path] = {}

    def find(self, name: str) -> Path:
        """The image of that name; else the only image with the same stem, ignoring case and Unicode normalization; else a path
        that does not exist."""
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
        folder = self._folder(path.parent)
        if folder not in self._by_stem:
            self._by_stem[folder] = _images_by_stem(folder)
        stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
        matches = self._by_stem[folder].get(normal(stem).lower(), [])
        same_name = [match for match in matches if normal(match.name) == normal(path.name)]
        return next((found[0] for found in (matches, same_name) if len(found) == 1), None)

    def _folder(self, folder: Path) -> Path:
        """The folder, or the one whose path differs from it by Unicode normalization only."""
        if folder not in self._folders:
            self._folders[folder] = folder
            if not folder.is_dir() and folder.parent != folder and (above := self._folder(folder.parent)).is_dir():
                same = (path for path in above.iterdir() if normal(path.name) == normal(folder.name) and path.is_dir())
                self._folders[folder] = next(same, folder)
        return self._folders[folder]


def _images_by_stem(folder: Path) -> dict[str, list[Path]]:
    stems: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()) if os.path.isdir(folder) else []:
        if file.suffix.lower() in IMAGE_SUFFIXES:
            stems.setdefault(normal(file.stem).lower(), []).append(file)
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
    common = [root / place for root in roots for place in ("", "images", "JPEGImages", "data")]
    return [path for path in dict.fromkeys(own + common) if path.is_dir()]


def _image_roots(file: AnnotationFile, options: Options) -> list[Path]:
    """The folders in or below which the images may be."""
    folder, source = file.path.parent, file.source
    if options.images:
        below = folder.relative_to(source).as_posix() if source.is_dir() else ""
        return [*(options.images / tail for tail in tails(below)), options.images]
    above = [parent for parent in folder.parents if source.is_dir() and parent.is_relative_to(source)]
    roots = [folder, *above]
    return [*roots, folder.parent] if folder.name.lower() in {"annotations", "labels"} else roots


def image_name(named: str, image_path: Path, file: AnnotationFile) -> str:
    """The name of an image's item: the name in the annotations, with the extension of the image that was found. If the
    annotation file is in a subfolder of SOURCE and the image is in or below that subfolder: the path relative to SOURCE, or,
    if there is no other annotation file, the same name after the subfolder."""
    name = safe_name(str(PurePosixPath(named.replace("\\", "/")).parent / image_path.name))
    if file.source.is_dir() and file.path.parent != file.source and image_path.is_relative_to(file.path.parent):
        folder = relative_name(file.path.parent, file.source)
        return f"{folder}/{name}" if file.is_only else relative_name(image_path, file.source)
    return name


def list_unannotated_images(source: Path, options: Options, found: Source) -> None:
    """Adds a problem for each image without an annotation file of its own, in the folders of the images that have one."""
    used = {os.path.abspath(item.image_path) for item in found.items}
    listed = {PurePosixPath(entry["id"]).name for entry in found.problems}
    folders = {Path(path).parent for path in used if os.path.isfile(path)}
    for folder in sorted(folder for folder in folders if not folder.is_relative_to(options.scratch)):
        for path in sorted(path for path in folder.iterdir() if is_image(path) and str(path) not in used):
            if path.stem not in listed:
                name = without_suffix(relative_name(path, options.images or source))
                found.problems.append(problem(name, "no_annotation", path.name, "image left out"))


def list_images(folder: Path, options: Options) -> list[Path]:
    """Every image at any depth below a folder, sorted, without those of an earlier dataset at --out."""
    paths = (path for path in files_below(folder) if is_image(path))
    return sorted(path for path in paths if not is_output(path, options))
