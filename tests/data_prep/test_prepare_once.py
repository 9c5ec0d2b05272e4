"""The data of a recipe: what is said if it is not there."""

import shutil

import pytest

from boxtune.common.errors import UserError
from data_prep.prepare_once import prepare_once


def test_a_mistyped_data_dir_is_named_before_the_source_of_the_recipe(squares, tmp_path):
    """The recipe my_data names a source that only a user who edits it has."""
    shutil.copytree(squares, tmp_path / "parts")
    said = []
    with pytest.raises(UserError) as failure:
        prepare_once(tmp_path / "prats", "auto", "path/to/annotations", ["--images", "path/to/images"], said.append)
    message = str(failure.value)
    assert message.startswith(f"data_dir: {tmp_path / 'prats'} is not a prepared dataset. Did you mean parts? ")
    assert "data_source" in message and "path/to/annotations" in message
    with pytest.raises(UserError, match=r"names no converter\. Did you mean parts\? Run"):
        prepare_once(tmp_path / "prats", None, None, None, said.append)
    with pytest.raises(UserError) as failure:
        prepare_once(tmp_path / "elsewhere" / "x", "auto", "path/to/annotations", None, said.append)
    assert "Did you mean" not in str(failure.value).partition("\n")[0]
