"""The one pipeline behind every format: check pictures, place boxes, settle classes and splits, write the data set."""

import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from boxtune.errors import UserError
from boxtune.prompts import question
from boxtune.records import Record, check_writable_target, label_problem, record_problems, write_dataset
from data_prep.pictures import Picture, inspect_all
from data_prep.placing import Placed, check_convention, place_rows
from data_prep.report import print_report
from data_prep.source import Item, Options, Source, plain, problem
from data_prep.splits import choose_items, divide, fraction_of, without_suffix

_RECORD_KEYS = {"id", "image", "width", "height", "objects", "messages"}
_OBJECT_KEYS = {"bbox", "category", "ignore"}


def prepare(source_format: str, read: Callable[[Path, Options], Source], source: Path, options: Options) -> None:
    """Convert SOURCE into a prepared data set at `options.out`, and print what it holds.

    Raises UserError that lists every finding; nothing is then written.
    """
    _check_places(source, options)
    found = read(source, options)
    kept, problems = choose_items(found.items)
    items, errors = name_items(kept)
    if not items and not found.errors:
        raise UserError(f"{source} holds no annotated image.")

    inspected = dict(zip(items, inspect_all([item.picture for item in items.values()]), strict=True))
    bad = {item_id: reason for item_id, reason in inspected.items() if isinstance(reason, str)}
    if options.skip_bad_images:
        problems += [problem(item_id, "bad_image", reason, "image left out") for item_id, reason in bad.items()]
        items = {item_id: item for item_id, item in items.items() if item_id not in bad}
        if not items:
            raise UserError(f"{source}: no image is left, all {len(bad)} are bad:", [*bad.values()])
    else:
        errors += [f"{item_id}: {reason}" for item_id, reason in bad.items()]

    classes = settle_classes(found, items, options)
    other_classes = _filter_objects(items, classes, options)
    errors += _class_errors(classes, items)
    if errors := found.errors + errors:
        hint = (
            " Mend them, or leave pictures out with --skip-bad-images." if bad and not options.skip_bad_images else ""
        )
        raise UserError(f"{source}: {len(errors)} problem(s), nothing is written.{hint}", errors)

    placed = {key: place_rows(key, item, item.rows, found, inspected[key]) for key, item in items.items()}
    if not options.allow_bad_boxes:
        check_convention(list(placed.values()))
    for item_id in items:
        problems += other_classes[item_id] + placed[item_id].problems
    problems = sorted(found.problems + problems, key=lambda entry: entry["id"])
    divided, warnings = divide({item_id: item.split for item_id, item in items.items()}, options.split_ratio)
    warnings = found.warnings + warnings + _duplicate_warnings(divided, inspected)
    warnings += _object_warnings(classes, placed, problems)

    stage = found.owns_pictures or options.copy_images
    columns = list(dict.fromkeys(key for part in placed.values() for row in part.rows for key in row.extra))
    splits: dict[str, list[Record]] = {}
    for split in ("train", "validation", "test"):
        for item_id in (item_id for item_id in items if divided[item_id] == split):
            item = items[item_id]
            image = f"images/{item.name}" if stage else os.path.abspath(item.picture)
            record = make_record(item_id, item, image, inspected[item_id], placed[item_id], columns)
            record["messages"] = ask(item_id, record, classes, mixed=options.questions == "mixed" and split == "train")
            record |= {_free(key, _RECORD_KEYS): plain(value) for key, value in item.extra.items()}
            splits.setdefault(split, []).append(record)
    if faults := [fault for records in splits.values() for record in records for fault in record_problems(record)]:
        raise UserError("These records would break the data set's contract; a class name may be at fault.", faults)
    staged = _stage(items, found.owns_pictures, options.scratch) if stage else None
    _write(source_format, classes, splits, problems, staged, options)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print_report(options.out, classes, splits, problems)


def _check_places(source: Path, options: Options) -> None:
    check_writable_target(options.out, options.overwrite)
    if options.images and not options.images.is_dir():
        raise UserError(f"--images {options.images} is no folder.")
    for place in (source, options.images):
        if place and place.exists() and place.resolve().is_relative_to(options.out.resolve()):
            raise UserError(f"{place} lies in {options.out}, which would be replaced. Use another --out.")


def name_items(items: list[Item]) -> tuple[dict[str, Item], list[str]]:
    """({id: item} in the order of ids, errors). An id keeps its extension, or gets its split in front, against collisions."""
    splits_of_name = defaultdict(set)
    for item in items:
        splits_of_name[item.name].add(item.split)
    for item in items:
        if len(splits_of_name[item.name]) > 1 and item.split:
            item.name = f"{item.split}/{item.name}"
    errors, by_name, by_picture = [], {}, {}
    for item in items:
        other = by_picture.setdefault((item.split, item.picture), item)
        if other is not item or by_name.setdefault(item.name, item) is not item:
            errors.append(f"{item.name} and {other.name} are one picture; give each picture one entry")
    ids = {name: without_suffix(name) for name in by_name}
    while shared := {item_id for item_id, count in Counter(ids.values()).items() if count > 1}:
        ids = {name: name if item_id in shared else item_id for name, item_id in ids.items()}
    return {ids[name]: by_name[name] for name in sorted(ids, key=ids.get)}, errors


def settle_classes(found: Source, items: dict[str, Item], options: Options) -> list[str]:
    """The classes in order: those asked for, else the source's own, then any others by name. Renames the items' objects."""
    rows = [row for item in items.values() for row in item.rows]
    known = {*found.classes, *(row.category for row in rows)}
    if unknown := sorted(set(options.rename) - known):
        raise UserError(f"--rename: no class {', '.join(map(repr, unknown))}; there are {_listed(known)}.")
    for row in rows:
        row.category = options.rename.get(row.category, row.category)
    stated = [options.rename.get(name, name) for name in found.classes]
    classes = list(dict.fromkeys([*stated, *sorted({row.category for row in rows})]))
    if unknown := [name for name in options.classes if name not in classes]:
        raise UserError(f"--classes: no class {', '.join(map(repr, unknown))}; there are {_listed(classes)}.")
    if not classes and not found.errors and items:
        raise UserError("The source has neither an object nor class names, so that there is nothing to ask for.")
    return options.classes or classes


def _class_errors(classes: list[str], items: dict[str, Item]) -> list[str]:
    first = {row.category: item_id for item_id, item in reversed(items.items()) for row in item.rows}
    faults = {name: fault for name in classes if (fault := label_problem(name))}
    return [
        f"{fault} (first in {first.get(name, 'the list of classes')}); mend it, or use --rename"
        for name, fault in faults.items()
    ]


def _listed(names) -> str:
    return ", ".join(sorted(names)) or "none"


def _filter_objects(items: dict[str, Item], classes: list[str], options: Options) -> dict[str, list[dict]]:
    """Drop objects that --classes does not name: {id: problems}."""
    dropped = {
        item_id: [
            problem(item_id, "other_class", row.category, "object dropped")
            for row in item.rows
            if row.category not in classes
        ]
        for item_id, item in items.items()
    }
    for item in items.values():
        item.rows = [row for row in item.rows if row.category in classes]
    return dropped


def _duplicate_warnings(divided: dict[str, str], inspected: dict[str, Picture]) -> list[str]:
    """Pictures that stand in two splits, by their bytes."""
    by_digest = defaultdict(list)
    for item_id in divided:
        by_digest[inspected[item_id].digest].append(item_id)
    groups = [ids for ids in by_digest.values() if len({divided[item_id] for item_id in ids}) > 1]
    if not groups:
        return []
    examples = "; ".join(" = ".join(f"{item_id} ({divided[item_id]})" for item_id in ids[:3]) for ids in groups[:3])
    return [f"the same picture stands in two splits, {len(groups)} time(s): {examples}"]


def _object_warnings(classes: list[str], placed: dict[str, Placed], problems: list[dict]) -> list[str]:
    present = {row.category for part in placed.values() for row in part.rows}
    unused = [name for name in classes if name not in present]
    mismatched = [entry for entry in problems if entry["kind"] == "size_mismatch"]
    warnings = [f"no object of class {', '.join(unused)}"] if unused else []
    if mismatched:
        example = f"{mismatched[0]['id']}: {mismatched[0]['value']}"
        warnings.append(
            f"{len(mismatched)} picture(s) have another size than their annotation states, such as {example}"
        )
    left_out = [entry["id"] for entry in problems if entry["kind"] in {"no_split", "no_annotation"}]
    if left_out:
        warnings.append(
            f"{len(left_out)} image(s) without a split or an annotation are left out, such as {left_out[0]}"
        )
    return warnings


def make_record(item_id: str, item: Item, image: str, picture: Picture, placed: Placed, columns: list[str]) -> Record:
    """The record but for its messages. `columns` are the extra per-object columns of the whole data set."""
    objects = {
        "bbox": placed.boxes_xyxy,
        "category": [row.category for row in placed.rows],
        "ignore": [row.ignore for row in placed.rows],
    }
    objects |= {_free(key, _OBJECT_KEYS): [plain(row.extra.get(key)) for row in placed.rows] for key in columns}
    width, height = picture.upright
    return {"id": item_id, "image": image, "width": width, "height": height, "objects": objects}


def _free(key: str, taken: set[str]) -> str:
    return f"source_{key}" if key in taken else key


def ask(item_id: str, record: Record, classes: list[str], mixed: bool) -> list[dict]:
    """The question and its placeholder answer. `mixed` asks a quarter of the images for one class that is there, and a
    quarter for one that is not; which, depends on the id alone."""
    names, answer = classes, "<boxes>"
    draw = fraction_of(f"question {item_id}")
    if mixed and draw >= 0.5:
        objects = record["objects"]
        present = [name for name, ignored in zip(objects["category"], objects["ignore"], strict=True) if not ignored]
        wanted = present if draw < 0.75 else set(classes) - set(objects["category"])
        candidates = [name for name in classes if name in wanted]
        if candidates:
            names = [candidates[int(fraction_of(f"class {item_id}") * len(candidates))]]
            answer = f"<boxes:{names[0]}>"
    return [{"role": "user", "content": question(names)}, {"role": "assistant", "content": answer}]


def _stage(items: dict[str, Item], owned: bool, scratch: Path) -> Path:
    """Put every picture under its name into a folder that becomes DIR/images."""
    staged = scratch / "images"
    for item in items.values():
        target = staged / item.name
        target.parent.mkdir(parents=True, exist_ok=True)
        (os.rename if owned else shutil.copyfile)(item.picture, target)
    return staged


def _write(
    source_format: str,
    classes: list[str],
    splits: dict[str, list[Record]],
    problems: list[dict],
    staged: Path | None,
    options: Options,
) -> None:
    try:
        write_dataset(
            options.out,
            name=options.out.name,
            source_format=source_format,
            classes=classes,
            splits=splits,
            problems=problems,
            overwrite=options.overwrite,
            staged_images=staged,
        )
    except UnicodeEncodeError as error:
        raise UserError(
            f"{error.object[:100]!r} holds a name that is no Unicode text. Rename the file or class."
        ) from None
