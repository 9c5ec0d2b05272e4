"""Which image belongs to which split: the source's own division, that of the pictures' folders, or a stable hash of the id."""

from collections import Counter

from boxtune.data.records import SPLITS
from data_prep.reading.names import ALIASES, fraction_of, split_of_folders, without_suffix
from data_prep.reading.source import Entry, problem

DEFAULT_RATIO = [80.0, 10.0, 10.0]


def choose_entries(entries: list[Entry], by_folders: bool) -> tuple[list[Entry], list[dict], list[str]]:
    """(entries that belong to a split, problems for those left out, warnings).

    Where the source divides its images, by lists, files or a column, or else `by_folders` in their names, an image that it
    gives no split is left out. `trainval` is left out where its parts exist, and is the training split where they do not.
    """
    by_folders = by_folders and not any(entry.split for entry in entries)
    warnings = _divide_by_folders(entries) if by_folders else []
    named = {entry.split for entry in entries} - {None}
    if "trainval" in named:
        parts_exist = bool(named & {"train", "validation"})
        for entry in entries:
            if entry.split == "trainval":
                entry.split = None if parts_exist else "train"
    if not named:
        return entries, [], warnings
    kept = [entry for entry in entries if entry.split]
    placed = {entry.name for entry in kept}
    lost = sorted({entry.name for entry in entries} - placed)
    problems = [problem(without_suffix(name), "no_split", None, "image left out") for name in lost]
    return kept, problems, warnings


def _divide_by_folders(entries: list[Entry]) -> list[str]:
    """Give each entry the split that the folders in its name speak of; warnings, for a folder's name may mean something else."""
    splits = [split_of_folders(entry.name) for entry in entries]
    counts = Counter(splits)
    named = [split for split in ALIASES if split in counts]
    if len(named) == 1 and None in counts:  # `train` beside `bus` and `car` is a vehicle
        split = named[0]
        example = without_suffix(entries[splits.index(split)].name)
        return [
            f"folders name only the {split} split, for {counts[split]} picture(s) such as {example}, and none for the other "
            f"{counts[None]}: taken for no division. If it is one, name the folders of the others after their split too"
        ]
    for entry, split in zip(entries, splits, strict=True):
        entry.split = split
    if len(named) < 2:
        return []
    said = ", ".join(f"{counts[split]} {split}" for split in named)
    return [f"the splits are those that the pictures' folders name ({said}); --split-ratio divides anew"]


def divide(splits_by_id: dict[str, str | None], ratio: list[float] | None) -> tuple[dict[str, str], list[str]]:
    """({id: split}, warnings): the source's own division where it has two splits or more, else by hash of the id.

    A `ratio` that the user gave divides anew, whatever the source says.
    """
    own = {split for split in splits_by_id.values() if split}
    if len(own) >= 2 and ratio is None:
        absent = [split for split in SPLITS[:2] if split not in own]
        return dict(splits_by_id), [f"the source has no {split} split" for split in absent]
    if len(own) == 1:
        warnings = [f"the source has only a {own.pop()} split, which is divided"]
    else:
        warnings = [f"--split-ratio replaces the source's own splits ({', '.join(sorted(own))})"] if own else []
    divided = _divide_by_hash(list(splits_by_id), ratio or DEFAULT_RATIO)
    wanted = [split for split, share in zip(SPLITS, ratio or DEFAULT_RATIO, strict=True) if share]
    empty = [split for split in wanted if split not in divided.values()]
    return divided, warnings + [f"too few images for a {split} split" for split in empty]


def _divide_by_hash(ids: list[str], ratio: list[float]) -> dict[str, str]:
    """Each id's split depends on that id alone, except that a split left empty in a small set takes one image."""
    total, bounds, low = sum(ratio), {}, 0.0
    for split, share in zip(SPLITS, ratio, strict=True):
        bounds[split] = (low, low + share / total)
        low += share / total
    by_hash = sorted(ids, key=fraction_of)
    last = next(split for split in reversed(SPLITS) if bounds[split][1] > bounds[split][0])
    divided = {
        name: next((split for split in SPLITS if bounds[split][0] <= fraction_of(name) < bounds[split][1]), last)
        for name in by_hash
    }
    for split in SPLITS:
        largest = max(SPLITS, key=list(divided.values()).count)
        members = [name for name in by_hash if divided[name] == largest]
        if bounds[split][1] > bounds[split][0] and split not in divided.values() and len(members) >= 2:
            divided[members[-1]] = split
    return divided
