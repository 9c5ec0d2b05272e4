"""The annotation files of a source: one file, or one for each split."""

import os
from dataclasses import dataclass
from pathlib import Path

from boxtune.common.errors import UserError
from data_prep.reading.source import Options
from data_prep.reading.split_names import split_of


@dataclass(frozen=True)
class AnnotationFile:
    """An annotation file. `source` is SOURCE: the file itself, or a folder above it. `split` is the split in the file's or
    its folder's name, if SOURCE has one file for each split."""

    path: Path
    source: Path
    split: str | None = None

    def __str__(self) -> str:
        return str(self.path)


def check_source_exists(source: Path) -> None:
    """Raises UserError if there is no such file or folder."""
    if not source.exists():
        raise UserError(f"{source} does not exist. SOURCE must be a file or folder of annotations.")


def is_output(path: Path, options: Options) -> bool:
    """Whether a path belongs to an earlier dataset at --out, which may be a folder inside SOURCE."""
    return Path(os.path.realpath(path)).is_relative_to(options.out)


def find_annotation_files(
    source: Path, patterns: list[str], options: Options
) -> tuple[list[AnnotationFile], list[str]]:
    """(annotation files, warnings). SOURCE is one file, or a folder with one file for each split.

    The first pattern that matches a file in the folder, or one level below it, decides. Raises UserError if no file matches,
    or if it is unclear which of several files to read.
    """
    check_source_exists(source)
    if source.is_file():
        return [AnnotationFile(source, source)], []
    files = _matching_files(source, patterns, options)
    if not files:
        raise UserError(f"{source} and its subfolders contain no {patterns[-1]} file.")
    annotated = [AnnotationFile(path, source, _split_of_file(path, source)) for path in files]
    if len(annotated) == 1:
        return annotated, []
    chosen = [file for file in annotated if file.split]
    if not chosen:
        names = ", ".join(str(path.relative_to(source)) for path in files[:5])
        raise UserError(
            f"{source} contains {len(files)} annotation files, and none is named after a split: {names}. "
            "Pass one of them as SOURCE."
        )
    _check_one_file_per_split(chosen)
    return chosen, [f"{file} is not named after a split and is left out" for file in annotated if not file.split]


def _matching_files(source: Path, patterns: list[str], options: Options) -> list[Path]:
    for pattern in patterns:
        matches = sorted(source.glob(pattern)) + sorted(source.glob(f"*/{pattern}"))
        if files := [file for file in matches if not is_output(file, options)]:
            return files
    return []


def _split_of_file(path: Path, source: Path) -> str | None:
    return split_of(path.stem) or (split_of(path.parent.name) if path.parent != source else None)


def _check_one_file_per_split(files: list[AnnotationFile]) -> None:
    file_of_split: dict[str | None, AnnotationFile] = {}
    for file in files:
        first = file_of_split.setdefault(file.split, file)
        if first is not file:
            raise UserError(
                f"{first} and {file} are both named after the {file.split} split. Pass one of them as SOURCE."
            )
