"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real annotated images for development; not part of the repository."""
    path = Path(os.environ.get("BOXTUNE_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"{path} is absent; set BOXTUNE_DATA to run the tests on real data sets")
    return path
