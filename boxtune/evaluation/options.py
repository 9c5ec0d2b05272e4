"""The options of evaluate.py, and which of them go together."""

import argparse
from urllib.parse import urlsplit

from boxtune.answers.confidence import RANKINGS
from boxtune.common.errors import UserError
from boxtune.common.files import folder_problems, path_argument
from boxtune.reports.exports import EXPORTS, wanted_exports

# Options that a way of calling does not read.
UNUSED = {
    "--ckpt": {"reparse", "allow_missing", "classes", "score", "skip_bad_images"},
    "--images": {"reparse", "allow_missing", "score", "data", "split", "limit", "base", "push_to_hub", "json"},
    "--predictions": {
        *("images", "skip_bad_images", "classes", "base", "limit", "batch_size", "max_new_tokens", "max_pixels"),
        *("precision", "push_to_hub", "server", "served_model", "trust_server"),
    },
    "--server": {"base", "precision", "push_to_hub"},
    "--compare": {
        *("images", "classes", "base", "limit", "batch_size", "max_new_tokens", "max_pixels", "precision"),
        *("push_to_hub", "reparse", "allow_missing", "score", "skip_bad_images", "export"),
        *("server", "served_model", "trust_server"),
    },
}


def parse_arguments(argv: list[str] | None, description: str) -> argparse.Namespace:
    """Raises UserError that names every option that cannot be used."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--ckpt", help="adapter folder, merged model or hub id")
    what.add_argument("--predictions", type=path_argument, help="a run, or predictions.jsonl, to score again")
    what.add_argument(
        "--compare", nargs=2, type=path_argument, metavar=("RUN_A", "RUN_B"), help="runs, or predictions, of one split"
    )
    parser.add_argument(
        "--data", type=path_argument, help="prepared data set; default: the checkpoint's own, or the predictions'"
    )
    parser.add_argument("--split", help="train, validation or test (default)")
    parser.add_argument(
        "--out",
        type=path_argument,
        help="default: eval/, or eval_images/, beside the checkpoint; beside --predictions, or in rescored/ there where a "
        "checkpoint was evaluated; beside RUN_B's predictions",
    )
    parser.add_argument(
        "--images",
        type=path_argument,
        help="pictures without truth: a folder, one picture, or a .txt with a path a line",
    )
    parser.add_argument(
        "--skip-bad-images", action="store_true", help="with --images: leave out and list pictures that cannot be read"
    )
    parser.add_argument("--classes", help="with --images: names to ask for, by commas; default: those of training")
    parser.add_argument("--reparse", action="store_true", help="read the text of the predictions again")
    parser.add_argument(
        "--allow-missing", action="store_true", help="count images without a prediction as empty answers"
    )
    parser.add_argument("--score", choices=RANKINGS, help="rank the predictions by another scorer of theirs")
    parser.add_argument("--base", action="store_true", help="with an adapter: evaluate its base too, side by side")
    parser.add_argument("--push-to-hub", metavar="REPO", help="put the model, with a card that tells the result, there")
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON, one key a model, and no table")
    parser.add_argument(
        "--export", type=wanted_exports, default=[], help=f"also write the boxes as {', '.join(EXPORTS)}, by commas"
    )
    parser.add_argument("--limit", type=int, help="only the first N images of the split")
    parser.add_argument(
        "--batch-size", type=int, default=16, help="images at once (default 16); with --server, requests at once"
    )
    parser.add_argument("--max-new-tokens", type=int, help="default: from the training answers")
    parser.add_argument("--max-pixels", type=int, help="only for models that were not trained here")
    parser.add_argument(
        "--precision", choices=["nf4", "bfloat16", "float16", "float32"], help="default: as in training"
    )
    parser.add_argument("--server", metavar="URL", help="ask this server, such as http://localhost:8000/v1")
    parser.add_argument("--served-model", metavar="NAME", help="the checkpoint's name there; default: the only one")
    parser.add_argument("--trust-server", action="store_true", help="though it does not tell what it serves")
    args = parser.parse_args(argv)
    mode = next(
        (flag(name) for name in ("compare", "predictions", "images") if getattr(args, name) is not None), "--ckpt"
    )
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    problems = [f"{flag(name)} has no effect with {mode}; leave it out" for name in sorted(given & UNUSED[mode])]
    if args.server is not None:
        problems += [
            f"{flag(name)} has no effect with --server; leave it out" for name in sorted(given & UNUSED["--server"])
        ]
        if not args.server.startswith(("http://", "https://")):
            problems.append(f"--server must start with http:// or https://, got {args.server!r}")
        elif not _is_address(args.server):
            problems.append(f"--server: {args.server!r} is no address; it is like http://localhost:8000/v1")
    elif mode in ("--ckpt", "--images"):
        problems += [f"{flag(name)} needs --server URL" for name in ("served_model", "trust_server") if name in given]
    if args.out is not None:
        problems += [f"--out: {problem}" for problem in folder_problems(args.out)]
    for name in ("limit", "batch_size", "max_new_tokens", "max_pixels"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            problems.append(f"{flag(name)} must be at least 1, got {getattr(args, name)}")
    if problems:
        raise UserError("these options cannot be used:", problems)
    return args


def _is_address(url: str) -> bool:
    """Whether it names a host, and a port where it has one."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
