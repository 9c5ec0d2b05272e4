"""serve.py as a program: its options, and that stopping it under load loses no accepted request."""

import json
import os
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
import yaml

import serve
from tests.helpers.http_api import CLASSES, assert_equal, embedded_detector, file_of, shapes, upload
from tests.helpers.programs import running
from tests.helpers.records import ROOT
from tests.helpers.stated import stated_words

EMBEDDED = ROOT / "assets" / "tiny_qwen3_vl"


def test_all_options_that_cannot_be_used_are_listed_before_anything_is_loaded(capsys):
    words = ["--port", "70000", "--max-batch", "0", "--timeout", "nan", "--served-model", "x", "--max-wait-ms", "-1"]
    with pytest.raises(SystemExit) as exit_:
        serve.main(["--ckpt", "runs/absent", *words])
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    for part in ("--port", "--max-batch", "--timeout", "--served-model needs --server", "--max-wait-ms"):
        assert part in message
    with pytest.raises(SystemExit):
        serve.main(["--ckpt", "runs/absent", "--server", "localhost", "--precision", "nf4", "--workers", "2"])
    message = capsys.readouterr().err
    assert "must start with http" in message and "--precision has no effect" in message
    assert "--workers has no effect with --server" in message


def test_missing_packages_are_named_with_the_command_that_installs_them(monkeypatch, capsys):
    monkeypatch.setattr(serve, "NEEDED", ("json", "no_such_package"))
    with pytest.raises(SystemExit) as exit_:
        serve.main(["--ckpt", str(EMBEDDED)])
    assert exit_.value.code == 2
    assert 'no_such_package). Install them with pip install -e ".[serve]"' in capsys.readouterr().err


def test_other_machines_without_a_key_are_warned_of_and_a_key_that_no_header_can_hold_is_refused(monkeypatch, capsys):
    monkeypatch.delenv("BOXTUNE_API_KEY", raising=False)
    assert serve.read_key("127.0.0.1") == "" and capsys.readouterr().err == ""
    assert serve.read_key("0.0.0.0") == "" and "set BOXTUNE_API_KEY" in capsys.readouterr().err
    monkeypatch.setenv("BOXTUNE_API_KEY", " secret\n")
    assert serve.read_key("0.0.0.0") == "secret" and capsys.readouterr().err == ""
    monkeypatch.setenv("BOXTUNE_API_KEY", "schlüssel")
    with pytest.raises(serve.UserError, match="BOXTUNE_API_KEY contains"):
        serve.read_key("127.0.0.1")


@contextmanager
def served(log: Path, *words: str):
    """(the process, its address) of serve.py with the embedded model, once it is ready. It writes its log to a file."""
    command = [sys.executable, "serve.py", "--ckpt", str(EMBEDDED), *stated_words(), *words]
    environment = {key: value for key, value in os.environ.items() if key != "BOXTUNE_API_KEY"}
    with running(command, log, "/ready", environment) as server:
        yield server


@pytest.mark.slow
def test_sigterm_under_load_loses_no_accepted_request(tmp_path):
    images = shapes(24)

    def ask(image):
        return httpx2.post(
            f"{address}/detect", files=upload(file_of(image)), data={"classes": CLASSES}, timeout=240
        )  # a connection of its own

    words = ["--precision", "float32", "--max-new-tokens", "48", "--max-batch", "2"]
    with served(tmp_path / "log", *words) as (process, address), ThreadPoolExecutor(len(images)) as pool:
        asked = [pool.submit(ask, image) for image in images]
        deadline = time.monotonic() + 60
        while accepted(address) + sum(future.done() for future in asked) < len(images):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert not all(future.done() for future in asked), "the server was too fast for this test"
        process.send_signal(signal.SIGTERM)
        responses = [future.result() for future in asked]
        process.wait(timeout=60)
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{address}/health")
    assert process.returncode == -signal.SIGTERM and "Traceback" not in (tmp_path / "log").read_text()
    detector = embedded_detector()
    for response, image in zip(responses, images, strict=True):
        assert response.status_code == 200
        assert_equal(response.json(), detector(image))


def accepted(address: str) -> int:
    """Requests that the server has accepted and not yet answered."""
    metrics = httpx2.get(f"{address}/metrics", timeout=60).text
    return int(float(re.search(r"^boxtune_queue_length (\S+)", metrics, re.MULTILINE)[1]))


# ---- containers ----------------------------------------------------------------------------------------------------------


def test_the_containers_start_serve_py_with_options_that_it_has_and_from_files_that_exist():
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    entry, arguments = (json.loads(re.search(rf"^{name} (.*)$", dockerfile, re.M)[1]) for name in ("ENTRYPOINT", "CMD"))
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["boxtune"]["command"]
    assert entry[:2] == ["python", "serve.py"]
    for words in (arguments, compose):
        args = serve.parse_arguments([*entry[2:], *words], "")
        assert (args.host, args.port, args.ckpt) == ("0.0.0.0", 8080, "/model")
    sent = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
        if line[0] == "!"
    }
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", dockerfile, re.M) for name in line.split()}
    assert {name.split("/")[0] for name in copied} == sent and all((ROOT / name).exists() for name in copied)
