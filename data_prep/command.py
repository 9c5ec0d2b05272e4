"""The command line of data_prep, and the same as a function: what `python -m data_prep WORDS` parses and runs."""

import argparse
import importlib
import os
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from boxtune.common.errors import UserError, did_you_mean
from boxtune.common.files import path_argument
from data_prep.formats import FORMATS
from data_prep.pipeline import recognise
from data_prep.pipeline.format_options import READ_BY
from data_prep.reading.descriptions import read_descriptions
from data_prep.reading.source import Options
from data_prep.reading.spool import folder_for_scratch

_DESCRIPTION = "Convert annotations of any supported format into a prepared dataset, or work on a prepared one."
CONVERSIONS = {**FORMATS, "auto": (recognise, "detect the format of SOURCE and convert it")}
_ANY_SOURCE = f"a file or folder of annotations, or a Hub id, in one of these formats: {', '.join(FORMATS)}"
# What --label-field names in each format that reads it.
_LABEL_FIELDS = {
    "via": "region attribute with the class",
    "labelstudio": "control tag with the class",
    "jsonl": "field with the class",
    "hf": "column with the class",
    "auto": "attribute, control tag, field or column with the class",
}
# Subcommands other than conversions: {name: (module, description)}. A module is imported only if its tool is called, so
# that -h and conversions start fast.
TOOLS = {
    "nutrition": ("data_prep.tools.nutrition", "generate labeled images of nutrition tables (no SOURCE)"),
    "show": ("data_prep.tools.show", "write a page about a prepared dataset, to inspect it before training"),
    "recipe": ("data_prep.tools.suggest", "suggest a recipe for a prepared dataset, with reasons"),
    "export": ("data_prep.tools.export", "export a prepared dataset for other trainers and tools"),
    "pseudo-label": ("data_prep.tools.pseudo_label", "make a prepared dataset of the boxes that a checkpoint finds"),
    "merge": ("data_prep.tools.merge", "join prepared datasets"),
    "review": ("data_prep.tools.review", "list likely label errors, for correction"),
    "shards": ("data_prep.tools.shards", "write the training images of a prepared dataset into tar archives"),
}


class RaisingParser(argparse.ArgumentParser):
    """Raises UserError with argparse's message instead of printing it and exiting. It has no -h."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, add_help=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}")


class _Plain(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions."""


def prepare_from_words(words: list[str]) -> None:
    """Run `python -m data_prep WORDS` in this process, for example ["voc", "data/bccd", "--out", "data/prepared"].

    Raises UserError for invalid arguments and for everything that the command would report as an error.
    """
    run_words(words, RaisingParser)


def run_words(words: list[str], parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> None:
    """Parse the words of a command line and run the conversion or tool that they name."""
    _check_command(words[:1])
    args = build_parser(words[:1], parser_class).parse_args(words)
    args.run(args)


def build_parser(
    called: list[str], parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser
) -> argparse.ArgumentParser:
    """The parser with a subcommand for each format and tool. A tool has its arguments only if it is the one `called`."""
    parser = parser_class(prog="python -m data_prep", description=_overview(), formatter_class=_Plain)
    commands = parser.add_subparsers(dest="format", metavar="COMMAND", required=True, help="a format or a tool")
    for name, (module, text) in CONVERSIONS.items():
        conversion = commands.add_parser(name, description=module.__doc__, formatter_class=_Plain)
        conversion.add_argument(
            "source", metavar="SOURCE", type=path_argument, help=_ANY_SOURCE if name == "auto" else text
        )
        add_conversion_arguments(conversion, name)
        conversion.set_defaults(run=_run_conversion)
    for name, (module_name, _) in TOOLS.items():
        tool_parser = commands.add_parser(name)
        if called == [name]:
            tool = importlib.import_module(module_name)
            tool_parser.description, tool_parser.formatter_class = tool.__doc__, _Plain
            tool.add_arguments(tool_parser)
            tool_parser.set_defaults(run=tool.main)
    return parser


def _check_command(called: list[str]) -> None:
    """Raise UserError for the name of a command that does not exist."""
    known = [*CONVERSIONS, *TOOLS]
    for name in called:
        if name not in known and not name.startswith("-"):
            hint = did_you_mean(name, known)
            raise UserError(f"python -m data_prep has no command {name!r}.{hint} Commands: {', '.join(known)}.")


def _overview() -> str:
    """What the command does, with its formats and its tools."""
    groups: dict[str, Mapping[str, tuple[object, str]]] = {
        "formats (python -m data_prep FORMAT SOURCE --out OUT)": CONVERSIONS,
        "tools (each one has its own arguments)": TOOLS,
    }
    lines = [_DESCRIPTION]
    for title, commands in groups.items():
        lines += ["", f"{title}:"]
        lines += [
            textwrap.fill(f"  {name:15}{text}", 96, subsequent_indent=" " * 17, break_on_hyphens=False)
            for name, (_, text) in commands.items()
        ]
    return "\n".join(lines)


def add_conversion_arguments(parser: argparse.ArgumentParser, format_name: str) -> None:
    _add_place_arguments(parser, format_name)
    _add_class_arguments(parser)
    _add_field_arguments(parser, format_name)
    _add_record_arguments(parser)
    _add_image_arguments(parser)


def _help_of(field: str, text: str, format_name: str) -> str:
    """The help of an option that only some formats read. It is hidden for the others, and auto names those that read it."""
    if format_name == "auto":
        return f"{text} ({', '.join(READ_BY[field])})"
    return text if format_name in READ_BY[field] else argparse.SUPPRESS


def _add_place_arguments(parser: argparse.ArgumentParser, format_name: str) -> None:
    parser.add_argument("--out", metavar="OUT", type=path_argument, required=True, help="folder of the new dataset")
    parser.add_argument(
        "--images",
        metavar="IMAGES",
        type=path_argument,
        help=_help_of("images", "folder of the images, if they are not next to the annotations", format_name),
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset at OUT")


def _add_class_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--classes", metavar="A,B", type=parse_names, default=[], help="keep only these classes, in this order"
    )
    parser.add_argument(
        "--rename",
        metavar="OLD=NEW",
        type=parse_rename,
        action="append",
        default=[],
        help="rename a class; to merge classes, give several the same new name",
    )
    parser.add_argument(
        "--descriptions",
        metavar="NAME=TEXT",
        type=parse_descriptions,
        action="append",
        default=[],
        help="what a class means, for the questions; or a .yaml or .json file with NAME: TEXT for each class",
    )
    parser.add_argument(
        "--default-class", metavar="NAME", default="", help="class for objects without a class in the source"
    )


def _add_field_arguments(parser: argparse.ArgumentParser, format_name: str) -> None:
    parser.add_argument(
        "--label-field",
        metavar="NAME",
        help=_help_of("label_field", _LABEL_FIELDS.get(format_name, "field with the class"), format_name),
    )
    parser.add_argument(
        "--image-field",
        metavar="NAME",
        help=_help_of("image_field", "field or column with the image or its name", format_name),
    )
    parser.add_argument(
        "--bbox-field",
        metavar="NAME",
        help=_help_of("bbox_field", "column with the boxes, such as objects.bbox", format_name),
    )
    parser.add_argument(
        "--bbox-format",
        metavar="FORMAT",
        choices=[f"{layout}{unit}" for unit in ("", "1000") for layout in ("xyxy", "xywh", "cxcywh", "yxyx")],
        help=_help_of(
            "bbox_format",
            "format of the boxes: xyxy, xywh, cxcywh or yxyx; with 1000 at its end, as in xyxy1000, boxes in thousandths "
            "of the image",
            format_name,
        ),
    )


def _add_record_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--split-ratio",
        metavar="T,V,E",
        type=parse_ratio,
        help="shares of train, validation and test; overrides the splits of the source "
        "(default: the splits of the source, or 80,10,10 if it has none)",
    )
    parser.add_argument(
        "--questions",
        choices=["all", "mixed", "most-common"],
        default="all",
        help="all: ask for all classes; mixed: half of the training images ask for one class, present or absent; "
        "most-common: the prompt asks for the most common class of the image, in every split",
    )
    parser.add_argument("--allow-bad-boxes", action="store_true", help="continue even if the box format looks wrong")


def _add_image_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        metavar="N",
        type=parse_workers,
        default=os.cpu_count(),
        help="threads that decode images (default: the number of cores)",
    )
    parser.add_argument(
        "--copy-images", action="store_true", help="copy the images into OUT instead of referencing them"
    )
    parser.add_argument("--skip-bad-images", action="store_true", help="skip unreadable images and list them")


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
        raise argparse.ArgumentTypeError(f"{text!r}: give one name, or several comma-separated names")
    return names


def parse_rename(text: str) -> dict[str, str]:
    """ "a=b,c=d" → {"a": "b", "c": "d"}."""
    pairs = [[name.strip() for name in part.split("=")] for part in text.split(",")]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r}: write OLD=NEW, or several such pairs, comma-separated")
    return dict(pairs)


def parse_descriptions(text: str) -> dict[str, str]:
    """ "RBC=red blood cell" → {"RBC": "red blood cell"}; the path of a YAML or JSON file → its content."""
    if Path(text).suffix.lower() in (".yaml", ".yml", ".json"):
        return read_descriptions(Path(text))
    name, separator, description = (part.strip() for part in text.partition("="))
    if not (name and separator and description):
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=TEXT, or name a .yaml or .json file")
    return {name: description}


def _run_conversion(args: argparse.Namespace) -> None:
    from data_prep.pipeline.convert import convert  # imports numpy, Pillow and rich, which -h does not need

    out = Path(os.path.realpath(args.out))
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=folder_for_scratch(out)) as scratch:
        convert(args.format, args.source, _conversion_options(args, out, Path(scratch)))


def _conversion_options(args: argparse.Namespace, out: Path, scratch: Path) -> Options:
    return Options(
        out=out,
        scratch=scratch,
        images=args.images,
        classes=args.classes,
        rename={old: new for renames in args.rename for old, new in renames.items()},
        descriptions={name: text for given in args.descriptions for name, text in given.items()},
        default_class=args.default_class.strip(),
        image_field=args.image_field,
        bbox_field=args.bbox_field,
        label_field=args.label_field,
        bbox_format=args.bbox_format and args.bbox_format.removesuffix("1000"),
        thousandths=bool(args.bbox_format) and args.bbox_format.endswith("1000"),
        split_ratio=args.split_ratio,
        questions=args.questions,
        workers=args.workers,
        copy_images=args.copy_images,
        skip_bad_images=args.skip_bad_images,
        allow_bad_boxes=args.allow_bad_boxes,
        overwrite=args.overwrite,
    )
