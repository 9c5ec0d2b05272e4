"""What a finished conversion warns of. Each warning is one line without a final period."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from boxtune.common.problems import join_names
from boxtune.data.records import Record, answer_objects
from data_prep.pipeline.layouts import THOUSAND
from data_prep.pipeline.totals import BoxTotals, ImageTotals
from data_prep.reading.source import Options

# Below so many images a split's scores are unreliable: a single image counts for more than three points.
_FEW_IMAGES = 30
# Boxes that would all stay below 1000 in one of so many sets of that size may be written in thousandths.
_UNLIKELY = 10


def evaluation_warnings(image_counts: dict[str, int], options: Options) -> list[str]:
    """Warnings on the split that evaluation will use: test, or else validation. `image_counts` is {split: images}."""
    scored = next((split for split in ("test", "validation") if split in image_counts), None)
    if scored is None:
        return ["neither a test nor a validation split, so there is nothing to evaluate on"]
    count = image_counts[scored]
    warnings = []
    if scored == "validation":
        warnings.append(f"no test split, so evaluation will use validation ({count} image(s))")
    if count < _FEW_IMAGES:
        remedy = "" if options.split_ratio else "; --split-ratio 50,10,40 makes a larger test split"
        warnings.append(
            f"the {scored} split has {count} image(s), and scores on fewer than {_FEW_IMAGES} are unreliable{remedy}"
        )
    return warnings


def empty_image_warnings(totals: ImageTotals) -> list[str]:
    if not totals.emptied:
        return []
    return [
        f"{totals.emptied} image(s), such as {totals.emptied_example}, count as empty because none of their objects is "
        "usable; see problems.jsonl for the reasons"
    ]


def duplicate_warnings(split_by_id: dict[str, str], digests: dict[str, bytes]) -> list[str]:
    """A warning if identical image files are in different splits."""
    counts = Counter(digests.values())
    ids_by_digest = defaultdict(list)
    for item_id in split_by_id:
        if counts[digests[item_id]] > 1:
            ids_by_digest[digests[item_id]].append(item_id)
    groups = [ids for ids in ids_by_digest.values() if len({split_by_id[item_id] for item_id in ids}) > 1]
    if not groups:
        return []
    examples = "; ".join(" = ".join(f"{item_id} ({split_by_id[item_id]})" for item_id in ids[:3]) for ids in groups[:3])
    return [f"{len(groups)} image(s) are in more than one split: {examples}"]


def class_warnings(classes: list[str], with_objects: set[str]) -> list[str]:
    """Warnings on classes without objects, and on numbers in place of names."""
    warnings = []
    if unused := [name for name in classes if name not in with_objects]:
        warnings.append(f"no objects of class {join_names(unused)}")
    if numbers := [name for name in classes if name.isdigit()]:
        warnings.append(f"class names are numbers: {join_names(numbers)}. Name them: --rename {numbers[0]}=NAME")
    return warnings


def untrained_warnings(splits: Mapping[str, Iterable[Record]], classes: list[str]) -> list[str]:
    """A warning on classes that have objects in validation or test, but none in training, with their counts."""
    counts = {
        split: Counter(name for record in records for name in answer_objects(record)[1])
        for split, records in splits.items()
    }
    train = counts.pop("train", None)
    if train is None:
        return []
    listed = [
        f"{name} ({', '.join(f'{count[name]} in {split}' for split, count in counts.items() if count[name])})"
        for name in classes
        if not train[name] and any(count[name] for count in counts.values())
    ]
    if not listed:
        return []
    return [
        f"no object in training, but in evaluation, of class {join_names(listed)}, so a model cannot learn it. If the splits "
        "name a class differently, merge the names with --rename OLD=NEW; else divide the images again with --split-ratio"
    ]


def rotation_line(totals: ImageTotals) -> list[str]:
    """How many images are turned upright, for the summary."""
    if not totals.turned:
        return []
    return [
        f"EXIF: {totals.turned} image(s) are turned upright, {totals.turned_boxes} of them together with their boxes"
    ]


def thousandths_warnings(totals: BoxTotals) -> list[str]:
    """A warning if no box reaches beyond 1000 pixels although the images do.

    If the far edges of boxes lay anywhere in their images, the chance of that would be the product of 1000 / side.
    """
    if totals.large_images_largest > THOUSAND or totals.beyond_thousand_odds < math.log(_UNLIKELY):
        return []
    return [
        f"no box reaches beyond {THOUSAND} in images of up to {totals.largest_side} pixels, so the coordinates may be "
        "thousandths of the image (0 to 1000), as Qwen and Gemini models write them. If they are, convert again with "
        f"--bbox-format {totals.layout}1000"
    ]


def problem_warnings(problems: Iterable[dict[str, Any]]) -> list[str]:
    """Warnings on images of another size than stated, and on images that were left out."""
    mismatched, left_out, nameless = [], [], []
    for entry in problems:
        if entry["kind"] == "size_mismatch":
            mismatched.append(entry)
        elif entry["kind"] == "no_class":
            nameless.append(entry["id"])
        elif entry["kind"] in {"no_split", "no_annotation"}:
            left_out.append(entry["id"])
    warnings = []
    if mismatched:
        warnings.append(
            f"the size of {len(mismatched)} image(s) differs from the size in their annotation, such as "
            f"{mismatched[0]['id']}: {mismatched[0]['value']}. Boxes are used as written; if the images were resized after "
            "annotation, use the originals"
        )
    if nameless:
        warnings.append(
            f"{len(nameless)} object(s) have no class and are dropped, such as in {nameless[0]}; --default-class NAME keeps them"
        )
    if left_out:
        warnings.append(
            f"{len(left_out)} image(s) without a split or an annotation are left out, such as {left_out[0]}"
        )
    return warnings
