"""The options of serve.py, checked together. Imports nothing of the extra `serve`."""

import argparse
import math
import sys
from pathlib import Path

from boxtune.answers.stated import add_options
from boxtune.common.errors import UserError
from boxtune.inference.address import address_problem, servers_problem


def parse_arguments(argv: list[str] | None, description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ckpt", metavar="DIR", required=True, help="merged model, adapter folder or Hub id")
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: only this machine; all: 0.0.0.0)")
    add("--port", type=int, default=8080, help="default 8080")
    add("--server", metavar="URL[,URL…]", help="servers that run the model, for example http://localhost:8000/v1")
    add("--served-model", metavar="NAME", help="name of the checkpoint on that server, if it has several models")
    add("--trust-server", action="store_true", help="do not check whether the server runs this checkpoint")
    add("--precision", choices=["nf4", "bfloat16", "float16", "float32"], help="default: as in training")
    add("--max-new-tokens", type=int, metavar="N", help="maximum length of a response")
    add(
        "--max-batch",
        type=int,
        default=16,
        metavar="N",
        help="images per batch, or requests to each --server (default 16)",
    )
    add("--workers", type=int, default=1, metavar="N", help="batches at the same time in this process (default 1)")
    add("--max-wait-ms", type=float, default=10, metavar="MS", help="wait this long to fill a batch (default 10)")
    add("--max-queue", type=int, default=256, metavar="N", help="requests in progress; more get 503 (default 256)")
    add("--max-body-mb", type=float, default=20, metavar="MB", help="size of a request (default 20)")
    add("--max-image-megapixels", type=float, default=50, metavar="MP", help="size of an image (default 50)")
    add(
        "--max-memory-mb",
        type=float,
        default=2048,
        metavar="MB",
        help="memory of all images in progress (default 2048)",
    )
    add("--timeout", type=float, default=120, metavar="S", help="seconds until a request gets 503 (default 120)")
    add("--image-root", type=Path, metavar="DIR", help="tasks of Label Studio may name files below this folder")
    add("--label-studio-url", metavar="URL", help="tasks of Label Studio may name images on this host, and on no other")
    add_options(parser)
    args = parser.parse_args(argv)
    if problems := value_problems(args):
        raise UserError("these options cannot be used:", problems)
    args.command = ["python", "serve.py", *(sys.argv[1:] if argv is None else argv)]
    return args


def value_problems(args: argparse.Namespace) -> list[str]:
    """A problem for every option whose value cannot be used."""
    problems = []
    if not 0 <= args.port <= 65535:
        problems.append(f"--port must be from 0 to 65535, got {args.port}")
    positive = ("max_batch", "workers", "max_queue", "max_body_mb", "max_image_megapixels", "max_memory_mb", "timeout")
    for name in (*positive, "max_new_tokens", "max_pixels"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            problems.append(f"--{name.replace('_', '-')} must be above 0, got {value}")
    if not 0 <= args.max_wait_ms < math.inf:
        problems.append(f"--max-wait-ms must be at least 0, got {args.max_wait_ms}")
    if args.server is None:
        needs_server = {"--served-model": args.served_model, "--trust-server": args.trust_server}
        problems += [f"{name} needs --server URL" for name, given in needs_server.items() if given]
    else:
        no_effect = {"--precision": args.precision is not None, "--workers": args.workers != 1}
        problems += [f"{name} has no effect with --server" for name, given in no_effect.items() if given]
        if problem := servers_problem(args.server):
            problems.append(f"--server: {problem}")
    if args.label_studio_url is not None and (problem := address_problem(args.label_studio_url)):
        problems.append(f"--label-studio-url: {problem}")
    if args.image_root is not None and not args.image_root.is_dir():
        problems.append(f"--image-root must be a folder, got {args.image_root}")
    return problems
