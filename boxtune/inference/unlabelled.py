"""ImageFinder without truth: the records that ask a model about them, and its answers drawn on copies of them."""

import math
import os
import sys
from collections import Counter
from pathlib import Path

from boxtune.answers.grounding import Grounding
from boxtune.answers.predictions import Prediction
from boxtune.common.drawing import draw_prediction
from boxtune.common.errors import UserError, reading
from boxtune.common.files import IMAGE_SUFFIXES, files_below, is_file_name, is_image
from boxtune.data.image_checks import BadImage, check_images
from boxtune.data.images import load_image
from boxtune.data.questions import turns_for
from boxtune.data.records import Record, label_problem, read_json_lines

# Beyond this many times the range of training, along a side, a picture is another kind of picture.
UNLIKE = 2.0


def records_without_truth(place: Path, classes: list[str], out: Path, skip_bad_images: bool = False) -> list[Record]:
    """Records that ask for `classes` in every picture of `place`: a folder, one picture, or a list of paths in a .txt.

    Ids are paths below the folder that holds them all. Raises UserError that lists all pictures that are missing, torn, or
    stand twice; with `skip_bad_images` those that cannot be read are left out and listed.
    """
    if not classes:
        raise UserError("there are no classes to ask for; give --classes a,b.")
    if problems := [problem for problem in map(label_problem, classes) if problem]:
        raise UserError("these classes cannot be asked for:", problems)
    folder, paths = _find_images(place, out / "pictures")
    if too_long := [str(path) for path in paths if not is_file_name(_copy_name(path.name))]:
        raise UserError("copies of these pictures would have names of more than 255 bytes; shorten them:", too_long)
    inspected = dict(zip(paths, check_images(paths, os.cpu_count() or 1), strict=True))
    if bad := [image.reason for image in inspected.values() if isinstance(image, BadImage)]:
        if not skip_bad_images:
            raise UserError(
                f"{len(bad)} of {len(paths)} pictures cannot be read; mend them, or use --skip-bad-images:", bad
            )
        if len(bad) == len(paths):
            raise UserError(f"no picture is left, all {len(bad)} are bad:", bad)
        print(f"warning: {len(bad)} of {len(paths)} pictures cannot be read and are left out:", file=sys.stderr)
        print("\n".join(f"  - {reason}" for reason in bad), file=sys.stderr)
    return [
        {
            "id": path.relative_to(folder).as_posix(),
            "image": str(path.resolve()),
            "width": picture.upright[0],
            "height": picture.upright[1],
            "objects": {"bbox": [], "category": [], "ignore": []},
            "messages": turns_for(classes),
        }
        for path, picture in inspected.items()
        if not isinstance(picture, BadImage)
    ]


def _find_images(place: Path, copies: Path) -> tuple[Path, list[Path]]:
    """(the folder that holds all, the pictures of a folder, a list or a single file, not those below `copies`)."""
    if place.is_dir():
        found = sorted(filter(is_image, files_below(place)))
        paths = [path for path in found if not _is_below(path, copies)]  # an earlier call has left its own copies
        if found and not paths:
            raise UserError(
                f"{place} holds no pictures but those below {copies}, where copies go; choose another --out."
            )
        if not paths:
            raise UserError(f"{place} holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))}).")
        return place, paths
    if not place.is_file():
        raise UserError(f"--images {place} does not exist; name a folder, a picture, or a .txt with a path a line.")
    if place.suffix.lower() != ".txt":
        return place.parent, [place]
    lines = place.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    # One spelling for each file: "a.png" and "./a.png" are one, and an id may not climb out of its folder.
    paths = [Path(os.path.abspath(place.parent / line.strip())) for line in lines if line.strip()]
    if not paths:
        raise UserError(f"{place} names no picture; write one path a line.")
    if twice := [f"{path}: {count} times" for path, count in Counter(paths).items() if count > 1]:
        raise UserError(f"{place} names {len(twice)} picture(s) more than once; keep one line for each:", twice)
    return Path(os.path.commonpath([path.parent for path in paths])), paths


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def warn_of_new_sizes(records: list[Record], grounding: Grounding) -> None:
    """One warning, with an example of each kind, where pictures are unlike those of training.

    What hurts most is a picture so much larger than the budget that its objects shrink as training never shrank them. A
    checkpoint that does not say what it saw gives no warning.
    """
    if not (grounding.seen_pixels and grounding.seen_aspects):
        return
    least, most = grounding.seen_pixels
    narrow, wide = grounding.seen_aspects
    shrunk_most = _scale(most, grounding)
    unlike: dict[str, list[str]] = {}
    for record in records:
        pixels, aspect = record["width"] * record["height"], record["width"] / record["height"]
        size = f"{record['id']}, {record['width']} × {record['height']}"
        scale = _scale(pixels, grounding)
        if scale * UNLIKE < shrunk_most:
            kind = f"reach the model at less than half the scale of training ({shrunk_most:.2g})"
            unlike.setdefault(kind, []).append(f"{size}, at {scale:.2g}")
        elif not least / UNLIKE**2 <= pixels <= most * UNLIKE**2:
            kind = (
                f"are far smaller or larger than training's ({math.sqrt(least):.0f}² to {math.sqrt(most):.0f}² pixels)"
            )
            unlike.setdefault(kind, []).append(size)
        elif not narrow / UNLIKE <= aspect <= wide * UNLIKE:
            kind = f"are of another shape than training's (width to height {narrow:.2g} to {wide:.2g})"
            unlike.setdefault(kind, []).append(size)
    if unlike:
        kinds = "; ".join(f"{len(examples)} {kind}, such as {examples[0]}" for kind, examples in unlike.items())
        count = sum(map(len, unlike.values()))
        print(f"warning: {count} of {len(records)} pictures are unlike those of training: {kinds}", file=sys.stderr)


def _scale(pixels: float, grounding: Grounding) -> float:
    """By how much a picture of so many pixels is resized along a side, to fit the budget."""
    return math.sqrt(min(max(pixels, grounding.min_pixels), grounding.max_pixels) / pixels)


def _copy_name(name: str) -> str:
    return f"{name}.jpg"


def remove_copies(predictions: Path, folder: Path) -> None:
    """Remove the copies that an earlier call made of the pictures that `predictions` names: they are none of the next call's."""
    if not predictions.is_file():
        return
    with reading(str(predictions), "Remove it, or choose another --out."):
        ids = [line["id"] for _, line in read_json_lines(predictions)]
    for copy in (folder / _copy_name(name) for name in ids):
        if _is_below(copy, folder):  # the file may be anyone's
            copy.unlink(missing_ok=True)


def draw_predictions(predictions: list[Prediction], folder: Path) -> None:
    """Annotated copies of the pictures, each object with its label and score, as JPEG under `folder`."""
    for prediction in predictions:
        image = draw_prediction(load_image(prediction["image"]), prediction["objects"])
        target = folder / _copy_name(prediction["id"])
        target.parent.mkdir(parents=True, exist_ok=True)
        image.save(target, quality=90)
