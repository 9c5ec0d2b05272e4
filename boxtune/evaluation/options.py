"""The command line of evaluate.py: its options, and which of them each mode reads."""

import argparse
import sys

from boxtune.answers.confidence import RANKINGS
from boxtune.answers.decoding import DECODERS
from boxtune.answers.stated import NAMES, add_options
from boxtune.common.errors import UserError
from boxtune.common.files import folder_problems, path_argument
from boxtune.evaluation.decode_grid import METRICS
from boxtune.inference.address import servers_problem
from boxtune.reports.exports import EXPORTS, wanted_exports

_MODEL = {
    *("ckpt", "batch_size", "max_new_tokens", "precision", "decoder", "server", "served_model", "trust_server"),
    *NAMES,
    *("out", "export"),
}
# The options that each mode reads. A mode is named after the option that selects it.
READS = {
    "ckpt": _MODEL | {"data", "split", "limit", "base", "absent", "guardrails", "push_to_hub", "json"},
    "tune": (_MODEL - {*NAMES, "export", "decoder"}) | {"tune", "metric", "verify", "gate", "data", "limit", "json"},
    "images": _MODEL | {"images", "classes", "skip_bad_images"},
    "predictions": {"predictions", "data", "split", "out", "export", "reparse", "allow_missing", "score", "json"},
    "compare": {"compare", "data", "split", "out", "json"},
}
# Options about weights on this machine, and options about a server that is used in their place.
LOCAL_ONLY = {"base", "precision", "push_to_hub", "decoder", "guardrails", "gate"}
SERVER_ONLY = {"served_model", "trust_server"}


def parse_arguments(argv: list[str] | None, description: str) -> argparse.Namespace:
    """Raises UserError that lists every option that cannot be used."""
    parser = _make_parser(description)
    args = parser.parse_args(argv)
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    if problems := [*_unread_options(args, given), *_value_problems(args)]:
        raise UserError("these options cannot be used:", problems)
    args.command = ["python", "evaluate.py", *(sys.argv[1:] if argv is None else argv)]
    return args


def mode_of(args: argparse.Namespace) -> str:
    """The key of READS for these arguments."""
    given = (mode for mode in ("compare", "predictions", "images") if getattr(args, mode) is not None)
    return next(given, "tune" if args.tune else "ckpt")


def _make_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    _add_modes(parser)
    _add_data_options(parser)
    _add_scoring_options(parser)
    _add_output_options(parser)
    _add_model_options(parser)
    add_options(parser)
    return parser


def _add_modes(parser: argparse.ArgumentParser) -> None:
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--ckpt", metavar="DIR", help="adapter folder, merged model or Hub id")
    mode.add_argument(
        "--predictions", type=path_argument, metavar="FILE", help="a run's folder or predictions.jsonl, to score again"
    )
    mode.add_argument(
        "--compare",
        nargs=2,
        type=path_argument,
        metavar=("RUN_A", "RUN_B"),
        help="two runs, or two predictions.jsonl, for the same images",
    )


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=path_argument,
        metavar="DIR",
        help="prepared dataset (default: that of the checkpoint or of the predictions)",
    )
    parser.add_argument(
        "--split", help="train, validation or test (default: test, or validation if there is no test split)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="evaluate only the first N images of the split")
    parser.add_argument(
        "--images",
        type=path_argument,
        metavar="PATH",
        help="images without ground truth: a folder, one image, or a .txt file with one path per line",
    )
    parser.add_argument(
        "--skip-bad-images", action="store_true", help="with --images: skip and list images that cannot be read"
    )
    parser.add_argument(
        "--classes",
        metavar="A,B",
        help="with --images: comma-separated classes to ask for (default: the trained classes)",
    )


def _add_scoring_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--absent",
        action="store_true",
        help="also ask about classes that the images lack, and count responses with boxes",
    )
    parser.add_argument(
        "--guardrails",
        metavar="SUITE",
        help="also ask about unrelated images, about other classes and for descriptions, and compare with the base: small, full, "
        "tiny or a YAML file (docs/guardrails.md)",
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="choose decode settings on the validation split, and store them in the checkpoint (docs/decoding.md)",
    )
    parser.add_argument(
        "--metric", choices=METRICS, default=METRICS[0], help="with --tune: what to choose them by (default AP)"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="with --tune: try each setting with the verifier, too, which scores each box by a question about it",
    )
    parser.add_argument(
        "--gate",
        action="store_true",
        help="with --tune: also choose the threshold of a question whether an image shows one of the classes "
        "(docs/guardrails.md)",
    )
    parser.add_argument("--reparse", action="store_true", help="parse the text of the predictions again")
    parser.add_argument(
        "--allow-missing", action="store_true", help="count images without a prediction as empty responses"
    )
    parser.add_argument(
        "--score",
        choices=RANKINGS,
        metavar="NAME",
        help="rank predictions by another confidence score (docs/confidence.md)",
    )
    parser.add_argument(
        "--base", action="store_true", help="with an adapter: also evaluate its base model, for comparison"
    )


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=path_argument,
        metavar="DIR",
        help="output folder (default with --ckpt: eval/ next to the checkpoint, or eval_images/ with --images, eval_tuning/ with "
        "--tune; with --predictions: next to them, or in rescored/ if metrics of the model itself are there; with --compare: "
        "next to the predictions of RUN_B)",
    )
    parser.add_argument(
        "--push-to-hub", metavar="OWNER/NAME", help="upload the model with a model card that contains the results"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the metrics as JSON instead of a table, with one key per model"
    )
    parser.add_argument(
        "--export",
        type=wanted_exports,
        default=[],
        metavar="A,B",
        help=f"also write the boxes as (comma-separated): {', '.join(EXPORTS)}",
    )


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size",
        type=int,
        default=16,
        metavar="N",
        help="images per batch (default 16); with --server, concurrent requests to each server",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="maximum length of a response (default: from the longest training answer)",
    )
    parser.add_argument(
        "--precision",
        choices=["nf4", "bfloat16", "float16", "float32"],
        help="precision of the base model (default: as in training)",
    )
    parser.add_argument(
        "--decoder",
        choices=DECODERS,
        help="where boxes come from: generated text, the checkpoint's detection head, or both (default: its own setting)",
    )
    parser.add_argument(
        "--server", metavar="URL[,URL…]", help="servers that run the model, for example http://localhost:8000/v1"
    )
    parser.add_argument(
        "--served-model",
        metavar="NAME",
        help="name of the checkpoint on the server (needed if the server has several models)",
    )
    parser.add_argument(
        "--trust-server", action="store_true", help="do not check whether the server runs this checkpoint"
    )


def _unread_options(args: argparse.Namespace, given: set[str]) -> list[str]:
    """A problem for every given option that would have no effect."""
    mode = mode_of(args)
    problems = [f"{flag(name)} has no effect with {flag(mode)}; leave it out" for name in sorted(given - READS[mode])]
    if args.server is not None:
        problems += [f"{flag(name)} has no effect with --server; leave it out" for name in sorted(given & LOCAL_ONLY)]
    elif "server" in READS[mode]:
        problems += [f"{flag(name)} needs --server URL" for name in sorted(given & SERVER_ONLY)]
    return problems


def _value_problems(args: argparse.Namespace) -> list[str]:
    """A problem for every option whose value cannot be used."""
    problems = []
    if args.server is not None and (problem := servers_problem(args.server)):
        problems.append(f"--server: {problem}")
    if args.out is not None:
        problems += [f"--out: {problem}" for problem in folder_problems(args.out)]
    for name in ("limit", "batch_size", "max_new_tokens", "max_pixels"):
        value = getattr(args, name)
        if value is not None and value < 1:
            problems.append(f"{flag(name)} must be at least 1, got {value}")
    return problems


def flag(name: str) -> str:
    """ "batch_size" → "--batch-size"."""
    return f"--{name.replace('_', '-')}"
