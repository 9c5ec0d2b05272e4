"""What a finished conversion warns of. Each warning is one line without a final period."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from data_prep.pipeline.totals import ImageTotals
from data_prep.reading.source import Options

# Below so many images a split's scores are unreliable: a single image counts for more than three points.
_FEW_IMAGES = 30


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
        warnings.append(f"no objects of class {', '.join(unused)}")
    if numbers := [name for name in classes if name.isdigit()]:
        warnings.append(f"class names are numbers: {', '.join(numbers)}. Name them: --rename {numbers[0]}=NAME")
    return warnings


def problem_warnings(problems: Iterable[dict[str, Any]]) -> list[str]:
    """Warnings on images of another size than stated, and on images that were left out."""
    mismatched, left_out = [], []
    for entry in problems:
        if entry["kind"] == "size_mismatch":
            mismatched.append(entry)
        elif entry["kind"] in {"no_split", "no_annotation"}:
            left_out.append(entry["id"])
    warnings = []
    if mismatched:
        warnings.append(
            f"the size of {len(mismatched)} image(s) differs from the size in their annotation, such as "
            f"{mismatched[0]['id']}: {mismatched[0]['value']}. Boxes are used as written; if the images were resized after "
            "annotation, use the originals"
        )
    if left_out:
        warnings.append(
            f"{len(left_out)} image(s) without a split or an annotation are left out, such as {left_out[0]}"
        )
    return warnings
