"""Serve a checkpoint over HTTP: python serve.py --ckpt DIR [--host 127.0.0.1] [--port 8080] [--server URL]

POST /detect takes an image and returns its objects; / is a page to try it, /docs describes the API.
The model runs in this process, or with --server behind an OpenAI-compatible server such as vLLM.
If BOXTUNE_API_KEY is set, requests must carry that key. docs/deploy.md tells more.
"""

import argparse
import importlib.util
import math
import os
import sys

from boxtune.common.spinning import limit_spinning

if __name__ == "__main__":  # before torch is imported
    limit_spinning()

from boxtune.answers.stated import add_options, stated_in
from boxtune.common.errors import UserError, command
from boxtune.inference.address import address_problem

LOOPBACK = {"127.0.0.1", "::1", "localhost"}
# What the extra `serve` installs, by the names that Python imports.
NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ckpt", metavar="DIR", required=True, help="merged model, adapter folder or Hub id")
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: only this machine; all: 0.0.0.0)")
    add("--port", type=int, default=8080, help="default 8080")
    add("--server", metavar="URL", help="server that runs the model, for example http://localhost:8000/v1")
    add("--served-model", metavar="NAME", help="name of the checkpoint on that server, if it has several models")
    add("--trust-server", action="store_true", help="do not check whether the server runs this checkpoint")
    add("--precision", choices=["nf4", "bfloat16", "float16", "float32"], help="default: as in training")
    add("--max-new-tokens", type=int, metavar="N", help="maximum length of a response")
    add("--max-batch", type=int, default=16, metavar="N", help="images per batch, or requests to --server (default 16)")
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
    positive = ("max_batch", "max_queue", "max_body_mb", "max_image_megapixels", "max_memory_mb", "timeout")
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
        problems += ["--precision has no effect with --server"] if args.precision else []
        if problem := address_problem(args.server):
            problems.append(f"--server: {problem}")
    return problems


def check_installed() -> None:
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"serving needs packages that are not installed ({', '.join(missing)}). Install them with "
            'pip install -e ".[serve]", or use make serve.'
        )


def read_key(host: str) -> str:
    """The API key; empty if there is none. Warns if other machines can then use the server."""
    key = os.environ.get("BOXTUNE_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError("BOXTUNE_API_KEY contains characters that no header can hold. Set it again.")
    if not key and host not in LOOPBACK:
        print(f"warning: everyone who reaches {host} can use this server; set BOXTUNE_API_KEY.", file=sys.stderr)
    return key


@command
def main(argv: list[str] | None = None) -> None:
    # ---- Options, before anything is loaded
    args = parse_arguments(argv)
    check_installed()
    key = read_key(args.host)

    import uvicorn  # of the extra `serve`, as is what boxtune.serving imports

    from boxtune.inference.detector import Detector
    from boxtune.models.checkpoint import open_checkpoint
    from boxtune.models.libraries import quiet_libraries
    from boxtune.serving.app import create_app
    from boxtune.serving.limits import Limits
    from boxtune.serving.logs import log_json
    from boxtune.serving.service import Service

    # ---- The model
    quiet_libraries()
    checkpoint = open_checkpoint(args.ckpt, stated_in(args), args.max_new_tokens, args.command)
    if args.server:
        detector = Detector.from_server(checkpoint, args.ckpt, args.server, args.served_model, args.trust_server)
    else:
        detector = Detector.from_checkpoint(checkpoint, args.precision)

    # ---- The API
    body, memory, pixels = args.max_body_mb * 2**20, args.max_memory_mb * 2**20, args.max_image_megapixels * 1e6
    limits = Limits(int(body), int(pixels), args.max_queue, int(memory), args.timeout)
    app = create_app(Service(detector, limits, args.max_batch, args.max_wait_ms / 1000), key)

    # ---- Serve until SIGTERM or Ctrl-C, then answer what was accepted
    log_json()
    print(f"serving {args.ckpt} at http://{args.host}:{args.port} (Ctrl-C stops)", file=sys.stderr)
    uvicorn.run(
        app,
        host=args.host,
        port=args.port,
        http="h11",  # bounds the size of headers
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(args.timeout) + 5,
    )


if __name__ == "__main__":
    main()
