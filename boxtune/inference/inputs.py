"""What a detector is given: images as paths or in memory, class names, and the records made of them."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from boxtune.common.errors import UserError
from boxtune.data.image_checks import BadImage, ImageFacts, check_image
from boxtune.data.images import aspect_problem, load_image, to_rgb
from boxtune.data.questions import Descriptions, turns_for
from boxtune.data.record_checks import label_problem
from boxtune.data.records import Record

ImageInput = str | os.PathLike[str] | Image.Image | np.ndarray


@dataclass(frozen=True)
class InputImage:
    """An image that was checked. `source` is its file, or the image itself, upright and RGB. `size` is (width, height)."""

    source: Path | Image.Image
    size: tuple[int, int]

    @property
    def path(self) -> str:
        """The absolute path of its file; empty for an image in memory."""
        return str(self.source.resolve()) if isinstance(self.source, Path) else ""

    def open(self) -> Image.Image:
        """The image, upright and RGB. Raises UserError if its file changed since it was checked."""
        if isinstance(self.source, Image.Image):
            return self.source
        try:
            image = load_image(self.source)
        except OSError as error:
            raise UserError(f"{self.source} can no longer be read: {error}") from None
        if image.size != self.size:
            raise UserError(f"{self.source} changed while it was in use; run the detector again.")
        return image


def read_images(images: Sequence[ImageInput]) -> list[InputImage]:
    """Check every image by decoding it fully; files are not kept in memory.

    Raises one UserError that lists every image that cannot be used, with its index.
    """
    files = {Path(image) for image in images if isinstance(image, str | os.PathLike)}
    with ThreadPoolExecutor() as pool:
        facts = dict(zip(files, pool.map(check_image, files), strict=True))
    checked = [
        _from_file(Path(image), facts[Path(image)]) if isinstance(image, str | os.PathLike) else _from_memory(image)
        for image in images
    ]
    if bad := [f"images[{i}]: {image.reason}" for i, image in enumerate(checked) if isinstance(image, BadImage)]:
        raise UserError(f"{len(bad)} of {len(images)} images cannot be used:", bad)
    return [image for image in checked if isinstance(image, InputImage)]


def _from_file(path: Path, facts: ImageFacts | BadImage) -> InputImage | BadImage:
    return facts if isinstance(facts, BadImage) else InputImage(path, facts.upright)


def _from_memory(image: object) -> InputImage | BadImage:
    if isinstance(image, np.ndarray):
        if problem := _array_problem(image):
            return BadImage(problem)
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        return BadImage(f"expected a path, a PIL image or a numpy array, got {type(image).__name__}")
    try:
        image.load()
        upright = to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders raise any exception on corrupt files; the reason is reported
        return BadImage(f"corrupt: {error}")
    if problem := aspect_problem(*upright.size):
        return BadImage(problem)
    return InputImage(upright, upright.size)


def _array_problem(array: np.ndarray) -> str | None:
    """Why an array cannot be an image; None if it can."""
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype == np.uint8 and is_image and array.size:
        return None
    return (
        "an array must be uint8 of shape (height, width), (height, width, 3) in RGB or (height, width, 4) in RGBA, "
        f"got {array.dtype} of shape {array.shape}"
    )


def check_classes(classes: Sequence[str]) -> None:
    """Raises UserError if no class is named, or one that no question can hold."""
    if isinstance(classes, str):
        raise UserError(f"classes must be a list of names, got the text {classes!r}.")
    if not classes:
        raise UserError("there are no classes to ask for; give --classes a,b (in Python: classes=[…]).")
    if problems := [problem for problem in map(label_problem, classes) if problem]:
        raise UserError("these classes cannot be asked for:", problems)


def unlabelled_record(
    name: str, path: str, size: tuple[int, int], classes: Sequence[str], descriptions: Descriptions
) -> Record:
    """A record without objects that asks for `classes`, as described, in an image of `size` (width, height)."""
    return {
        "id": name,
        "image": path,
        "width": size[0],
        "height": size[1],
        "objects": {"bbox": [], "category": [], "ignore": []},
        "messages": turns_for(list(classes), classes[0] if len(classes) == 1 else None, descriptions),
    }
