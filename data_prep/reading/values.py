"""Single values as annotation files write them: numbers, yes/no marks and image sizes."""


def number(text: str | None) -> int | float | str | None:
    """The number that a text spells, an int if possible; the text itself if it is not a number."""
    if text is None:
        return None
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def is_set(mark: object) -> bool:
    """Whether a mark such as iscrowd or difficult is set. Some tools write marks as text; "0" and "false" are not set."""
    return str(mark).strip().lower() in {"1", "1.0", "true", "yes"}


def stated_size(width: object, height: object) -> tuple[int, int] | None:
    """(width, height) in pixels if both are positive whole numbers, else None; sources write 0 or nothing for "unknown"."""
    sides = (_whole_pixels(width), _whole_pixels(height))
    return (sides[0], sides[1]) if sides[0] and sides[1] else None


def _whole_pixels(side: object) -> int | None:
    value = number(side) if isinstance(side, str) else side
    return int(value) if isinstance(value, int | float) and 0 < value < 1e9 and value == int(value) else None
