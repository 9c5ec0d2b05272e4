"""CVAT for video 1.1: tracks, whose shapes name their frame."""

import xml.etree.ElementTree as ElementTree
from collections import defaultdict

from data_prep.formats.cvat_shapes import class_names, read_shape
from data_prep.reading.annotation_files import AnnotationFile
from data_prep.reading.image_finder import image_finder_for, image_name
from data_prep.reading.source import Item, Options, Source
from data_prep.reading.values import is_set, number, stated_size

_FRAME = "frame_{:06d}"  # the name of a frame's image in CVAT's export

Shapes = list[tuple[ElementTree.Element, str | None]]  # shapes and their labels


def read_frames(tree: ElementTree.Element, file: AnnotationFile, options: Options, found: Source) -> None:
    """Adds the frames that have an object, and those without of which there is an image."""
    if len(tree.findall("meta//task/id")) > 1:
        found.errors.append(
            f"{file} has several videos, whose frames have the same numbers. Export each task by itself."
        )
        return
    found.classes += [name for name in class_names(tree) if name not in found.classes]
    images = image_finder_for(file, options)
    size = stated_size(tree.findtext("meta//original_size/width"), tree.findtext("meta//original_size/height"))
    shapes = _shapes_of_frames(tree, file, found)
    for frame in sorted({*shapes, *_stated_frames(tree)}):
        name = _FRAME.format(frame)
        image_path = images.find(name)
        if frame not in shapes and not image_path.is_file():
            continue
        item = Item(image_name(name, image_path, file), str(image_path), [], file.split, size)
        for shape, label in shapes.get(frame, []):
            read_shape(shape, label, item)
        found.items.append(item)
    if shapes and not file.split:
        found.warnings.append(
            f"{file}: neighboring frames of a video look alike, and those of a random split are in training and validation. "
            "For scores that hold for other videos, name a file for each split (train.xml, val.xml)"
        )


def _shapes_of_frames(tree: ElementTree.Element, file: AnnotationFile, found: Source) -> dict[int, Shapes]:
    """{frame: its shapes}, without those that are outside of the frame."""
    shapes: dict[int, Shapes] = defaultdict(list)
    step, gaps = _step(tree), 0
    for track in tree.findall("track"):
        expected = None  # the frame of the next shape, unless the object leaves
        for shape in track:
            if shape.tag == "track":  # a point of a skeleton
                continue
            frame = number(shape.get("frame"))
            if not isinstance(frame, int) or frame < 0:
                found.errors.append(
                    f"{file}: track {track.get('id')}: frame must be a number, got {shape.get('frame')!r}"
                )
                continue
            gaps += expected is not None and frame > expected
            expected = None if is_set(shape.get("outside")) else frame + step
            if expected is not None:
                shapes[frame].append((shape, track.get("label")))
    if gaps:
        found.warnings.append(
            f"{file}: {gaps} time(s), a track leaves out frames without being outside. Its object is missing in these frames. "
            "CVAT's own exports state every frame"
        )
    return shapes


def _step(tree: ElementTree.Element) -> int:
    step = number((tree.findtext("meta//task/frame_filter") or "").strip().removeprefix("step="))
    return step if isinstance(step, int) and step > 0 else 1


def _stated_frames(tree: ElementTree.Element) -> range:
    """The frames of the task; empty if the export does not state them."""
    start, stop = (number(tree.findtext(f"meta//task/{key}")) for key in ("start_frame", "stop_frame"))
    return range(start, stop + 1, _step(tree)) if isinstance(start, int) and isinstance(stop, int) else range(0)
