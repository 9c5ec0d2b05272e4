"""Errors that the user can fix: one message with cause, value and remedy, exit code 2 and no traceback."""

import difflib
import errno
import functools
import pickle
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from safetensors import SafetensorError

from boxtune.common.problems import list_problems

P = ParamSpec("P")
R = TypeVar("R")

# Errors of the operating system that the user can fix. Any other OSError is a bug and keeps its traceback.
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BAD_PATH = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
    *(errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTEMPTY, errno.EINVAL),
}
# What libraries raise for a file that is corrupt, of another version, or of another format.
_UNREADABLE = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, EOFError),
    *(pickle.UnpicklingError, SafetensorError),
)
# What libraries raise for a setting that they reject.
_REJECTED = (OSError, ValueError, TypeError, LookupError, RuntimeError, ImportError, NotImplementedError)

# Values in messages are shortened, because a bad line of a file may hold anything, at any length and depth.
_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 8
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def shown(value: object) -> str:
    """`repr` of a value, shortened for a message."""
    return _SHORT.repr(value)


def did_you_mean(word: str, known: Iterable[str], start: str = " Did") -> str:
    """A hint for a message about an unknown name: the one of `known` that is most like `word`; empty if none is similar."""
    close = difflib.get_close_matches(word, [*known], n=1)
    return f"{start} you mean {close[0]}?" if close else ""


def is_out_of_space(error: BaseException) -> bool:
    """Whether a write failed because the disk or the quota is full.

    Rust libraries (safetensors, tokenizers) give the error number only in the text of the error.
    """
    number = re.search(r"\(os error (\d+)\)", str(error))
    return getattr(error, "errno", None) in _NO_SPACE or (number is not None and int(number.group(1)) in _NO_SPACE)


class UserError(Exception):
    """An error that the user can fix. `problems` holds every single finding. The message lists them one per line; if there are
    more than twenty, it gives examples and the number of each kind."""

    def __init__(self, message: str, problems: Iterable[str] = ()):
        self.problems = list(problems)
        super().__init__("\n".join([message, *list_problems(self.problems)]))


@contextmanager
def reading(what: str, remedy: str) -> Iterator[None]:
    """Wrap a library call that reads a user's file: its errors become one UserError that names `what` and the `remedy`."""
    try:
        yield
    except _UNREADABLE as error:
        if is_out_of_space(error):
            raise
        raise UserError(f"{what} cannot be read: {_one_line(error)}. {remedy}") from error


@contextmanager
def accepting(what: str) -> Iterator[None]:
    """Wrap a library call that takes a user's settings: if it rejects them, the error becomes one UserError."""
    try:
        yield
    except _REJECTED as error:
        if is_out_of_space(error) or getattr(error, "errno", None):  # from the operating system, not about the settings
            raise
        raise UserError(f"{what}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    """The type and message of an error on one line, cut at 500 characters: some libraries list every tensor."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:500]}{'…' if len(text) > 500 else ''}".removesuffix(": ")


def command(main: Callable[P, R]) -> Callable[P, R]:
    """Decorate a script's `main`: a UserError or a full disk prints one line and exits with 2, Ctrl-C exits with 130."""

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            # An error in a worker of a data loader has the worker's traceback in front of the message.
            print(f"error: {str(error).rpartition('boxtune.common.errors.UserError: ')[2].rstrip()}", file=sys.stderr)
        except OSError as error:
            if error.errno not in _NO_SPACE | _BAD_PATH:
                raise
            path = error.filename2 or error.filename  # of a copy, the second is the target
            where = f": {path}" if path else ""
            hint = " Free some space and run the command again." if error.errno in _NO_SPACE else ""
            print(f"error: {error.strerror}{where}.{hint}", file=sys.stderr)
        except Exception as error:
            if not is_out_of_space(error):
                raise
            print(f"error: {error}. Free some space and run the command again.", file=sys.stderr)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        sys.exit(2)

    return wrapper
