"""Annotation files of one image each, and the image of each: the one of the same name."""

from collections import defaultdict
from itertools import takewhile
from pathlib import Path

from boxtune.common.files import is_image
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

    def __contains__(self, name: str) -> bool:
        return key_of(_stem(name)) in self._by_stem

    def nearest(self, path: Path, name: str) -> Path:
        """The image of that name, with or without extension, for an annotation file. Of several, the one in a folder of the
        same split, and then the one whose folders have the most names in common with those of the file. A path that does not
        exist if there is none."""
        images = self._by_stem.get(key_of(_stem(name)), [])
        split = split_of_folders(relative_name(path, self.source))
        by_split = {
            wanted: [image for image in images if split_of_folders(relative_name(image, self.root)) == wanted]
            for wanted in (split, None)
        }
        candidates = by_split[split] or by_split[None] or (images if not split else [])
        missing = path.with_name(f"{_stem(name)}.jpg")
        return max(candidates, key=lambda image: (_count_common(image, path), image.name == name), default=missing)

    def name_of(self, image: Path) -> str:
        """The name of an image's item."""
        return relative_name(image, self.root)


def _stem(name: str) -> str:
    return Path(name).stem if is_image(Path(name)) else name


def _count_common(image: Path, path: Path) -> int:
    """The number of equal folder names at the start and at the end of two paths."""
    pairs = list(zip(image.absolute().parent.parts, path.absolute().parent.parts, strict=False))
    ends = list(zip(reversed(image.absolute().parent.parts), reversed(path.absolute().parent.parts), strict=False))
    return sum(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], part)) for part in (pairs, ends))
