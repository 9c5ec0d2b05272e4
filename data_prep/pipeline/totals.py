"""Totals over all placed images, needed before the first record is written."""

import math
from dataclasses import dataclass, field
from typing import Any

from data_prep.pipeline.layouts import THOUSAND, Convention
from data_prep.pipeline.place import PlacedImage

_EXAMPLES = 3


@dataclass
class BoxTotals:
    """What all boxes together say about the box convention. See `BoxCounts` for the terms.

    pixel_boxes: boxes written in pixels. largest: their greatest coordinate. smallest_side: the longer side of the
    smallest image that has such boxes. implausible_examples, dropped_examples: the first three. usable: boxes that stay.

    Of boxes in pixels on images with a side above 1000: large_images_largest, their greatest coordinate; largest_side, of the
    images; beyond_thousand_odds, the sum of log(side / 1000) over all such sides and boxes.
    """

    checked: int = 0
    within_unit: int = 0
    beyond_unit: int = 0
    pixel_boxes: int = 0
    largest: float = 0
    smallest_side: float = math.inf
    implausible: int = 0
    implausible_examples: list[str] = field(default_factory=list)
    dropped: int = 0
    dropped_examples: list[dict[str, Any]] = field(default_factory=list)
    usable: int = 0
    layout: str = "xyxy"
    large_images_largest: float = 0
    largest_side: int = 0
    beyond_thousand_odds: float = 0

    def add(self, image: PlacedImage, convention: Convention) -> None:
        counts, fractions = image.counts, convention.fractions
        self.layout = convention.layout
        self.checked += counts.checked
        self.within_unit += counts.within_unit
        self.beyond_unit += counts.beyond_unit
        if counts.checked and not fractions:
            self.pixel_boxes += counts.checked
            self.largest = max(self.largest, counts.largest)
            self.smallest_side = min(self.smallest_side, max(image.facts.upright))
            self._add_large_image(image)
        self.implausible += len(counts.implausible)
        self.implausible_examples = (self.implausible_examples + counts.implausible)[:_EXAMPLES]
        dropped = [entry for entry in image.problems if entry["kind"] == "bad_box"]
        self.dropped += len(dropped)
        self.dropped_examples = (self.dropped_examples + dropped)[:_EXAMPLES]
        self.usable += len(image.objects)

    def _add_large_image(self, image: PlacedImage) -> None:
        sides = [side for side in image.facts.upright if side > THOUSAND]
        if sides:
            self.large_images_largest = max(self.large_images_largest, image.counts.largest)
            self.largest_side = max(self.largest_side, *sides)
            self.beyond_thousand_odds += image.counts.checked * sum(math.log(side / THOUSAND) for side in sides)


@dataclass
class ImageTotals:
    """What all images together decide.

    split_by_id: the split that the source states. digests: {id: hash of the image file}. columns: the keys that objects
    have beyond box and class, in the order of their first occurrence. classes: those that have an object that is not
    ignored. emptied: images with objects none of which is usable, and the first of them. turned: images that EXIF says to
    rotate or mirror; turned_boxes: those of them whose boxes were written for the stored pixels, and are turned too.
    """

    split_by_id: dict[str, str | None] = field(default_factory=dict)
    digests: dict[str, bytes] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)
    emptied: int = 0
    emptied_example: str = ""
    turned: int = 0
    turned_boxes: int = 0

    def add(self, image: PlacedImage) -> None:
        self.split_by_id[image.id] = image.split
        self.digests[image.id] = image.facts.digest
        self.turned += image.facts.orientation in range(2, 9)
        self.turned_boxes += image.counts.turned > 0
        for placed in image.objects:
            if not placed.ignore:
                self.classes.add(placed.category)
            self.columns += [key for key in placed.extra if key not in self.columns]
        if not image.objects and any(entry["kind"] in {"bad_box", "no_box"} for entry in image.problems):
            self.emptied += 1
            self.emptied_example = self.emptied_example or image.id
