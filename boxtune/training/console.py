"""Messages of a training run, printed once regardless of the number of processes."""

from accelerate import PartialState


def say(message: str) -> None:
    """Print in the main process."""
    if PartialState().is_main_process:
        print(message, flush=True)
