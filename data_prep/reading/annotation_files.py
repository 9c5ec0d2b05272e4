"""The annotation files of a source: one file, or one for each split."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from boxtune.common.errors import UserError
from boxtune.common.files import files_below
from boxtune.common.problems import join_names
from data_prep.reading.names import relative_name
from data_prep.reading.source import Options
from data_prep.reading.split_names import split_of, split_of_folders


@dataclass(frozen=True)
class AnnotationFile:
    """An annotation file. `source` is SOURCE: the file itself, or a folder above it. `split` is the split in the file's or
    its folder's name, if SOURCE has one file for each split. `is_only`: SOURCE has no other annotation file."""

    path: Path
    source: Path
    split: str | None = None
    is_only: bool = False

    def __str__(self) -> str:
        return str(self.path)


def check_source_exists(source: Path) -> None:
    """Raises UserError if there is no such file or folder."""
    if not source.exists():
        raise UserError(f"{source} does not exist. SOURCE must be a file or folder of annotations.")


def check_is_folder(source: Path) -> None:
    """Raises UserError unless SOURCE is a folder, which formats with one annotation file for each image need."""
    check_source_exists(source)
    if source.is_file():
        raise UserError(f"{source} is a file. Pass the folder that contains the annotation files of all images.")


def is_output(path: Path, options: Options) -> bool:
    """Whether a path belongs to an earlier dataset at --out, which may be a folder inside SOURCE."""
    return Path(os.path.realpath(path)).is_relative_to(options.out)


class FoundFiles(NamedTuple):
    """The annotation files, warnings, and the folder that contains all of the files (see `folder_of`)."""

    files: list[AnnotationFile]
    warnings: list[str]
    folder: str = ""


def find_annotation_files(
    source: Path, patterns: list[str], options: Options, fits: Callable[[Path], bool] | None = None
) -> FoundFiles:
    """The annotation files of a source. SOURCE is one file, or a folder with one file for each split.

    The files that are nearest to SOURCE are read, at any depth, so that SOURCE may be a folder above the dataset. Of several
    files, those that do not fit are left out with a warning. Raises UserError if no file matches, or if it is unclear which
    of several files to read.
    """
    check_source_exists(source)
    if source.is_file():
        return FoundFiles([AnnotationFile(source, source)], [])
    files = _matching_files(source, patterns, options)
    if not files:
        raise UserError(f"{source} and its subfolders contain no {patterns[-1]} file.")
    fitting = [path for path in files if fits(path)] if fits and len(files) > 1 else files
    warnings = [f"{path} has no boxes and is left out" for path in files if fitting and path not in fitting]
    files = fitting or files
    annotated = [AnnotationFile(path, source, _split_of_file(path, source), len(files) == 1) for path in files]
    if len(annotated) == 1:
        return FoundFiles(annotated, warnings, folder_of(files, source))
    chosen = [file for file in annotated if file.split]
    if not chosen:
        names = join_names(str(path.relative_to(source)) for path in files)
        raise UserError(
            f"{source} contains {len(files)} annotation files, and none is named after a split: {names}. "
            "Pass one of them as SOURCE."
        )
    _check_one_file_per_split(chosen)
    warnings += [f"{file} is not named after a split and is left out" for file in annotated if not file.split]
    return FoundFiles(chosen, warnings, folder_of((file.path for file in chosen), source))


def source_files(source: Path, options: Options) -> list[Path]:
    """Every file below a folder, the nearest first, without hidden files and those of an earlier dataset at --out."""
    files = (path for path in files_below(source) if not path.name.startswith("."))
    return sorted((path for path in files if not is_output(path, options)), key=lambda path: (len(path.parts), path))


def folder_of(paths: Iterable[Path], source: Path) -> str:
    """The folder that contains all paths, relative to SOURCE, with a slash at its end; "" if it is SOURCE itself."""
    folders = [path.parent for path in paths]
    if not source.is_dir() or not folders:
        return ""
    below = os.path.relpath(os.path.commonpath(folders), source)
    return "" if below == "." else f"{Path(below).as_posix()}/"


def _matching_files(source: Path, patterns: list[str], options: Options) -> list[Path]:
    """The files of the first pattern that matches, in SOURCE or one level below it; else those of the nearest two levels."""
    files = [path for path in source_files(source, options) if _matches(path, patterns)]
    if not files:
        return []
    nearest, one_below = len(files[0].parts), len(source.parts) + 2
    deepest = one_below if nearest <= one_below else nearest + 1
    near = [path for path in files if len(path.parts) <= deepest]
    return next(members for pattern in patterns if (members := [path for path in near if _matches(path, [pattern])]))


def _matches(path: Path, patterns: list[str]) -> bool:
    return any(fnmatchcase(path.name, pattern) for pattern in patterns)


def _split_of_file(path: Path, source: Path) -> str | None:
    return split_of(path.stem) or split_of_folders(relative_name(path, source))


def _check_one_file_per_split(files: list[AnnotationFile]) -> None:
    file_of_split: dict[str | None, AnnotationFile] = {}
    for file in files:
        first = file_of_split.setdefault(file.split, file)
        if first is not file:
            raise UserError(
                f"{first} and {file} are both named after the {file.split} split. Pass one of them as SOURCE."
            )
