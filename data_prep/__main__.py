"""python -m data_prep FORMAT SOURCE --out DIR: annotations of any supported format → a prepared data set."""

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path

from boxtune.common.errors import UserError, command
from boxtune.common.files import path_argument
from data_prep.formats import FORMATS
from data_prep.pipeline import recognise as auto
from data_prep.reading.files import folder_for_scratch
from data_prep.reading.source import Options

# Options that only some formats read.
FIELDS = {
    "images": tuple(name for name in FORMATS if name not in ("hf", "openfoodfacts")),
    "image_field": ("labelstudio", "jsonl", "hf"),
    "bbox_field": ("jsonl", "hf"),
    "label_field": ("via", "labelstudio", "jsonl", "hf"),
    "bbox_format": ("jsonl", "hf"),
}
# What does something else than convert; imported when asked for, so that -h and conversions need not wait.
TOOLS = {
    "nutrition": ("data_prep.tools.nutrition", "no source: pictures of nutrition tables, generated with their boxes"),
    "show": ("data_prep.tools.show", "look at a prepared data set before training, as one page"),
    "recipe": ("data_prep.tools.suggest", "write a recipe for a prepared data set, with its reasons"),
    "export": ("data_prep.tools.export", "render a prepared data set for other trainers and tools"),
}


def parse_ratio(text: str) -> list[float]:
    """ "80,10,10" → [80.0, 10.0, 10.0]."""
    try:
        ratio = [float(part) for part in text.split(",")]
    except ValueError:
        ratio = []
    if len(ratio) != 3 or not all(0 <= part < 1e9 for part in ratio) or not sum(ratio):
        raise argparse.ArgumentTypeError(
            f"{text!r}: give three shares for train, validation and test, such as 80,10,10"
        )
    return ratio


def parse_workers(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of threads, at least 1")
    return int(text)


def parse_names(text: str) -> list[str]:
    """ "a,b" → ["a", "b"]."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME, several with commas between them")
    return names


def parse_rename(text: str) -> dict[str, str]:
    """ "a=b,c=d" → {"a": "b", "c": "d"}."""
    pairs = [[name.strip() for name in part.split("=")] for part in text.split(",")]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r}: write OLD=NEW, several with commas between them")
    return dict(pairs)


def build_parser() -> tuple[argparse.ArgumentParser, argparse.Action]:
    """(the parser, its subparsers: one for each format that has a source)."""
    parser = argparse.ArgumentParser(prog="python -m data_prep", description=__doc__)
    formats = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)
    guess = f"whichever format SOURCE is recognised as, of {', '.join(FORMATS)}"
    for name, (module, text) in {**FORMATS, "auto": (auto, guess)}.items():
        own = formats.add_parser(name, help=text, description=module.__doc__, formatter_class=_Plain)
        own.add_argument("source", metavar="SOURCE", type=path_argument, help=text)
        add_common_arguments(own)
        own.set_defaults(run=run)
    return parser, formats


class _Plain(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the descriptions."""


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", type=path_argument, required=True, help="where the data set goes")
    parser.add_argument(
        "--images", metavar="DIR", type=path_argument, help="where the pictures lie, if not beside the annotations"
    )
    parser.add_argument(
        "--classes", metavar="A,B", type=parse_names, default=[], help="keep these classes, in this order"
    )
    parser.add_argument(
        "--rename", metavar="OLD=NEW", type=parse_rename, action="append", default=[], help="rename or merge classes"
    )
    parser.add_argument(
        "--default-class", metavar="NAME", default="", help="the class of objects to which the source gives none"
    )
    readers = {key: f"({', '.join(formats)})" for key, formats in FIELDS.items()}
    parser.add_argument(
        "--label-field",
        metavar="NAME",
        help=f"attribute, control or column that gives the class {readers['label_field']}",
    )
    parser.add_argument(
        "--image-field", metavar="NAME", help=f"what holds or names the picture {readers['image_field']}"
    )
    parser.add_argument(
        "--bbox-field", metavar="NAME", help=f"column that holds boxes, as objects.bbox {readers['bbox_field']}"
    )
    parser.add_argument(
        "--bbox-format",
        choices=["xyxy", "xywh", "cxcywh", "yxyx"],
        help=f"how boxes are written {readers['bbox_format']}",
    )
    parser.add_argument(
        "--split-ratio",
        metavar="T,V,E",
        type=parse_ratio,
        help="shares of train, validation and test; replaces the source's own splits (default: those, or 80,10,10)",
    )
    parser.add_argument(
        "--questions",
        choices=["all", "mixed", "most-common"],
        default="all",
        help="all: ask for all classes; mixed: in training, half the images ask for one class, present or absent; "
        "most-common: each image asks for the class of which it holds most objects, in every split",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=parse_workers,
        default=os.cpu_count(),
        help="threads that decode pictures (default: as many as cores)",
    )
    parser.add_argument(
        "--copy-images", action="store_true", help="copy the pictures into DIR instead of referring to them"
    )
    parser.add_argument(
        "--skip-bad-images", action="store_true", help="leave out and list pictures that cannot be read"
    )
    parser.add_argument("--allow-bad-boxes", action="store_true", help="go on where the box convention looks wrong")
    parser.add_argument("--overwrite", action="store_true", help="replace the data set at DIR")


def check_fields(name: str, args: argparse.Namespace) -> None:
    """Raise UserError for options that the format would not read."""
    idle = [key for key, formats in FIELDS.items() if getattr(args, key) is not None and name not in formats]
    if idle:
        problems = [f"--{key.replace('_', '-')} is read by {', '.join(FIELDS[key])}" for key in idle]
        raise UserError(f"{name} does not read all of these options; leave out:", problems)


def run(args: argparse.Namespace) -> None:
    from data_prep.pipeline.prepare import prepare  # numpy, Pillow and rich, which -h can do without

    out = Path(os.path.realpath(args.out))
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=folder_for_scratch(out)) as scratch:
        options = Options(
            out=out,
            scratch=Path(scratch),
            images=args.images,
            classes=args.classes,
            rename={old: new for renames in args.rename for old, new in renames.items()},
            default_class=args.default_class.strip(),
            image_field=args.image_field,
            bbox_field=args.bbox_field,
            label_field=args.label_field,
            bbox_format=args.bbox_format,
            split_ratio=args.split_ratio,
            questions=args.questions,
            workers=args.workers,
            copy_images=args.copy_images,
            skip_bad_images=args.skip_bad_images,
            allow_bad_boxes=args.allow_bad_boxes,
            overwrite=args.overwrite,
        )
        name = auto.recognise(args.source, FORMATS, options) if args.format == "auto" else args.format
        check_fields(name, args)
        prepare(name, FORMATS[name][0].read, args.source, options)


@command
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser, formats = build_parser()
    for name, (module, text) in TOOLS.items():
        own = formats.add_parser(name, help=text)
        if argv[:1] == [name]:
            tool = importlib.import_module(module)
            own.description, own.formatter_class = tool.__doc__, _Plain
            tool.add_arguments(own)
            own.set_defaults(run=tool.main)
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
