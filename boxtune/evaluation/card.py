"""--push-to-hub, and the card that an evaluation writes for a finished model."""

import argparse
import sys
from pathlib import Path
from typing import Any

from boxtune.answers.grounding import Grounding
from boxtune.common.errors import UserError
from boxtune.evaluation.split import Split
from boxtune.metrics.guardrail_rules import Probes
from boxtune.models.hub import LOG_IN, is_logged_in, push_folder
from boxtune.reports.model_card import is_finished, model_name, write_card


def has_card(args: argparse.Namespace, grounding: Grounding, split: Split) -> bool:
    """Whether the results belong in the model's card.

    They do for a finished model that runs as it was trained, on a whole split of its own dataset that it was not trained on.
    Another precision, a server or another token limit makes the evaluation an experiment.
    """
    as_trained = args.precision is None and args.max_new_tokens is None and args.server is None
    whole_split = args.limit is None and split.name != "train"
    own_data = split.data_dir == Path(grounding.data_dir)
    return as_trained and whole_split and own_data and is_finished(Path(args.ckpt))


def update_card(ckpt: str, metrics: dict[str, Any], probes: Probes | None) -> None:
    """Write the model's README.md with these metrics and guardrails."""
    write_card(Path(ckpt), model_name(Path(ckpt)), metrics, probes)


def check_push(args: argparse.Namespace, updates_card: bool) -> None:
    """Raises UserError if --push-to-hub is given and would fail after the evaluation. Call it before the model runs."""
    if not args.push_to_hub:
        return
    if not is_finished(Path(args.ckpt)):
        raise UserError(
            f"--push-to-hub: {args.ckpt} is not a finished model of a training run. Name runs/NAME/final, or the folder that "
            "merge_adapter.py made from it."
        )
    if not updates_card:
        raise UserError(
            f"--push-to-hub: the card states the results of {args.ckpt} on a whole split of its own dataset. "
            "Leave out --data, --limit, --precision, --max-new-tokens and --split train."
        )
    if not is_logged_in():
        raise UserError(f"--push-to-hub: you are not logged in to the Hub. {LOG_IN}")


def push(args: argparse.Namespace) -> None:
    """Upload the model's folder and print its address."""
    url = push_folder(Path(args.ckpt), args.push_to_hub)
    print(f"pushed:  {url}", file=sys.stderr if args.json else sys.stdout)
