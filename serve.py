"""Serve a checkpoint over HTTP: python serve.py --ckpt DIR [--host 127.0.0.1] [--port 8080] [--server URL]

POST /detect takes an image and returns its objects; / is a page to try it, /docs describes the API.
It is also an ML backend for Label Studio (docs/annotation_tools.md).
The model runs in this process, or with --server behind an OpenAI-compatible server such as vLLM.
If BOXTUNE_API_KEY is set, requests must carry that key. docs/deploy.md tells more.
"""

import importlib.util
import os
import sys

from boxtune.common.spinning import limit_spinning

if __name__ == "__main__":  # before torch is imported
    limit_spinning()

from boxtune.answers.stated import stated_in
from boxtune.common.errors import UserError, command
from boxtune.serving.options import parse_arguments

LOOPBACK = {"127.0.0.1", "::1", "localhost"}
# What the extra `serve` installs, by the names that Python imports.
NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def check_installed() -> None:
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"serving needs packages that are not installed ({', '.join(missing)}). Install them with "
            'pip install -e ".[serve]", or use make serve.'
        )


def read_environment(name: str) -> str:
    """A key for a header; empty if there is none."""
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{name} contains characters that no header can hold. Set it again.")
    return key


def read_key(host: str) -> str:
    """The API key; empty if there is none. Warns if other machines can then use the server."""
    key = read_environment("BOXTUNE_API_KEY")
    if not key and host not in LOOPBACK:
        print(f"warning: everyone who reaches {host} can use this server; set BOXTUNE_API_KEY.", file=sys.stderr)
    return key


@command
def main(argv: list[str] | None = None) -> None:
    # ---- Options, before anything is loaded
    args = parse_arguments(argv, __doc__)
    check_installed()
    key, label_studio_key = read_key(args.host), read_environment("LABEL_STUDIO_API_KEY")

    import torch
    import uvicorn  # of the extra `serve`, as is what boxtune.serving imports

    from boxtune.inference.detector import Detector
    from boxtune.models.checkpoint import open_checkpoint
    from boxtune.models.libraries import quiet_libraries
    from boxtune.serving.app import create_app
    from boxtune.serving.image_sources import ImageSources
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
        torch.set_num_threads(max(1, torch.get_num_threads() // args.workers))

    # ---- The API
    body, memory, pixels = args.max_body_mb * 2**20, args.max_memory_mb * 2**20, args.max_image_megapixels * 1e6
    limits = Limits(int(body), int(pixels), args.max_queue, int(memory), args.timeout)
    sources = ImageSources(args.image_root, args.label_studio_url, label_studio_key)
    app = create_app(Service(detector, limits, args.max_batch, args.max_wait_ms / 1000, args.workers), key, sources)

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
