"""The options of evaluate.py: its help, and what it refuses before a model is opened."""

import subprocess
import sys

import pytest

import evaluate
import merge_adapter
from boxtune.evaluation.options import parse_arguments
from tests.helpers.records import ROOT


def test_help_loads_no_model_library():
    program = (
        "import sys, evaluate\n"
        "try: evaluate.main(['-h'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ("http://[::1/v1", "is not a valid address"),
        ("http://:8000/v1", "is not a valid address"),
        ("http://localhost:port/v1", "is not a valid address"),
        ("localhost:8000/v1", "must start with http"),
    ],
)
def test_an_invalid_address_is_refused_first(server, words, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--ckpt", "no/such/checkpoint", "--server", server])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert words in message and repr(server) in message
    assert parse_arguments(["--ckpt", "x", "--server", "http://[::1]:8000/v1"], "").server


def test_results_are_written_to_a_folder_only(tmp_path, capsys):
    """The error comes before the model is opened."""
    (tmp_path / "file").write_text("mine")
    for out, words in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "x", "is a file"),
        ("a" * 256, "too long"),
    ):
        with pytest.raises(SystemExit) as stop:
            evaluate.main(["--ckpt", "no/such/checkpoint", "--images", str(tmp_path), "--out", str(out)])
        assert stop.value.code == 2
        message = capsys.readouterr().err
        assert words in message and "no/such" not in message
    assert (tmp_path / "file").read_text() == "mine"


def test_options_without_effect_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--predictions", "p.jsonl", "--limit", "3", "--batch-size", "0"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    for words in ("--limit has no effect with --predictions", "--batch-size must be at least 1"):
        assert words in error


def test_help_fits_a_page(capsys):
    for main in (evaluate.main, merge_adapter.main):
        with pytest.raises(SystemExit):
            main(["--help"])
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 100
