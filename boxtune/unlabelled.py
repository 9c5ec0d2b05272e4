"""Pictures without truth: the records that ask a model about a folder, and its answers drawn on copies of them."""

from pathlib import Path

from boxtune.drawing import draw_boxes, draw_points
from boxtune.errors import UserError
from boxtune.images import load_image
from boxtune.predictions import Prediction
from boxtune.prompts import question
from boxtune.records import MAX_ASPECT_RATIO, Record, label_problem

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


def records_without_truth(folder: Path, classes: list[str], out: Path) -> list[Record]:
    """Records for every picture below a folder, not below `out`. Raises UserError that lists all that cannot be read."""
    if not folder.is_dir():
        raise UserError(f"--images {folder} is no folder.")
    if not classes:
        raise UserError("there are no classes to ask for; give --classes a,b.")
    if problems := [problem for problem in map(label_problem, classes) if problem]:
        raise UserError("these classes cannot be asked for:", problems)
    records, unreadable = [], []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES):
        # "._" is what macOS leaves beside a picture; `out` holds pictures of an earlier call.
        if path.is_dir() or path.name.startswith("._") or path.resolve().is_relative_to(out.resolve()):
            continue
        try:
            width, height = load_image(path).size
        except (OSError, ValueError, SyntaxError) as error:
            unreadable.append(f"{path}: {error}")
            continue
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            unreadable.append(f"{path}: {width} × {height} is longer than {MAX_ASPECT_RATIO} times its breadth")
            continue
        records.append(
            {
                "id": str(path.relative_to(folder)),
                "image": str(path.resolve()),
                "width": width,
                "height": height,
                "objects": {"bbox": [], "category": [], "ignore": []},
                "messages": [
                    {"role": "user", "content": question(classes)},
                    {"role": "assistant", "content": "<boxes>"},
                ],
            }
        )
    if unreadable:
        raise UserError(f"{len(unreadable)} pictures in {folder} cannot be read; take them out:", unreadable)
    if not records:
        raise UserError(f"{folder} holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    return records


def draw_predictions(predictions: list[Prediction], folder: Path) -> None:
    """Annotated copies of the pictures, as JPEG, under `folder`."""
    for prediction in predictions:
        image, objects = load_image(prediction["image"]), prediction["objects"]
        if "point" in objects:
            image = draw_points(image, objects["point"], objects["category"], "red")
        else:
            image = draw_boxes(image, objects["bbox"], objects["category"], "red")
        target = folder / f"{prediction['id']}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        image.save(target, quality=90)
