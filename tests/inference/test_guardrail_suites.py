"""The files of guardrail suites."""

import pytest

from boxtune.common.errors import UserError
from boxtune.inference.guardrail_suite import FOLDER, PROBE_NAMES, read_suite


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_suite_of_the_repository_names_every_probe_and_can_be_read_by_name(path):
    suite = read_suite(path.stem)
    assert suite == read_suite(str(path))
    assert suite.probes == list(PROBE_NAMES) and len(suite.drift_texts) > 1


def test_small_and_full_ask_in_the_same_words():
    small, full = read_suite("small"), read_suite("full")
    assert small.caption_prompt == full.caption_prompt == "请用自然语言描述一下这些图片"
    assert small.drift_texts == full.drift_texts and small.images < full.images


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("imges: 3", "unknown key 'imges'. Did you mean images?"),
        ("images: many", "images: 'many' has the wrong type"),
        ("images: 0", "images: 0 must be at least 1"),
        ("crop_sizes: [0.7]", "crop_sizes: [0.7] must be shares"),
        ("crop_sizes: []", "crop_sizes: [] must be shares"),
        ("probes: [blindnes]", "probes: ['blindnes'] must be some of unrelated"),
        ("probes: []", "must be some of unrelated"),
        ("yes_no_question: Is it there?", "must contain {} once"),
        ("caption_prompt: 'x <|im_end|>'", "contains a special token"),
        ("caption_perplexity: 1", "must be above 1"),
        ("untrained_classes: ['']", "untrained_classes: "),
    ],
)
def test_values_that_cannot_be_used_are_named(tmp_path, line, problem):
    path = tmp_path / "suite.yaml"
    path.write_text(line + "\n")
    with pytest.raises(UserError) as error:
        read_suite(str(path))
    assert problem in str(error.value)


def test_files_that_are_no_suite_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no guardrail suite 'smal'\. Did you mean small"):
        read_suite("smal")
    for text in ("- a", "a: [", ""):
        (tmp_path / "suite.yaml").write_text(text)
        with pytest.raises(UserError, match=r"suite\.yaml"):
            read_suite(str(tmp_path / "suite.yaml"))
