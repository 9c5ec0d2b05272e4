"""Aborts a conversion if its boxes suggest another convention than the one assumed."""

from boxtune.common.errors import UserError
from data_prep.pipeline.layouts import BBOX_FORMAT_OPTION, Convention
from data_prep.pipeline.totals import BoxTotals

# Implausible boxes suggest another convention if there are at least so many, and they exceed this share.
_MIN_IMPLAUSIBLE, _MAX_IMPLAUSIBLE_SHARE = 3, 0.2
# Boxes in pixels suggest fractions if this share of them lies within one pixel.
_WITHIN_UNIT_SHARE = 0.9
# It is no coincidence if so many boxes, on images at least so large, all stay below 100: they are percentages.
_MIN_PERCENT_BOXES, _MIN_PERCENT_SIDE = 10, 300

_INTRO = "The box format looks wrong:"
_OVERRIDE = "pass --allow-bad-boxes"


def check_convention(totals: BoxTotals, convention: Convention, guessed: bool) -> None:
    """Raise UserError if no box is usable, or so many are implausible that their numbers must mean something else.

    `guessed`: the convention was not stated by the source, so --bbox-format can state it.
    """
    if totals.implausible >= _MIN_IMPLAUSIBLE and totals.implausible / totals.checked > _MAX_IMPLAUSIBLE_SHARE:
        raise _implausible_error(totals, convention, guessed)
    if totals.checked and totals.within_unit >= _WITHIN_UNIT_SHARE * totals.checked:
        raise UserError(
            f"{_INTRO} {totals.within_unit} of {totals.checked} boxes lie within one pixel, like fractions from 0 to 1. "
            "Multiply them by the width and height of their image, use a format with fractions (yolo, aabb), or "
            f"{_OVERRIDE}."
        )
    if totals.pixel_boxes >= _MIN_PERCENT_BOXES and totals.largest <= 100 and totals.smallest_side >= _MIN_PERCENT_SIDE:
        raise UserError(
            f"{_INTRO} no coordinate of {totals.pixel_boxes} boxes exceeds 100, on images of at least "
            f"{totals.smallest_side} pixels, so they may be percentages. Convert them to pixels or fractions, or {_OVERRIDE}."
        )
    if totals.dropped and not totals.usable:
        raise UserError(
            f"None of the {totals.dropped} boxes is usable. Check that SOURCE has the right format, and that its objects "
            "have boxes, not only text or masks. Examples:",
            [f"{entry['id']}: {entry['value']!r:.100}" for entry in totals.dropped_examples],
        )


def _implausible_error(totals: BoxTotals, convention: Convention, guessed: bool) -> UserError:
    if totals.beyond_unit > totals.implausible / 2:
        guess = "look like pixels"
        remedy = "Divide them by the width and height of their image"
    else:
        guess = "may be corners, a corner and a size, or y before x instead, or belong to images of another size"
        remedy = "Fix them"
    if guessed:
        remedy = f"State the format with {BBOX_FORMAT_OPTION}"
    return UserError(
        f"{_INTRO} {totals.implausible} of {totals.checked} boxes are inverted or extend beyond their image. "
        f"They are read as {convention}, but {guess}. {remedy}, or {_OVERRIDE} if the boxes really are like this. Examples:",
        totals.implausible_examples,
    )
