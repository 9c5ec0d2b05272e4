"""What looks suspicious in a prepared dataset, in words and with examples."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from boxtune.data.images import FAITHFUL_ASPECT_RATIO
from boxtune.data.records import Record
from boxtune.families.family import Family
from data_prep.pipeline.dataset_warnings import untrained_warnings
from data_prep.tools.duplicates import duplicate_boxes, similar_names
from data_prep.tools.near_duplicates import similar_images
from data_prep.tools.object_sizes import keeping_budget, shorter_sides, too_small

_MAX_EXAMPLES = 12


@dataclass(frozen=True)
class Finding:
    """One suspicious fact. `text` says what is wrong and what to do."""

    title: str
    text: str
    examples: list[str]


def find(
    splits: dict[str, list[Record]], classes: list[str], data_dir: Path, family: Family, max_pixels: int
) -> list[Finding]:
    """Everything suspicious. Raises UserError listing the images that cannot be read."""
    records = [record for members in splits.values() for record in members]
    return [
        *_missing_objects(splits),
        *[Finding("untrained class", f"{text}.", []) for text in untrained_warnings(splits, classes)],
        *_small_objects(records, family, max_pixels),
        *_long_images(records),
        *_duplicate_boxes(records),
        *_similar_images(splits, data_dir),
        *_similar_names(classes),
    ]


def _missing_objects(splits: dict[str, list[Record]]) -> list[Finding]:
    without = [split for split, members in splits.items() if all(all(r["objects"]["ignore"]) for r in members)]
    if splits and not without:
        return []
    where = ", ".join(without) or "any split"
    text = (
        f"no object counts in {where}, so there is nothing to learn or to evaluate there. Check the source, and "
        "problems.jsonl for dropped objects."
    )
    examples = []
    for split in without:
        ignored = sum(len(record["objects"]["ignore"]) for record in splits[split])
        examples.append(f"{split}: {len(splits[split])} image(s), {ignored} ignored object(s)")
    return [Finding("no objects", text, examples)]


def _small_objects(records: list[Record], family: Family, max_pixels: int) -> list[Finding]:
    small = too_small(records, family, max_pixels)
    if not small.any():
        return []
    text = f"{small.sum()} of {len(small)} objects are thinner than a patch ({family.patch_size} px) at max_pixels {max_pixels}"
    in_original = int((shorter_sides(records)[0] < family.patch_size).sum())
    if in_original:
        text += f"; {in_original} of them are so thin in the original image that no budget helps"
    text += "."
    keeping = keeping_budget(records, family)
    if keeping and keeping > max_pixels:
        text += f" max_pixels {keeping} keeps 99 % of the others."
    ids = [record["id"] for record in records for _ in record["objects"]["bbox"]]
    counts = Counter(item_id for item_id, is_small in zip(ids, small, strict=True) if is_small)
    return [Finding("too small", text, [f"{item_id}: {n}" for item_id, n in counts.most_common(_MAX_EXAMPLES)])]


def _long_images(records: list[Record]) -> list[Finding]:
    sizes = [(record["id"], record["width"], record["height"]) for record in records]
    ratios = [(max(width, height) / min(width, height), name, width, height) for name, width, height in sizes]
    longer = sorted((row for row in ratios if row[0] > FAITHFUL_ASPECT_RATIO), reverse=True)
    if not longer:
        return []
    text = (
        f"{len(longer)} of {len(records)} images are longer than {FAITHFUL_ASPECT_RATIO}:1. Some model families are reported "
        "to shift boxes in such images. Set `tiles` in the recipe, for example tiles: 1024: then they are cut into tiles that "
        "are no longer than that, in training and in evaluation (docs/decoding.md)."
    )
    examples = [f"{name}: {width} × {height}, {ratio:.1f}:1" for ratio, name, width, height in longer[:_MAX_EXAMPLES]]
    return [Finding("long images", text, examples)]


def _duplicate_boxes(records: list[Record]) -> list[Finding]:
    pairs = duplicate_boxes(records)
    if not pairs:
        return []
    text = (
        f"{len(pairs)} pair(s) of boxes of one class are nearly identical, so the model would learn to repeat boxes. "
        "Remove one box of each pair from the annotations."
    )
    examples = [f"{pair.id}: {pair.category}, IoU {pair.iou:.2f}" for pair in pairs[:_MAX_EXAMPLES]]
    return [Finding("duplicate boxes", text, examples)]


def _similar_images(splits: dict[str, list[Record]], data_dir: Path) -> list[Finding]:
    similar = similar_images(splits, data_dir, _MAX_EXAMPLES)
    texts = []
    if similar.pairs:
        texts.append(
            f"{similar.pairs} pair(s) of images look like the same photo, perhaps in another exposure, size or compression; "
            f"{similar.across_splits} of them are in different splits. Compare the examples. A copy in another split "
            "inflates scores, so if they are copies, keep only one of them or both in one split."
        )
    if similar.series:
        texts.append(
            f"{similar.series} image(s) look like three or more others each, as frames of a fixed camera do, and are in no "
            "pair. If they are one series, keep it in one split."
        )
    if not texts:
        return []
    split_of = {record["id"]: split for split, members in splits.items() for record in members}
    examples = [f"{a} ({split_of[a]}) and {b} ({split_of[b]})" for a, b in similar.examples]
    return [Finding("similar images", " ".join(texts), examples)]


def _similar_names(classes: list[str]) -> list[Finding]:
    pairs = similar_names(classes)
    if not pairs:
        return []
    text = "some class names are similar, possibly by a typing error. Merge them with --rename OLD=NEW."
    return [Finding("similar names", text, [f"{a!r} and {b!r}" for a, b in pairs[:_MAX_EXAMPLES]])]
