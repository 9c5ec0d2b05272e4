"""The model that evaluate.py's options name."""

import argparse
from dataclasses import replace

from boxtune.answers.stated import stated_in
from boxtune.common.errors import UserError
from boxtune.inference.detector import Detector
from boxtune.models.checkpoint import Checkpoint, open_checkpoint
from boxtune.models.libraries import quiet_libraries


def open_model(args: argparse.Namespace) -> Checkpoint:
    """Everything of the model except its weights. Raises UserError if it cannot be used."""
    quiet_libraries()
    checkpoint = open_checkpoint(args.ckpt, stated_in(args), args.max_new_tokens, args.command)
    if args.decoder:
        decoding = replace(checkpoint.grounding.decoding, decoder=args.decoder)
        checkpoint = replace(checkpoint, grounding=replace(checkpoint.grounding, decoding=decoding))
    if args.base and not checkpoint.adapter:
        raise UserError(f"--base: {args.ckpt} is not an adapter, so it has no base to compare with.")
    return checkpoint


def load_detector(args: argparse.Namespace, checkpoint: Checkpoint) -> Detector:
    """The checkpoint with its weights loaded here, or found on the server."""
    if args.server is None:
        return Detector.from_checkpoint(checkpoint, args.precision)
    return Detector.from_server(checkpoint, args.ckpt, args.server, args.served_model, args.trust_server)
