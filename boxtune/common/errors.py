"""A user's mistake: one message with cause, value and remedy, exit code 2, never a traceback."""

import errno
import functools
import pickle
import re
import reprlib
import sys
from contextlib import contextmanager

from safetensors import SafetensorError

# Errors of the machine that a user can mend; any other OSError is ours and keeps its traceback.
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BAD_PATH = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
    *(errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTEMPTY, errno.EINVAL),
}
# How libraries complain of a file that is torn, of another version, or not what its name says.
_UNREADABLE = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, EOFError),
    *(pickle.UnpicklingError, SafetensorError),
)
# How libraries refuse a setting.
_REFUSED = (OSError, ValueError, TypeError, LookupError, RuntimeError, ImportError, NotImplementedError)


# Values in messages are cut: a line of a strange file may hold anything, at any length and depth.
_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 8
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def shown(value: object) -> str:
    """`repr`, cut to what a person reads in a message."""
    return _SHORT.repr(value)


def is_out_of_space(error: BaseException) -> bool:
    """Whether a write failed for want of space; Rust libraries (safetensors, tokenizers) say so only in their text."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return getattr(error, "errno", None) in _NO_SPACE or (number is not None and int(number.group(1)) in _NO_SPACE)


class UserError(Exception):
    """Something the user can mend. `problems` lists every single finding, one line each."""

    def __init__(self, message: str, problems: list[str] | tuple[str, ...] = ()):
        self.problems = list(problems)
        super().__init__("\n".join([message, *(f"  - {problem}" for problem in self.problems)]))


@contextmanager
def reading(what: str, remedy: str):
    """Around one library's call that reads the user's files: whatever it says of them becomes one UserError."""
    try:
        yield
    except _UNREADABLE as error:
        if is_out_of_space(error):
            raise
        raise UserError(f"{what} cannot be read: {_first_words(error)}. {remedy}") from error


@contextmanager
def accepting(what: str):
    """Around one library's call that takes the user's settings: what it refuses becomes one UserError."""
    try:
        yield
    except _REFUSED as error:
        if is_out_of_space(error) or getattr(error, "errno", None):  # the machine's word, not the library's
            raise
        raise UserError(f"{what}: {_first_words(error)}") from error


def _first_words(error: BaseException) -> str:
    """The kind of error and its message on one line, cut where a library lists every tensor."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:500]}{'…' if len(text) > 500 else ''}".removesuffix(": ")


def command(main):
    """Wrap a script's `main`: user errors and a full disk become one line and exit code 2, Ctrl-C becomes 130."""

    @functools.wraps(main)
    def wrapper(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            # A data loader's worker puts its traceback before the message.
            print(f"error: {str(error).rpartition('boxtune.common.errors.UserError: ')[2].rstrip()}", file=sys.stderr)
        except OSError as error:
            if error.errno not in _NO_SPACE | _BAD_PATH:
                raise
            place = error.filename2 or error.filename  # of a copy, the second is the one that was being written
            where = f": {place}" if place else ""
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
