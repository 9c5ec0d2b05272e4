"""Uploaded image files: checked by their header, then decoded."""

import io

from PIL import Image, ImageOps, UnidentifiedImageError

from boxtune.data.images import aspect_problem, stored_and_upright_size, to_rgb
from boxtune.serving.errors import RequestError

# Pillow's other formats are rare on the web, and some of them run other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """The image, of which only the header was read. Raises RequestError if it cannot be accepted."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise RequestError(415, f"the file is not an image in one of these formats: {formats}.", "image") from None
    except Exception as error:  # decoders raise any exception on corrupt files
        raise _corrupt(error) from None
    width, height = image.size
    if width * height > max_pixels:
        raise RequestError(
            413, f"{width} × {height} pixels exceed the limit of {max_pixels} pixels. Send a smaller image.", "image"
        )
    if problem := aspect_problem(width, height):
        raise RequestError(422, f"the image's {problem}.", "image")
    return image


def decode(image: Image.Image) -> Image.Image:
    """The opened image, upright and RGB, as boxtune reads files. Raises RequestError if it is corrupt."""
    try:
        expected = stored_and_upright_size(image)[1]  # of a PNG, this decodes the pixels
        image.load()
        upright = to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders raise any exception on corrupt files
        raise _corrupt(error) from None
    if upright.size != expected:
        raise _corrupt(f"the header says {expected}, the pixels are {upright.size}")
    return upright


def _corrupt(reason: object) -> RequestError:
    return RequestError(422, f"the image is corrupt: {reason}", "image")
