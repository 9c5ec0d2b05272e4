"""The one pipeline behind every format: check pictures, place boxes, settle classes and splits, write the data set."""

import heapq
import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from pathlib import Path

from boxtune.common.errors import UserError
from boxtune.data.questions import turns_for
from boxtune.data.records import SPLITS, Record, answer_objects, check_writable_target, record_problems, write_dataset
from data_prep.pipeline.classes import filter_objects, settle_classes
from data_prep.pipeline.inspect_images import LISTED, NAME_FOLDER, Inspected, inspect_items
from data_prep.pipeline.place import Placed, Summary, check_convention, place_rows, settle_convention
from data_prep.pipeline.splits import divide
from data_prep.pipeline.summary import print_report
from data_prep.reading.names import fraction_of
from data_prep.reading.source import Item, Options, Source, plain
from data_prep.reading.spool import Spool

_RECORD_KEYS = {"id", "image", "width", "height", "objects", "messages"}
_OBJECT_KEYS = {"bbox", "category", "ignore"}
_FEW = 30  # pictures of a test split whose figures say little: one is worth three points


def prepare(source_format: str, read: Callable[[Path, Options], Source], source: Path, options: Options) -> None:
    """Convert SOURCE into a prepared data set at `options.out`, and print what it holds.

    Raises UserError that lists every finding; nothing is then written. What there is of every picture passes from one
    spool to the next, in the order of the ids.
    """
    _check_places(source, options)
    found = read(source, options)
    inspected, problems, errors, bad_pictures = inspect_items(found, options)
    if not inspected and not found.errors:
        raise UserError(f"{source} holds no annotated image.")
    classes, class_errors = settle_classes(found, inspected, options)
    bad = [f"{item_id}: {image.reason}" for item_id, image in bad_pictures.items()]
    if errors := found.errors + errors + class_errors + bad:
        if len(bad) == len(found.items) > LISTED:
            where = f"Do their names fit the files in --images {options.images}?" if options.images else NAME_FOLDER
            raise UserError(
                f"{source}: none of its {len(bad)} pictures can be read, nothing is written. {where} The first of them:",
                bad[:LISTED],
            )
        missing = options.images is None and any(image.missing for image in bad_pictures.values())
        elsewhere = ", or name their folder with --images" if missing else ""
        hint = f" Mend them, or leave bad pictures out with --skip-bad-images{elsewhere}." if bad else ""
        raise UserError(f"{source}: {len(errors)} problem(s), nothing is written.{hint}", errors)

    may_be_said = found.fractions is None  # and then --bbox-format says how boxes are written
    if may_be_said:
        settle_convention(found, inspected)
    placed, box_problems, summary = Spool(options.scratch), Spool(options.scratch), Summary()
    for part in _place(inspected, found, classes, options):
        placed.append(part)
        box_problems.extend(part.problems)
        summary.add(part)
    if not options.allow_bad_boxes:
        check_convention(summary, found, may_be_said)
    divided, warnings = divide(summary.splits, options.split_ratio)
    problems.sort(key=itemgetter("id"))
    problems = Spool(options.scratch, heapq.merge(problems, box_problems, key=itemgetter("id")))
    splits = _make_records(placed, divided, classes, summary.columns, options)
    if "train" in splits and not any(answer_objects(record)[0] for record in splits["train"]):
        raise UserError(
            f"{source}: the train split holds no object that counts, in {len(splits['train'])} picture(s); looked for "
            f"{', '.join(classes)}. There is nothing to learn from it: name the annotations, or other --classes, or give it "
            f"other pictures with --split-ratio.{' What was warned of:' if found.warnings else ''}",
            found.warnings,
        )
    warnings += _scored_warnings(splits, options)
    if summary.emptied:
        warnings.append(
            f"{summary.emptied} picture(s), such as {summary.emptied_example}, count as empty, because none of their objects "
            "could be used; problems.jsonl says why"
        )
    staged = options.scratch / "images"
    _write(source_format, classes, splits, problems, staged if staged.exists() else None, options)
    for warning in [
        *found.warnings,
        *warnings,
        *_duplicate_warnings(divided, summary.digests),
        *_object_warnings(classes, summary.classes, problems),
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


def _place(inspected: Iterable[Inspected], found: Source, classes: list[str], options: Options) -> Iterator[Placed]:
    for item_id, item, picture in inspected:
        others = filter_objects(item_id, item, classes, options)
        placed = place_rows(item_id, item, found, picture)
        placed.problems[:0] = others
        yield placed


def _scored_warnings(splits: dict[str, Spool[Record]], options: Options) -> list[str]:
    """What is amiss with the split that evaluation will use: the test split, or without one validation."""
    scored = next((split for split in ("test", "validation") if split in splits), None)
    if scored is None:
        return ["neither a test nor a validation split: there is nothing to evaluate on"]
    count = len(splits[scored])
    warnings = [f"no test split: evaluation will use validation ({count} picture(s))"] if scored != "test" else []
    if count < _FEW:
        remedy = "" if options.split_ratio else " --split-ratio 50,10,40 gives a test split more"
        warnings.append(
            f"the {scored} split holds {count} picture(s): what is measured on fewer than {_FEW} says little.{remedy}"
        )
    return warnings


def _duplicate_warnings(divided: dict[str, str], digests: dict[str, bytes]) -> list[str]:
    """ImageFinder that stand in two splits, by their bytes."""
    counts = Counter(digests.values())
    by_digest = defaultdict(list)
    for item_id in divided:
        if counts[digests[item_id]] > 1:
            by_digest[digests[item_id]].append(item_id)
    groups = [ids for ids in by_digest.values() if len({divided[item_id] for item_id in ids}) > 1]
    if not groups:
        return []
    examples = "; ".join(" = ".join(f"{item_id} ({divided[item_id]})" for item_id in ids[:3]) for ids in groups[:3])
    return [f"the same picture stands in two splits, {len(groups)} time(s): {examples}"]


def _object_warnings(classes: list[str], present: set[str], problems: Iterable[dict]) -> list[str]:
    unused = [name for name in classes if name not in present]
    mismatched = [f"{entry['id']}: {entry['value']}" for entry in problems if entry["kind"] == "size_mismatch"]
    warnings = [f"no object of class {', '.join(unused)}"] if unused else []
    if numbered := [name for name in classes if name.isdigit()]:
        warnings.append(f"classes are called by numbers: {', '.join(numbered)}. Name them: --rename {numbered[0]}=NAME")
    if mismatched:
        warnings.append(
            f"{len(mismatched)} picture(s) have another size than their annotation states, such as {mismatched[0]}. Boxes are "
            "used as written; if pictures were resized after annotation, give the originals"
        )
    left_out = [entry["id"] for entry in problems if entry["kind"] in {"no_split", "no_annotation"}]
    if left_out:
        warnings.append(
            f"{len(left_out)} image(s) without a split or an annotation are left out, such as {left_out[0]}"
        )
    return warnings


def _make_records(
    placed: Iterable[Placed], divided: dict[str, str], classes: list[str], columns: Iterable[str], options: Options
) -> dict[str, Spool[Record]]:
    """The records of every split that has any, with pictures that are copied put where they will be found.

    Raises UserError where one would break the contract of records.
    """
    # Every record has the same per-object columns, so that `datasets` sees one schema.
    names = _free_names([*columns], _OBJECT_KEYS)
    columns = {key: names[key] for key in columns}
    splits, faults = {split: Spool(options.scratch) for split in SPLITS}, []
    for part in placed:
        split = divided[part.id]
        questions = "all" if options.questions == "mixed" and split != "train" else options.questions
        record = _make_record(part, columns, classes, questions, options)
        faults += record_problems(record)
        splits[split].append(record)
        if _is_copied(part.item, options):
            _stage(part.item, options)
    if faults:
        raise UserError("These records break the contract of prepared data; a class name may be at fault.", faults)
    return {split: records for split, records in splits.items() if records}


def _make_record(part: Placed, columns: dict[str, str], classes: list[str], questions: str, options: Options) -> Record:
    """The record of one picture. `columns` maps what the rows hold beyond box and class to the names it is written under."""
    item, rows = part.item, part.item.rows
    objects = {
        "bbox": part.boxes_xyxy,
        "category": [row.category for row in rows],
        "ignore": [row.ignore for row in rows],
    }
    objects |= {name: [plain(row.extra.get(key)) for row in rows] for key, name in columns.items()}
    width, height = part.picture.upright
    record = {
        "id": part.id,
        "image": f"images/{item.name}" if _is_copied(item, options) else os.path.abspath(item.picture),
        "width": width,
        "height": height,
        "objects": objects,
        "messages": ask(part.id, objects, classes, questions),
    }
    names = _free_names([*item.extra], _RECORD_KEYS)
    return record | {names[key]: plain(value) for key, value in item.extra.items()}


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
    return turns_for(classes, chosen)


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
    return Path(item.picture).is_relative_to(options.scratch)


def _is_copied(item: Item, options: Options) -> bool:
    return options.copy_images or _is_ours(item, options)


def _stage(item: Item, options: Options) -> None:
    """Put a picture under its name into the folder that becomes DIR/images."""
    target = options.scratch / "images" / item.name
    target.parent.mkdir(parents=True, exist_ok=True)
    if _is_ours(item, options):
        os.rename(item.picture, target)
    else:
        shutil.copyfile(item.picture, target)


def _write(
    source_format: str,
    classes: list[str],
    splits: dict[str, Spool[Record]],
    problems: Spool[dict],
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
