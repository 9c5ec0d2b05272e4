"""Annotation files of one image each, and the image of each: the one of the same name."""

import os
from collections import defaultdict
from pathlib import Path

from data_prep.reading.image_finder import list_images
from data_prep.reading.names import normal, relative_name
from data_prep.reading.source import Options
from data_prep.reading.split_names import split_of_folders


def key_of(stem: str) -> str:
    """A name without its extension, in a form that ignores case and Unicode normalization."""
    return normal(stem).lower()


class ImagesByStem:
    """All images below --images or SOURCE, by their names without extension."""

    def __init__(self, source: Path, options: Options) -> None:
        self.source = source
        self.root = options.images or source
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for image in list_images(self.root, options):
            self._by_stem[key_of(image.stem)].append(image)

    def __contains__(self, stem: str) -> bool:
        return key_of(stem) in self._by_stem

    def nearest(self, path: Path, stem: str) -> Path:
        """The image of an annotation file: of several with its stem, the one in a folder of the same split, and with the
        longest common path. A path that does not exist if there is none."""
        images = self._by_stem.get(key_of(stem), [])
        split = split_of_folders(relative_name(path, self.source))
        by_split = {
            wanted: [image for image in images if split_of_folders(relative_name(image, self.root)) == wanted]
            for wanted in (split, None)
        }
        candidates = (
            by_split[split] or by_split[None] or (images if not split else []) or [path.with_name(f"{stem}.jpg")]
        )
        return max(candidates, key=lambda image: len(os.path.commonpath([image.absolute(), path.absolute()])))

    def name_of(self, image: Path) -> str:
        """The name of an image's item."""
        return relative_name(image, self.root)
