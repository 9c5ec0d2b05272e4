"""A prepared data set for other trainers and tools.

    python -m data_prep export DATA --out DIR --export coco
    python -m data_prep export DATA --out DIR --export yolo
    python -m data_prep export DATA --out DIR --export trl \\
        --family qwen2_5_vl --max-pixels 1003520
    python -m data_prep export DATA --out DIR --export swift \\
        --family qwen3_vl --max-pixels 1003520
    python -m data_prep export DATA --out DIR --export llamafactory \\
        --family qwen2_5_vl --max-pixels 1003520

Questions and answers are worded as boxtune words them. Qwen2.5-VL's boxes are pixels of the
picture that the model sees, so they hold for one pixel budget only, which the other trainer
must be given too; what is printed says how.
"""

import argparse
import json
import math
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import yaml
from PIL import ExifTags, Image

from boxtune.answers.codecs import CODECS
from boxtune.answers.conversation import SYSTEM_PROMPT, as_text, format_sentence, render
from boxtune.common.errors import UserError, reading
from boxtune.common.files import path_argument
from boxtune.data.boxes import box_area, box_xyxy_to_cxcywh, box_xyxy_to_xywh
from boxtune.data.image_checks import upright_size
from boxtune.data.images import load_image
from boxtune.data.questions import IMAGE
from boxtune.data.records import (
    SPLIT_FOLDERS,
    Record,
    flat_name,
    image_path,
    read_info,
    read_splits,
    to_json_line,
)
from boxtune.families import FAMILIES

# The budgets in preprocessor_config.json of Qwen/Qwen2.5-VL-7B-Instruct, which LLaMA-Factory leaves in force.
HUB_BUDGET = (3136, 12_845_056)
# What the printed commands say where no budget is given; thousandths of the picture are the same at any.
USUAL_MAX_PIXELS = 1_003_520
# Modes of which Pillow's own conversion, which trainers use, makes the RGB that boxtune reads.
PLAIN_MODES = {"1", "L", "P", "RGB", "CMYK"}
# What YOLO tools list as pictures (IMG_FORMATS in ultralytics/data/utils.py), of what can be read here.
YOLO_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"}

Write = Callable[[Path, dict[str, list[Record]], list[str], argparse.Namespace], str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", type=path_argument, help="a prepared data set")
    parser.add_argument("--export", choices=list(WRITERS), required=True, help="what to write")
    parser.add_argument("--out", metavar="DIR", type=path_argument, required=True, help="a new folder")
    parser.add_argument("--family", choices=list(FAMILIES), help="whose coordinates and wording (not coco, yolo)")
    parser.add_argument("--min-pixels", type=int, default=3136, help="as the trainer will have it (default 3136)")
    parser.add_argument("--max-pixels", type=int, help="as the trainer will have it")
    parser.add_argument("--copy-images", action="store_true", help="copy pictures, upright, instead of linking to them")


def check(args: argparse.Namespace) -> None:
    """Raise UserError that lists every argument that cannot work."""
    problems = []
    renders = args.export in ("trl", "swift", "llamafactory")
    if renders and not args.family:
        problems.append(f"--export {args.export} needs --family: {', '.join(FAMILIES)}")
    if renders and args.family == "qwen2_5_vl" and args.max_pixels is None:
        problems.append(
            "qwen2_5_vl writes pixels of the resized picture: give the --max-pixels that you will train with"
        )
    least = FAMILIES[args.family].factor ** 2 if args.family else 1
    most = USUAL_MAX_PIXELS if args.max_pixels is None else args.max_pixels
    if not least <= args.min_pixels <= most:
        problems.append(f"--min-pixels {args.min_pixels}, --max-pixels {most}: need {least} ≤ min ≤ max")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        problems.append(f"--out {args.out} exists; name a new folder")
    if problems:
        raise UserError("export: these arguments cannot work:", problems)


def main(args: argparse.Namespace) -> None:
    """Write the whole export, or nothing."""
    check(args)
    args.max_pixels = args.max_pixels or USUAL_MAX_PIXELS
    splits, classes = read_splits(args.data), read_info(args.data)["classes"]
    check_records(splits, classes, args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{args.out.name}.", dir=args.out.parent) as scratch:
        staged = Path(scratch) / "export"
        staged.mkdir()
        advice = WRITERS[args.export](staged, splits, classes, args)
        if args.out.exists():
            args.out.rmdir()  # empty, as check has seen
        os.rename(staged, args.out)
    counts = ", ".join(f"{split} {len(records)}" for split, records in splits.items())
    print(f"{args.out}: {args.export}, {counts} pictures. {advice}")


def check_records(splits: dict[str, list[Record]], classes: list[str], args: argparse.Namespace) -> None:
    """Raise UserError that lists pictures that cannot be opened, and names that the export could not hold."""
    records = [record for members in splits.values() for record in members]
    problems = []
    for record in records:
        path = image_path(record, args.data)
        size, said = upright_size(path), (record["width"], record["height"])
        if size is None:
            problems.append(f"{record['id']}: {path} cannot be opened")
        elif size != said:
            problems.append(f"{record['id']}: {path} is {size[0]} × {size[1]}, the record says {said[0]} × {said[1]}")
    used = {label for record in records for label in record["objects"]["category"]}
    problems += [f"class {label!r} is not among the classes of dataset.json" for label in sorted(used - {*classes})]
    if problems:
        raise UserError(f"{args.data}: {len(problems)} problem(s). Prepare the data again:", problems)
    if args.export in ("swift", "llamafactory") and "train" not in splits:
        raise UserError(
            f"{args.data} has no training pictures, only {', '.join(splits)}; there is nothing to train on."
        )


# ---- pictures --------------------------------------------------------------------------------------------------------


def place_images(out: Path, split: str, records: list[Record], args: argparse.Namespace) -> list[str]:
    """Put a split's pictures below `out`/images/SPLIT, as links or copies; their names there.

    Tools differ in whether they heed an EXIF rotation, and in what they make of transparent and 16-bit pixels. Such a
    picture is always written anew, upright and RGB as boxtune reads it. Names are ids without folders: YOLO tools put
    `labels` for the last `images` of a path.
    """
    names = []
    for record in records:
        source = image_path(record, args.data)
        with Image.open(source) as image:
            upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
            plain = upright and image.mode in PLAIN_MODES and "transparency" not in image.info
            plain &= args.export != "yolo" or source.suffix.lower() in YOLO_SUFFIXES
        name = flat_name(record["id"]) + (source.suffix if plain else ".png")
        target = out / "images" / SPLIT_FOLDERS[split] / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not plain:
            with reading(str(source), "Prepare the data again."):
                image = load_image(source)
            image.save(target)
        elif args.copy_images:
            shutil.copyfile(source, target)
        else:
            target.symlink_to(source.resolve())
        names.append(name)
    return names


# ---- trainers --------------------------------------------------------------------------------------------------------


def rendered(record: Record, input_size: tuple[int, int], family: str) -> list[dict[str, str]]:
    """The conversation as boxtune trains it, each turn's content a text in which `<image>` stands for the picture."""
    codec = CODECS[family]
    conversation, _ = render(record, codec, input_size, SYSTEM_PROMPT, format_sentence(codec))
    return [{"role": turn["role"], "content": as_text(turn["content"])} for turn in conversation]


def resized(record: Record, family: str, budget: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the model's input for a pixel budget (least, most), as the image processor makes it."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize  # imports torch

    return smart_resize(record["height"], record["width"], FAMILIES[family].factor, *budget)


def llamafactory_size(record: Record, args: argparse.Namespace) -> tuple[int, int]:
    """LLaMA-Factory shrinks or enlarges by its own budget first (MMPluginMixin._preprocess_image in
    src/llamafactory/data/mm_plugin.py), and the image processor then rounds that by the hub's budget."""
    width, height = record["width"], record["height"]
    for bound, beyond in ((args.max_pixels, int.__gt__), (args.min_pixels, int.__lt__)):
        if beyond(width * height, bound):
            factor = math.sqrt(bound / (width * height))
            width, height = int(width * factor), int(height * factor)
    width, height = max(width, 28), max(height, 28)  # Qwen2VLPlugin's own two rules
    if max(width, height) > 200 * min(width, height):
        width, height = (height * 180, height) if width > height else (width, width * 180)
    return resized(record | {"width": width, "height": height}, args.family, HUB_BUDGET)


def write_trl(out: Path, splits: dict[str, list[Record]], classes: list[str], args: argparse.Namespace) -> str:
    """Prompt and completion for SFTTrainer, which puts the picture before the first question's text."""
    for split, records in splits.items():
        names = place_images(out, split, records, args)
        with open(out / f"{split}.jsonl", "w", encoding="utf-8") as lines:
            for record, name in zip(records, names, strict=True):
                size = resized(record, args.family, (args.min_pixels, args.max_pixels))
                turns = rendered(record, size, args.family)
                turns = [turn | {"content": turn["content"].replace(IMAGE, "")} for turn in turns]
                images = [f"images/{SPLIT_FOLDERS[split]}/{name}"]
                lines.write(to_json_line({"images": images, "prompt": turns[:-1], "completion": turns[-1:]}))
    return (
        "Load the .jsonl with datasets, its paths made absolute, and cast images to Sequence(Image()); set the image "
        f"processor's size to shortest_edge {args.min_pixels}, longest_edge {args.max_pixels}."
    )


def swift_budget(args: argparse.Namespace) -> tuple[int, int]:
    """(least, most) pixels in whole image tokens, to which ms-swift rounds them down for qwen-vl-utils 0.0.14
    (compat_qwen_vl_utils in swift/model/models/qwen.py)."""
    token = FAMILIES[args.family].factor ** 2
    return args.min_pixels // token * token, args.max_pixels // token * token


def swift_size(record: Record, args: argparse.Namespace) -> tuple[int, int]:
    """ms-swift has qwen-vl-utils resize, which rounds sides of less than half a token otherwise than the processor."""
    from qwen_vl_utils.vision_process import smart_resize  # imports torch

    return smart_resize(record["height"], record["width"], FAMILIES[args.family].factor, *swift_budget(args))


def write_swift(out: Path, splits: dict[str, list[Record]], classes: list[str], args: argparse.Namespace) -> str:
    """ms-swift's messages with the boxes written out.

    Its own placeholders, <ref-object> and <bbox>, would write Qwen2-VL's tokens into the JSON of the later families
    (unless QWENVL_BBOX_FORMAT=new is set), collapse thin boxes and round halves to even (Template.normalize_bbox).
    """
    for split, records in splits.items():
        names = place_images(out, split, records, args)
        with open(out / f"{split}.jsonl", "w", encoding="utf-8") as lines:
            for record, name in zip(records, names, strict=True):
                images = [str((args.out / "images" / SPLIT_FOLDERS[split] / name).absolute())]
                messages = rendered(record, swift_size(record, args), args.family)
                lines.write(to_json_line({"messages": messages, "images": images}))
    least, most = swift_budget(args)
    command = ["swift", "sft", "--model", "MODEL", "--dataset", str(args.out / "train.jsonl")]
    command += ["--val_dataset", str(args.out / "validation.jsonl")] if "validation" in splits else []
    return f"Train with:\n    MIN_PIXELS={least} MAX_PIXELS={most} {shlex.join(command)}"


def write_llamafactory(out: Path, splits: dict[str, list[Record]], classes: list[str], args: argparse.Namespace) -> str:
    """A file in ShareGPT's form for each split, and the dataset_info.json that describes them."""
    described = {}
    for split, records in splits.items():
        names = place_images(out, split, records, args)
        rows = [
            {
                "messages": rendered(record, llamafactory_size(record, args), args.family),
                "images": [f"images/{SPLIT_FOLDERS[split]}/{name}"],
            }
            for record, name in zip(records, names, strict=True)
        ]
        (out / f"{split}.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        described[f"{args.out.name}_{split}"] = {
            "file_name": f"{split}.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": {f"{name}_tag": name for name in ("role", "content", "user", "assistant", "system")},
        }
    (out / "dataset_info.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    options = {
        "stage": "sft",
        "model_name_or_path": "MODEL",
        "template": FAMILIES[args.family].llamafactory_template,
        "dataset_dir": args.out,
        "media_dir": args.out,
        "dataset": f"{args.out.name}_train",
        "image_min_pixels": args.min_pixels,
        "image_max_pixels": args.max_pixels,
        "cutoff_len": 32768,  # beyond its default of 2,048 tokens it cuts answers in silence
        "output_dir": "RUN",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return f"Train with:\n    {shlex.join(['llamafactory-cli', 'train', '--do_train', *words])}"


# ---- detectors -------------------------------------------------------------------------------------------------------


def write_coco(out: Path, splits: dict[str, list[Record]], classes: list[str], args: argparse.Namespace) -> str:
    """annotations/instances_SPLIT.json; ignored objects are iscrowd."""
    (out / "annotations").mkdir()
    for split, records in splits.items():
        names = place_images(out, split, records, args)
        images = [
            {"id": number, "file_name": name, "width": record["width"], "height": record["height"]}
            for number, (record, name) in enumerate(zip(records, names, strict=True), 1)
        ]
        annotations = []
        for image, record in zip(images, records, strict=True):
            objects = record["objects"]
            boxes_xywh, areas = box_xyxy_to_xywh(objects["bbox"]).round(3).tolist(), box_area(objects["bbox"]).tolist()
            for box, area, label, ignore in zip(boxes_xywh, areas, objects["category"], objects["ignore"], strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image["id"],
                        "category_id": classes.index(label) + 1,
                        "bbox": box,
                        "area": round(area, 3),
                        "iscrowd": int(ignore),
                    }
                )
        categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
        data = {"images": images, "annotations": annotations, "categories": categories}
        target = out / "annotations" / f"instances_{SPLIT_FOLDERS[split]}.json"
        target.write_text(json.dumps(data, ensure_ascii=False) + "\n", encoding="utf-8")
    return "ImageFinder lie in images/SPLIT."


def write_yolo(out: Path, splits: dict[str, list[Record]], classes: list[str], args: argparse.Namespace) -> str:
    """data.yaml, images/SPLIT and labels/SPLIT. YOLO knows no ignored objects: they are left out, and counted."""
    ignored = 0
    for split, records in splits.items():
        for record, name in zip(records, place_images(out, split, records, args), strict=True):
            objects = record["objects"]
            ignored += sum(objects["ignore"])
            boxes_cxcywh = box_xyxy_to_cxcywh(objects["bbox"]) / ([record["width"], record["height"]] * 2)
            lines = [
                f"{classes.index(label)} " + " ".join(f"{value:.9f}" for value in box)
                for box, label, ignore in zip(boxes_cxcywh, objects["category"], objects["ignore"], strict=True)
                if not ignore
            ]
            target = (out / "labels" / SPLIT_FOLDERS[split] / name).with_suffix(".txt")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    settings = {"path": str(args.out.absolute())}
    settings |= {SPLIT_FOLDERS[split]: f"images/{SPLIT_FOLDERS[split]}" for split in splits}
    for needed, others in {"val": ("test", "train"), "train": ("val",)}.items():  # the tools refuse a set without
        if needed not in settings:
            settings[needed] = next(settings[name] for name in others if name in settings)
    settings["names"] = dict(enumerate(classes))
    (out / "data.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True, sort_keys=False), encoding="utf-8")
    advice = (
        "Train on its data.yaml." if "train" in splits else "There is no training split; its data.yaml is for testing."
    )
    if "validation" not in splits:
        advice += f" There is no validation split: val is {settings['val']}."
    return advice + (f" {ignored} ignored object(s) are left out, which YOLO cannot mark." if ignored else "")


WRITERS: dict[str, Write] = {
    "trl": write_trl,
    "swift": write_swift,
    "llamafactory": write_llamafactory,
    "coco": write_coco,
    "yolo": write_yolo,
}
