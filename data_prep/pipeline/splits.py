"""Which image belongs to which split: as the source or its image folders say, or by a stable hash of the id."""

from collections import Counter
from dataclasses import replace
from typing import Any, NamedTuple

from boxtune.data.records import SPLITS
from data_prep.pipeline.hashing import fraction_of
from data_prep.reading.names import without_suffix
from data_prep.reading.source import Entry, problem
from data_prep.reading.split_names import ALIASES, split_of_folders

DEFAULT_RATIO = [80.0, 10.0, 10.0]  # train, validation, test


class ChosenEntries(NamedTuple):
    """The entries that are converted, problems for those left out, and warnings."""

    entries: list[Entry]
    problems: list[dict[str, Any]]
    warnings: list[str]


def choose_entries(entries: list[Entry], by_folders: bool) -> ChosenEntries:
    """The entries that belong to a split; all of them, without a split, if the source is not divided.

    A source is divided by its own lists, files or columns, or else (`by_folders`) by the folders in its image names. In
    a divided source, images without a split are left out. So are those of `trainval` if train or validation exists;
    otherwise `trainval` is the training split.
    """
    warnings: list[str] = []
    if by_folders and not any(entry.split for entry in entries):
        entries, warnings = _divide_by_folders(entries)
    named = {entry.split for entry in entries if entry.split}
    if not named:
        return ChosenEntries(entries, [], warnings)
    if "trainval" in named:
        replacement = None if named & {"train", "validation"} else "train"
        entries = [replace(entry, split=replacement) if entry.split == "trainval" else entry for entry in entries]
    kept = [entry for entry in entries if entry.split]
    left_out = {entry.name for entry in entries} - {entry.name for entry in kept}
    problems = [problem(without_suffix(name), "no_split", None, "image left out") for name in sorted(left_out)]
    return ChosenEntries(kept, problems, warnings)


def _divide_by_folders(entries: list[Entry]) -> tuple[list[Entry], list[str]]:
    """(entries with the split that the folders in their names stand for, warnings).

    The warnings say how names were understood, because a folder's name may mean something else.
    """
    splits = [split_of_folders(entry.name) for entry in entries]
    counts = Counter(splits)
    named = [split for split in ALIASES if split in counts]
    if len(named) == 1 and None in counts:  # `train` next to `bus` and `car` is a vehicle
        split = named[0]
        example = without_suffix(entries[splits.index(split)].name)
        warning = (
            f"folder names suggest the {split} split for {counts[split]} image(s), such as {example}, and no split for the "
            f"other {counts[None]}, so folder names are ignored. If they are splits, rename the other folders to match"
        )
        return entries, [warning]
    divided = [replace(entry, split=split) for entry, split in zip(entries, splits, strict=True)]
    if len(named) < 2:
        return divided, []
    listed = ", ".join(f"{counts[split]} {split}" for split in named)
    return divided, [f"splits were taken from the names of the image folders ({listed}); --split-ratio overrides them"]


def divide(
    split_by_id: dict[str, str | None], ratio: list[float] | None, folder: str = ""
) -> tuple[dict[str, str], list[str]]:
    """({id: split}, warnings): the source's own division if it has at least two splits, else by hash of the id.

    With a `ratio` (--split-ratio) always by hash. `folder` (see `Source`) is not hashed, so that SOURCE may be a folder above
    the dataset.
    """
    own = {item_id: split for item_id, split in split_by_id.items() if split}
    own_splits = sorted(set(own.values()))
    if len(own_splits) >= 2 and ratio is None:
        absent = [split for split in SPLITS[:2] if split not in own_splits]
        return own, [f"the source has no {split} split" for split in absent]
    warnings = []
    if len(own_splits) == 1:
        warnings.append(f"the source has only a {own_splits[0]} split, so its images are divided into splits")
    elif own_splits:
        warnings.append(f"--split-ratio overrides the source's own splits ({', '.join(own_splits)})")
    ratio = ratio or DEFAULT_RATIO
    divided = _divide_by_hash({item_id: fraction_of(item_id.removeprefix(folder)) for item_id in split_by_id}, ratio)
    wanted = [split for split, share in zip(SPLITS, ratio, strict=True) if share]
    empty = [split for split in wanted if split not in divided.values()]
    return divided, warnings + [f"too few images for a {split} split" for split in empty]


def _divide_by_hash(fractions: dict[str, float], ratio: list[float]) -> dict[str, str]:
    """{id: split}, in the order of the `fractions`, {id: its hash}. Each split depends on the id alone, except that a split
    which would stay empty takes an image from the largest one."""
    bounds = _hash_ranges(ratio)
    by_hash = sorted(fractions, key=fractions.__getitem__)
    divided = {item_id: _split_at(fractions[item_id], bounds) for item_id in by_hash}
    for split in bounds:
        counts = Counter(divided.values())
        largest = max(SPLITS, key=counts.__getitem__)
        if split not in counts and counts[largest] >= 2:
            last = next(item_id for item_id in reversed(by_hash) if divided[item_id] == largest)
            divided[last] = split
    return divided


def _hash_ranges(ratio: list[float]) -> dict[str, tuple[float, float]]:
    """{split with a share above 0: (start, end) of its part of [0, 1)}."""
    ranges, start, total = {}, 0.0, sum(ratio)
    for split, share in zip(SPLITS, ratio, strict=True):
        end = start + share / total
        if end > start:
            ranges[split] = (start, end)
        start = end
    return ranges


def _split_at(fraction: float, ranges: dict[str, tuple[float, float]]) -> str:
    for split, (start, end) in ranges.items():
        if start <= fraction < end:
            return split
    return list(ranges)[-1]  # rounding may leave the last range ending just below 1
