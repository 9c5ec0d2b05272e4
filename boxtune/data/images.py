"""Reading a picture as the model sees it: upright, RGB, whatever its file holds."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# Scans of maps and slides are ordinary here; Pillow's guard against decompression bombs is for web servers.
Image.MAX_IMAGE_PIXELS = None

# EXIF orientations 5 to 8 turn the picture by a quarter: width and height change places.
_ORIENTATION_TAG, _QUARTER_TURNS = 0x0112, {5, 6, 7, 8}


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB; an RGB image comes back as it is.

    16-bit greys are scaled (Pillow would clip them to white), alpha is laid on white.
    """
    if image.mode.startswith("I;16") or image.mode in {"I", "F"}:
        return _grey_to_rgb(np.asarray(image, dtype=np.float64), sixteen_bit=image.mode.startswith("I;16"))
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # a copy would cost as much as decoding


def _grey_to_rgb(values: np.ndarray, sixteen_bit: bool) -> Image.Image:
    """(H, W) greys to RGB. Modes I and F do not say what white is: the smallest usual range that holds the values."""
    peak = values.max(initial=0)
    white = 65535 if sixteen_bit else next((top for top in (255, 65535) if peak <= top), peak)
    if peak <= 1 and not sixteen_bit:
        white = 1
    return Image.fromarray((values / white * 255).round().clip(0, 255).astype(np.uint8)).convert("RGB")


def load_image(path: str | Path) -> Image.Image:
    """The picture fully decoded, upright (EXIF applied) and RGB. Raises OSError where the file is missing, torn or no picture."""
    try:
        with Image.open(path) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image)
    except OSError:
        raise
    except Exception as error:  # decoders raise whatever they like on torn files
        raise OSError(f"{type(error).__name__}: {error}") from error


def stored_and_upright_size(image: Image.Image) -> tuple[tuple[int, int], tuple[int, int]]:
    """((width, height) as stored, (width, height) upright) from the header alone."""
    width, height = image.size
    if image.getexif().get(_ORIENTATION_TAG) not in _QUARTER_TURNS:
        return (width, height), (width, height)
    # Pillow turns TIFF on its own, and names the upright size before it has decoded anything.
    return ((height, width), (width, height)) if image.format == "TIFF" else ((width, height), (height, width))
