"""Images that a source holds as bytes instead of files."""

import io

_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}


def image_suffix(content: bytes) -> str:
    """The file extension of an encoded image. Corrupt content gets ".bin"; the image check reports it later."""
    from PIL import Image  # imported here because -h does not need it

    try:
        with Image.open(io.BytesIO(content)) as image:
            name = image.format or "bin"
    except (OSError, ValueError, LookupError, RuntimeError, EOFError):
        return ".bin"
    return _SUFFIXES.get(name, f".{name.lower()}")
