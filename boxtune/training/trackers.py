"""Experiment trackers. A tracker that is unreachable, not installed or not logged in never stops a run."""

import os

from accelerate import PartialState
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from boxtune.common.errors import UserError
from boxtune.training.console import say


def usable_trackers(wanted: list[str] | str | None, project: str, run_name: str) -> tuple[list[str], list[str]]:
    """(trackers for `report_to`, notes for the user).

    wandb logs offline to ./wandb if it is not logged in or unreachable. A tracker whose package is missing is skipped. Raises
    UserError for a name that transformers does not know.
    """
    names = [wanted] if isinstance(wanted, str) else list(wanted or [])
    if unknown := [name for name in names if name not in {None, "none", "all", *INTEGRATION_TO_CALLBACK}]:
        raise UserError(f"report_to: {', '.join(unknown)} must be one of {', '.join(INTEGRATION_TO_CALLBACK)} or none")
    usable, notes = [], []
    for name in names:
        if name in {None, "none", "all"}:
            continue
        if name not in get_available_reporting_integrations():
            notes.append(f"{name} is not installed: training continues without it")
        elif name == "wandb":
            note = _start_wandb(project, run_name)
            notes += [note] if note else []
            usable.append(name)
        else:
            usable.append(name)
    return usable, notes


def start_trackers(wanted: list[str] | str | None, project: str, run_name: str) -> list[str]:
    """The usable trackers, started in the main process; none in other processes. Prints the notes for the user."""
    if not PartialState().is_main_process:
        return []
    usable, notes = usable_trackers(wanted, project, run_name)
    for note in notes:
        say(f"note: {note}")
    return usable


def _start_wandb(project: str, run_name: str) -> str | None:
    """Start a run that transformers' callback picks up. Returns a note for the user, or None."""
    import wandb

    project = os.environ.setdefault("WANDB_PROJECT", project)
    if os.environ.get("WANDB_MODE", "online") != "online":
        wandb.init(project=project, name=run_name)
        return None
    try:
        if wandb.login(prompt=False):
            wandb.init(project=project, name=run_name, settings=wandb.Settings(init_timeout=30))
            return None
        reason = "is not logged in (`wandb login`)"
    except wandb.errors.Error as error:
        reason = f"cannot be reached ({str(error).splitlines()[0]})"
    wandb.init(project=project, name=run_name, settings=wandb.Settings(mode="offline"))
    return f"wandb {reason}: logging to ./wandb offline; `wandb sync` uploads it later"
