"""Errors that the user can fix: one message on one line, and exit code 2."""

import errno

import pytest

from boxtune.common.errors import UserError, accepting, command, did_you_mean, is_out_of_space, reading, shown


@command
def raising(error: BaseException | None) -> int:
    if error:
        raise error
    return 7


def outcome(capsys, error: BaseException) -> tuple[int, str]:
    """(exit code, what was printed) of a command that raises the error."""
    with pytest.raises(SystemExit) as stop:
        raising(error)
    return stop.value.code, capsys.readouterr().err


def test_a_command_returns_what_its_main_returns():
    assert raising(None) == 7 and raising.__name__ == "raising"


def test_a_user_error_is_its_message_and_exit_code_2(capsys):
    assert outcome(capsys, UserError("bad value:", ["a: 1"])) == (2, "error: bad value:\n  - a: 1\n")
    from_worker = "Caught UserError in worker 0.\nTraceback …\nboxtune.common.errors.UserError: a.png is corrupt\n"
    assert outcome(capsys, UserError(from_worker)) == (2, "error: a.png is corrupt\n")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/a"), "No space left on device: /x/a. Free some space"),
        (OSError(errno.EDQUOT, "Quota exceeded"), "Quota exceeded. Free some space and run the command again.\n"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a"), "No such file or directory: a.\n"),
        (OSError(errno.EACCES, "Permission denied", "from", None, "to"), "Permission denied: to.\n"),
        (RuntimeError("I/O error: No space left (os error 28)"), "I/O error: No space left (os error 28). Free some"),
    ],
)
def test_errors_of_the_disk_are_one_line(capsys, error, message):
    code, printed = outcome(capsys, error)
    assert code == 2 and printed.startswith(f"error: {message}") and printed.count("\n") == 1


@pytest.mark.parametrize("error", [OSError(errno.EPIPE, "Broken pipe"), KeyError("a"), RuntimeError("(os error 5)")])
def test_other_errors_keep_their_traceback(error):
    with pytest.raises(type(error)):
        raising(error)


def test_ctrl_c_exits_with_130(capsys):
    assert outcome(capsys, KeyboardInterrupt()) == (130, "interrupted\n")


def test_a_full_disk_is_recognized_by_number_or_text():
    assert is_out_of_space(OSError(errno.ENOSPC, "x")) and is_out_of_space(ValueError("failed (os error 122)"))
    assert not is_out_of_space(OSError(errno.EACCES, "x")) and not is_out_of_space(ValueError("(os error 2)"))
    assert not is_out_of_space(ValueError("28"))


def test_an_unreadable_file_is_named_with_the_remedy():
    with pytest.raises(UserError) as error, reading("the weights of m", "Download them again."):
        raise ValueError("bad\n  header. ")
    assert str(error.value) == "the weights of m cannot be read: ValueError: bad header. Download them again."
    with pytest.raises(UserError) as error, reading("a", "Remove it."):
        raise EOFError
    assert str(error.value) == "a cannot be read: EOFError. Remove it."
    with pytest.raises(UserError) as error, reading("a", "Remove it."):
        raise RuntimeError("x" * 501)
    assert f": {'x' * 500}…. Remove it." in str(error.value)
    with pytest.raises(UserError) as error, reading("a", "Remove it."):
        raise RuntimeError("x" * 500)
    assert f": {'x' * 500}. Remove it." in str(error.value)
    with pytest.raises(OSError), reading("a", "Remove it."):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ZeroDivisionError), reading("a", "Remove it."):
        raise ZeroDivisionError


def test_a_rejected_setting_is_a_user_error_and_a_broken_disk_is_not():
    with pytest.raises(UserError) as error, accepting("optim x is invalid"):
        raise ValueError("no optimizer x")
    assert str(error.value) == "optim x is invalid: ValueError: no optimizer x"
    for failure in (OSError(errno.EIO, "Input/output error"), RuntimeError("(os error 28)")):
        with pytest.raises(type(failure)), accepting("x"):
            raise failure
    with pytest.raises(UserError), accepting("x"):
        raise OSError("we could not connect")  # of a library, without a number


def test_values_in_messages_are_short():
    assert shown([1, "a"]) == "[1, 'a']"
    assert shown(list(range(9))) == "[0, 1, 2, 3, 4, 5, 6, 7, ...]"
    assert shown(list(range(8))) == "[0, 1, 2, 3, 4, 5, 6, 7]"
    assert len(shown("x" * 1000)) == len(shown(10**1000)) == 80


def test_the_most_similar_name_is_suggested():
    assert did_you_mean("lerning_rate", ["learning_rate", "lora_r"]) == " Did you mean learning_rate?"
    assert did_you_mean("xyz", ["learning_rate"]) == ""
    assert did_you_mean("a_b", iter(["a_c", "a_b_"]), "; did") == "; did you mean a_b_?"
