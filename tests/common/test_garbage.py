"""The pause of Python's collector of cyclic garbage."""

import gc

import pytest

from boxtune.common.errors import UserError
from boxtune.common.garbage import collector_paused


def test_the_collector_works_again_after_an_error():
    with pytest.raises(UserError), collector_paused():
        assert not gc.isenabled()
        raise UserError("bad line")
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
