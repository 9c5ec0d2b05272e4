"""The one pipeline behind every format: check pictures, place boxes, settle classes and splits, write the data set."""

import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from boxtune.errors import UserError
from boxtune.pictures import Picture, inspect_all
from boxtune.prompts import question
from boxtune.records import SPLITS, Record, check_writable_target, record_problems, write_dataset
from data_prep.classes import filter_objects, settle_classes
from data_prep.placing import Placed, check_convention, place_rows, settle_convention
from data_prep.report import print_report
from data_prep.source import Item, Options, Source, plain, problem
from data_prep.splits import choose_items, divide, fraction_of, without_suffix

_RECORD_KEYS = {"id", "image", "width", "height", "objects", "messages"}
# Of every usual file system.
_LONGEST_NAME = 255
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

    items, inspected, bad_problems, bad_errors = _inspect(items, options)
    classes, class_errors = settle_classes(found, items, options)
    if errors := found.errors + errors + class_errors + bad_errors:
        hint = " Mend them, or leave bad pictures out with --skip-bad-images." if bad_errors else ""
        raise UserError(f"{source}: {len(errors)} problem(s), nothing is written.{hint}", errors)

    if found.fractions is None:
        settle_convention(found, items, inspected)
    other_classes = filter_objects(items, classes)
    placed = {item_id: place_rows(item_id, item, found, inspected[item_id]) for item_id, item in items.items()}
    if not options.allow_bad_boxes:
        check_convention(list(placed.values()))
    divided, warnings = divide({item_id: item.split for item_id, item in items.items()}, options.split_ratio)
    problems += (
        found.problems + bad_problems + other_classes + [fault for part in placed.values() for fault in part.problems]
    )
    problems.sort(key=lambda fault: fault["id"])

    copied = {item_id for item_id, item in items.items() if options.copy_images or _is_ours(item, options)}
    staged = options.scratch / "images" if copied else None
    records = _make_records(items, inspected, placed, divided, classes, copied, options)
    splits = {split: [record for record in records if divided[record["id"]] == split] for split in SPLITS}
    splits = {split: members for split, members in splits.items() if members}
    if staged:
        _stage([items[item_id] for item_id in copied], staged, options)
    _write(source_format, classes, splits, problems, staged, options)
    for warning in [
        *found.warnings,
        *warnings,
        *_duplicate_warnings(divided, inspected),
        *_object_warnings(classes, placed, problems),
    ]:
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
    folders = {str(folder) for item in items for folder in PurePosixPath(item.name).parents}
    for item in items:
        if fault := _name_fault(item.name, folders):
            errors.append(f"{item.name!r:.100} {fault}")
        if by_name.setdefault(item.name, item) is not item:
            errors.append(f"{item.name} stands twice; give each picture one entry")
        elif (other := by_picture.setdefault((item.split, item.picture), item)) is not item:
            errors.append(f"{item.name} and {other.name} are one picture, {item.picture}; give each picture one entry")
    ids = {name: without_suffix(name) for name in by_name}
    while shared := {item_id for item_id, count in Counter(ids.values()).items() if count > 1}:
        ids = {name: name if item_id in shared else item_id for name, item_id in ids.items()}
    return {ids[name]: by_name[name] for name in sorted(ids, key=ids.get)}, errors


def _name_fault(name: str, folders: set[str]) -> str | None:
    """Why no file system, or not this data set, can hold a picture of that name; or None."""
    if not all(0 < len(part.encode("utf-8", "surrogatepass")) <= _LONGEST_NAME for part in name.split("/")):
        return f"is longer than the {_LONGEST_NAME} bytes that a file name may have"
    if "\0" in name:
        return "holds a NUL character, which no file name may"
    return "is a picture, and also a folder of pictures" if name in folders else None


def _inspect(
    items: dict[str, Item], options: Options
) -> tuple[dict[str, Item], dict[str, Picture], list[dict], list[str]]:
    """(items to go on with, {id: Picture}, problems, errors). Bad pictures are errors, or left out if the user says so."""
    inspected = dict(zip(items, inspect_all([item.picture for item in items.values()], options.workers), strict=True))
    bad = {item_id: reason for item_id, reason in inspected.items() if isinstance(reason, str)}
    if not options.skip_bad_images:
        return items, inspected, [], [f"{item_id}: {reason}" for item_id, reason in bad.items()]
    if bad and len(bad) == len(items):
        raise UserError(f"No image is left, all {len(bad)} are bad:", [*bad.values()])
    problems = [problem(item_id, "bad_image", reason, "image left out") for item_id, reason in bad.items()]
    return {item_id: item for item_id, item in items.items() if item_id not in bad}, inspected, problems, []


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
    if numbered := [name for name in classes if name.isdigit()]:
        warnings.append(f"classes are called by numbers: {', '.join(numbered)}. Name them: --rename {numbered[0]}=NAME")
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


def _make_records(
    items: dict[str, Item],
    inspected: dict[str, Picture],
    placed: dict[str, Placed],
    divided: dict[str, str],
    classes: list[str],
    copied: set[str],
    options: Options,
) -> list[Record]:
    """A record for every item. Raises UserError where one would break the contract of records."""
    # Every record has the same per-object columns, so that `datasets` sees one schema.
    columns = list(dict.fromkeys(key for part in placed.values() for row in part.rows for key in row.extra))
    records = []
    for item_id, item in items.items():
        rows = placed[item_id].rows
        objects = {
            "bbox": placed[item_id].boxes_xyxy,
            "category": [row.category for row in rows],
            "ignore": [row.ignore for row in rows],
        }
        names = _free_names(columns, _OBJECT_KEYS)
        objects |= {names[key]: [plain(row.extra.get(key)) for row in rows] for key in columns}
        width, height = inspected[item_id].upright
        questions = "all" if options.questions == "mixed" and divided[item_id] != "train" else options.questions
        record = {
            "id": item_id,
            "image": f"images/{item.name}" if item_id in copied else os.path.abspath(item.picture),
            "width": width,
            "height": height,
            "objects": objects,
            "messages": ask(item_id, objects, classes, questions),
        }
        names = _free_names(list(item.extra), _RECORD_KEYS)
        records.append(record | {names[key]: plain(value) for key, value in item.extra.items()})
    if faults := [fault for record in records for fault in record_problems(record)]:
        raise UserError("These records break the contract of prepared data; a class name may be at fault.", faults)
    return records


def _free_names(keys: list[str], taken: set[str]) -> dict[str, str]:
    """{key: the name to write it under}: its own, with "source_" in front as often as that is taken."""
    names = {key: key for key in keys if key not in taken}
    for key in keys:
        name = key
        while name in taken or (key not in names and name in names.values()):
            name = f"source_{name}"
        names[key] = name
    return names


def ask(item_id: str, objects: dict[str, list], classes: list[str], questions: str) -> list[dict]:
    """The question and its placeholder answer: for all classes, or for the one that `questions` chooses."""
    present = [name for name, ignored in zip(objects["category"], objects["ignore"], strict=True) if not ignored]
    chosen = None
    if questions == "mixed":
        chosen = _drawn_class(item_id, present, set(objects["category"]), classes)
    elif questions == "most-common" and present:
        chosen = max(classes, key=present.count)  # of equals the first
    answer = f"<boxes:{chosen}>" if chosen else "<boxes>"
    return [
        {"role": "user", "content": question([chosen] if chosen else classes)},
        {"role": "assistant", "content": answer},
    ]


def _drawn_class(item_id: str, present: list[str], seen: set[str], classes: list[str]) -> str | None:
    """For a quarter of the images a class that is there, for a quarter one that is not, otherwise None; the id alone
    decides. A class of which all objects are ignored, `seen` but not `present`, is neither."""
    draw = fraction_of(f"question {item_id}")
    candidates = [name for name in classes if (name in present if draw < 0.75 else name not in seen)]
    if draw < 0.5 or not candidates:
        return None
    return candidates[int(fraction_of(f"class {item_id}") * len(candidates))]


def _is_ours(item: Item, options: Options) -> bool:
    """Whether a reader wrote the picture, which its source holds as bytes and not as a file."""
    return item.picture.is_relative_to(options.scratch)


def _stage(items: list[Item], staged: Path, options: Options) -> None:
    """Put pictures under their names into the folder that becomes DIR/images."""
    for item in items:
        target = staged / item.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if _is_ours(item, options):
            os.rename(item.picture, target)
        else:
            shutil.copyfile(item.picture, target)


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
            f"{error.object[max(error.start - 40, 0) : error.end + 40]!r} holds a name that is no Unicode text. "
            "Rename the file or class, or mend the text."
        ) from None
