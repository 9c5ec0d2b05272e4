"""What an evaluation leaves as it was, so that training goes on as if there had been none."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def keeping_state(model: torch.nn.Module) -> Iterator[None]:
    """Restore the random numbers of Python, numpy and torch, and which modules train, at the end of the `with` block.

    A data loader draws a random number each time it starts, and evaluation turns dropout off.
    """
    modes = [(module, module.training) for module in model.modules()]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for module, is_training in modes:
            module.training = is_training
