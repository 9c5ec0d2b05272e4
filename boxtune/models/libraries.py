"""How loud the libraries are."""

import logging
import warnings

import transformers


def quiet_libraries() -> None:
    """Silence library output that a user cannot act on, such as deprecation notes for developers."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    # boxtune.models.checkpoint.check_adapter turns this one into an error.
    warnings.filterwarnings("ignore", message="Found missing adapter keys")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # each int8 product says that its input is cast
