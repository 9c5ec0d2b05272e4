"""The embedded model and questions to it, which the tests of decode settings share."""

from dataclasses import replace

import pytest
import torch

from boxtune.answers.conversation import SYSTEM_PROMPT
from boxtune.answers.decoding import Decoding
from boxtune.data.dataset import read_records
from boxtune.models.loading import load_model
from tests.helpers.collators import make_collator
from tests.helpers.records import ROOT

EMBEDDED = ROOT / "assets" / "tiny_qwen3_vl"


@pytest.fixture(scope="module")
def model():
    return load_model(str(EMBEDDED), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def records(squares) -> list[dict]:
    return read_records(squares, "train")[:6]


@pytest.fixture(scope="module")
def make(squares):
    """Makes a collator with decode settings, for the embedded model or one in another folder."""

    def with_settings(folder=EMBEDDED, **settings):
        collator = make_collator(folder, squares, system_prompt=SYSTEM_PROMPT, min_pixels=4096, max_pixels=50176)
        classes = ["red square", "blue square"]
        collator.grounding = replace(collator.grounding, classes=classes, decoding=Decoding(**settings))
        return collator

    return with_settings
