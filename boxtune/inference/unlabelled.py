"""Images without ground truth: the records that ask a model about them, and copies of them with its detections drawn in."""

import math
import os
import sys
from collections import Counter
from pathlib import Path

from boxtune.answers.grounding import Grounding
from boxtune.answers.predictions import Prediction
from boxtune.common.drawing import draw_prediction
from boxtune.common.errors import UserError, reading
from boxtune.common.files import IMAGE_SUFFIXES, check_is_text, files_below, is_file_name, is_image
from boxtune.common.json_lines import read_json_lines
from boxtune.common.problems import list_problems
from boxtune.data.image_checks import BadImage, ImageFacts, check_images
from boxtune.data.images import load_image
from boxtune.data.questions import NO_DESCRIPTIONS, Descriptions
from boxtune.data.records import Record
from boxtune.data.tiles import views_of
from boxtune.inference.inputs import check_classes, unlabelled_record

# An image whose side is this many times smaller or larger than in training, or whose aspect ratio is, gives a warning.
UNLIKE = 2.0


# ---- from images to records ----------------------------------------------------------------------------------------------


def unlabelled_records(
    place: Path,
    classes: list[str],
    copies: Path,
    skip_bad_images: bool = False,
    descriptions: Descriptions = NO_DESCRIPTIONS,
) -> list[Record]:
    """Records that ask for `classes` in every image of `place`: a folder, one image, or a .txt with one path per line.

    Ids are paths relative to the folder that holds all images. `copies` is the folder of the annotated copies
    (`draw_predictions`), which are not images to ask about. Raises UserError that lists every image that is unreadable or
    named twice; with `skip_bad_images` the unreadable ones are left out and listed.
    """
    check_classes(classes)
    folder, paths = _find_images(place, copies)
    _check_copy_names(paths)
    readable = _readable_images(paths, skip_bad_images)
    return [
        unlabelled_record(
            path.relative_to(folder).as_posix(), str(path.resolve()), facts.upright, classes, descriptions
        )
        for path, facts in readable.items()
    ]


def _find_images(place: Path, copies: Path) -> tuple[Path, list[Path]]:
    """(the folder that holds all images, the images themselves, without those below `copies`)."""
    if place.is_dir():
        return place, _images_of_folder(place, copies)
    if not place.is_file():
        raise UserError(
            f"--images {place} does not exist; name a folder, an image, or a .txt file with one path per line."
        )
    if place.suffix.lower() != ".txt":
        return place.parent, [place]
    paths = _images_of_list(place)
    return Path(os.path.commonpath([path.parent for path in paths])), paths


def _images_of_folder(folder: Path, copies: Path) -> list[Path]:
    found = sorted(filter(is_image, files_below(folder)))
    paths = [path for path in found if not _is_below(path, copies)]  # an earlier call wrote its copies there
    if found and not paths:
        raise UserError(
            f"{folder} holds no images except those below {copies}, the folder for annotated copies; choose another --out."
        )
    if not paths:
        raise UserError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    return paths


def _images_of_list(file: Path) -> list[Path]:
    """The images that a text file names, one per line, relative to the file's folder."""
    check_is_text(file)
    lines = file.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    # abspath gives each file one spelling: "a.png" and "./a.png" are the same, and no id contains "..".
    paths = [Path(os.path.abspath(file.parent / line.strip())) for line in lines if line.strip()]
    if not paths:
        raise UserError(f"{file} names no images; write one path per line.")
    if duplicates := [f"{path}: {count} times" for path, count in Counter(paths).items() if count > 1]:
        raise UserError(f"{file} names {len(duplicates)} image(s) more than once; keep one line for each:", duplicates)
    return paths


def _check_copy_names(paths: list[Path]) -> None:
    """Raises UserError that lists the images whose annotated copies would have too long names."""
    if too_long := [str(path) for path in paths if not is_file_name(_copy_name(path.name))]:
        raise UserError(
            "annotated copies of these images would have names of more than 255 bytes; shorten them:", too_long
        )


def _readable_images(paths: list[Path], skip_bad_images: bool) -> dict[Path, ImageFacts]:
    """The facts of every image. Unreadable images are an error, or with `skip_bad_images` a warning."""
    checked = dict(zip(paths, check_images(paths, os.cpu_count() or 1), strict=True))
    bad = [facts.reason for facts in checked.values() if isinstance(facts, BadImage)]
    if bad and not skip_bad_images:
        raise UserError(f"{len(bad)} of {len(paths)} images cannot be read; fix them, or use --skip-bad-images:", bad)
    if len(bad) == len(paths):
        raise UserError(f"no image is left, all {len(bad)} are unreadable:", bad)
    if bad:
        print(f"warning: {len(bad)} of {len(paths)} images cannot be read and are left out:", file=sys.stderr)
        print("\n".join(list_problems(bad)), file=sys.stderr)
    return {path: facts for path, facts in checked.items() if isinstance(facts, ImageFacts)}


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


# ---- sizes that training did not see -------------------------------------------------------------------------------------


def warn_of_new_sizes(records: list[Record], grounding: Grounding) -> None:
    """Print one warning, with the number of images and an example of each kind, if images are unlike those of training.

    Tiles that will be asked about count as images. A checkpoint of an earlier version does not hold the sizes of its training
    images and gives no warning.
    """
    if not (grounding.seen_pixels and grounding.seen_aspects):
        return
    examples: dict[str, list[str]] = {}
    views = [view for record in records for view in views_of(record, grounding.decoding.tiles)]
    for record in views:
        if found := _difference_from_training(record, grounding):
            kind, example = found
            examples.setdefault(kind, []).append(example)
    if examples:
        count = sum(map(len, examples.values()))
        kind_of_views = " and tiles" if grounding.decoding.tiles else ""
        kinds = "; ".join(f"{len(found)} {kind}, such as {found[0]}" for kind, found in examples.items())
        print(
            f"warning: {count} of {len(views)} images{kind_of_views} are unlike those of training: {kinds}",
            file=sys.stderr,
        )


def _difference_from_training(record: Record, grounding: Grounding) -> tuple[str, str] | None:
    """(how the record's image differs from the training images, the image and its size), or None if it does not.

    The scale is checked first because it matters most: an image far above the pixel budget is shrunk so much that its
    objects are smaller than any in training.
    """
    width, height = record["width"], record["height"]
    pixels, aspect = width * height, width / height
    example = f"{record['id']}, {width} × {height}"
    least, most = grounding.seen_pixels
    narrow, wide = grounding.seen_aspects
    scale, least_scale = _scale(pixels, grounding), _scale(most, grounding)
    if scale * UNLIKE < least_scale:
        return (
            f"reach the model at less than half the scale of training ({least_scale:.2g})",
            f"{example}, at {scale:.2g}",
        )
    if not least / UNLIKE**2 <= pixels <= most * UNLIKE**2:
        sizes = f"{math.sqrt(least):.0f}² to {math.sqrt(most):.0f}² pixels"
        return f"are far smaller or larger than in training ({sizes})", example
    if not narrow / UNLIKE <= aspect <= wide * UNLIKE:
        return f"have another aspect ratio than in training (width to height {narrow:.2g} to {wide:.2g})", example
    return None


def _scale(pixels: float, grounding: Grounding) -> float:
    """The factor by which the sides of an image with this many pixels are resized to fit the pixel budget."""
    return math.sqrt(min(max(pixels, grounding.min_pixels), grounding.max_pixels) / pixels)


# ---- annotated copies ------------------------------------------------------------------------------------------------------


def draw_predictions(predictions: list[Prediction], folder: Path) -> None:
    """Write a JPEG copy of every image to `folder`, with each object's box or point, label and score."""
    for prediction in predictions:
        image = draw_prediction(load_image(prediction["image"]), prediction["objects"])
        target = folder / _copy_name(prediction["id"])
        target.parent.mkdir(parents=True, exist_ok=True)
        image.save(target, quality=90)


def remove_copies(predictions: Path, folder: Path) -> None:
    """Remove the copies in `folder` that an earlier call made of the images named in its `predictions` file."""
    if not predictions.is_file():
        return
    with reading(str(predictions), "Remove it, or choose another --out."):
        ids = [line["id"] for _, line in read_json_lines(predictions)]
    for copy in (folder / _copy_name(name) for name in ids):
        if _is_below(copy, folder):  # the file may come from elsewhere, with ids such as ../a.png
            copy.unlink(missing_ok=True)


def _copy_name(name: str) -> str:
    return f"{name}.jpg"
