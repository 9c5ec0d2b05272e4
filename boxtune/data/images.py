"""Reading images as the model sees them: upright and RGB, whatever the file holds."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from boxtune.data.archives import is_member, read_member

# Large scans are ordinary input here. Pillow's limit against decompression bombs is meant for web servers.
Image.MAX_IMAGE_PIXELS = None

# The image processor (smart_resize in transformers) rejects images whose aspect ratio exceeds this.
MAX_ASPECT_RATIO = 200
# In longer images, some model families are reported to shift boxes. `data_prep show` warns of them; tiles are no longer.
FAITHFUL_ASPECT_RATIO = 3

# EXIF orientations 5 to 8 rotate the image by 90 degrees, so width and height swap.
_ORIENTATION_TAG, _SWAPS_SIDES = 0x0112, {5, 6, 7, 8}


def aspect_problem(width: int, height: int) -> str | None:
    """Why the image processor would reject an upright image of this size; None if it accepts it."""
    if min(width, height) > 0 and max(width, height) <= MAX_ASPECT_RATIO * min(width, height):
        return None
    return f"{width} × {height} exceeds the aspect ratio of {MAX_ASPECT_RATIO}"


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB; an RGB image is returned unchanged, without a copy.

    16-bit gray values are scaled (Pillow would clip them to white); transparent pixels are put on a white background.
    """
    if image.mode.startswith("I;16") or image.mode in {"I", "F"}:
        return _gray_to_rgb(np.asarray(image, dtype=np.float64), sixteen_bit=image.mode.startswith("I;16"))
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # a copy would cost as much as decoding


def _gray_to_rgb(values: np.ndarray, sixteen_bit: bool) -> Image.Image:
    """(H, W) gray values as RGB.

    Modes I and F do not define white. It is the smallest of 1, 255 and 65535 that no value exceeds, or else the maximum.
    """
    maximum = values.max(initial=0)
    white = 65535 if sixteen_bit else next((limit for limit in (1, 255, 65535) if maximum <= limit), maximum)
    return Image.fromarray((values / white * 255).round().clip(0, 255).astype(np.uint8)).convert("RGB")


def load_image(path: str | Path) -> Image.Image:
    """The image, fully decoded, upright (EXIF orientation applied) and RGB. The path may be in an archive (archives.py).

    Raises OSError if the file is missing, corrupt or not an image.
    """
    try:
        with Image.open(BytesIO(read_member(path)) if is_member(path) else path) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image)
    except OSError:
        raise
    except Exception as error:  # decoders raise any exception on corrupt files
        raise OSError(f"{type(error).__name__}: {error}") from error


def stored_and_upright_size(image: Image.Image) -> tuple[tuple[int, int], tuple[int, int]]:
    """((width, height) as stored, (width, height) upright), from the header alone."""
    width, height = image.size
    if image.getexif().get(_ORIENTATION_TAG) not in _SWAPS_SIDES:
        return (width, height), (width, height)
    # Pillow rotates TIFF files itself; their size is the upright one before anything is decoded.
    return ((height, width), (width, height)) if image.format == "TIFF" else ((width, height), (height, width))
