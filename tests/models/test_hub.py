"""Pushing a model: the real hub library against a small server of this machine that speaks the hub's protocol."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import ModelCard

from boxtune.answers.grounding import Grounding
from boxtune.models.checkpoint import open_checkpoint
from boxtune.models.loading import commit_of
from tests.helpers.records import ROOT
from tests.helpers.training import train


class _Hub(BaseHTTPRequestHandler):
    """Keeps what is committed, whole, in `server.files`; answers no other question."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else self._chunks()
        address = f"http://{self.headers['Host']}"
        if self.path.endswith("/repos/create"):
            made = json.loads(body)
            self.server.made.append(made)
            answer = {"url": f"{address}/me/{made['name']}", "id": f"me/{made['name']}"}
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        elif self.path.endswith("/validate-yaml"):  # of the card's metadata
            answer = {"errors": [], "warnings": []}
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitUrl": f"{address}/me/x/commit/1", "commitOid": "1", "hookOutput": ""}
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body


def test_a_base_of_the_hub_is_remembered_by_its_commit(tmp_path, monkeypatch):
    """So that evaluation and merging do not follow a branch that has moved on."""
    commits = {"main": "0" * 40, "v2": "1" * 40}
    for branch, commit in commits.items():
        snapshot = tmp_path / "models--me--base" / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
        reference = tmp_path / "models--me--base" / "refs" / branch
        reference.parent.mkdir(exist_ok=True)
        reference.write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert commit_of("me/base") == commit_of("me/base", "main") == commits["main"]
    assert commit_of("me/base", "v2") == commit_of("me/base", commits["v2"]) == commits["v2"]
    assert commit_of(str(tmp_path)) is None


# False: without a network, which the hub's library tries several times.
@pytest.mark.parametrize("offline", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_model_in_the_cache_is_opened_as_it_was_taught_without_a_network(squares, tmp_path, monkeypatch, offline):
    run = train(squares, tmp_path / "run")
    snapshot = tmp_path / "models--me--finder" / "snapshots" / ("0" * 40)
    shutil.copytree(run / "final", snapshot)
    (tmp_path / "models--me--finder" / "refs").mkdir()
    (tmp_path / "models--me--finder" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    found = open_checkpoint("me/finder")
    assert found.adapter == snapshot and found.grounding == Grounding.load(run / "final")


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.made, server.files = [], {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def call(script: str, *words, **variables) -> subprocess.CompletedProcess:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    words = [sys.executable, str(ROOT / script), *map(str, words)]
    return subprocess.run(words, cwd=ROOT, env=kept | variables, capture_output=True, text=True, timeout=300)


def address(server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.mark.slow
def test_an_evaluated_model_is_pushed_with_a_card_that_tells_the_result(squares, tmp_path, hub):
    run = train(f"{squares}/", tmp_path / "run")
    words = ["--ckpt", run / "final", "--push-to-hub", "finder"]
    out = call("evaluate.py", *words, HF_ENDPOINT=address(hub), HF_TOKEN="hf_x", HF_HOME=str(tmp_path))
    assert out.returncode == 0, out.stderr
    assert f"pushed:  {address(hub)}/me/finder" in out.stdout
    assert hub.made[0]["name"] == "finder"
    assert hub.files.keys() >= {"README.md", "adapter_config.json", "adapter_model.safetensors", "grounding.json"}
    assert hub.files["adapter_model.safetensors"] == (run / "final" / "adapter_model.safetensors").read_bytes()
    (tmp_path / "card.md").write_bytes(hub.files["README.md"])
    results = ModelCard.load(tmp_path / "card.md").data.eval_results
    found = {result.metric_type: result.metric_value for result in results}
    matching = json.loads((run / "eval" / "metrics.json").read_text())["matching"]
    assert found["mean_iou"] == round(matching["mean_iou_gt"], 4)


@pytest.mark.slow
def test_training_pushes_where_somebody_is_logged_in_and_only_notes_where_nobody_is(squares, tmp_path, hub):
    words = ["--config", "tiny_nutrition_qlora", "--data_dir", squares, "--max_steps", 1, "--eval_strategy", "no"]
    words += ["--push_to_hub", "true", "--per_device_train_batch_size", 1]
    home = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": address(hub)}
    out = call("train_sft.py", *words, "--output_dir", tmp_path / "one", **home)
    assert out.returncode == 0, out.stderr
    assert "not logged in" in out.stdout and not hub.made
    out = call("train_sft.py", *words, "--output_dir", tmp_path / "two", HF_TOKEN="hf_x", **home)
    assert out.returncode == 0, out.stderr
    assert [made["name"] for made in hub.made] == ["two"] and f"pushed: {address(hub)}/me/two" in out.stdout
    assert hub.files["README.md"] == (tmp_path / "two" / "final" / "README.md").read_bytes()
    hub.shutdown()
    hub.server_close()
    out = call("train_sft.py", *words, "--output_dir", tmp_path / "three", HF_TOKEN="hf_x", **home)
    assert out.returncode == 0 and "trained:" in out.stdout
    assert "could not be pushed to three" in out.stderr and "Traceback" not in out.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, variables, message",
    [
        (["final", "--limit", "1"], {"HF_TOKEN": "hf_x"}, "Leave out --data, --limit"),
        (["checkpoint-1"], {"HF_TOKEN": "hf_x"}, "checkpoint-1 is no finished model"),
        (["final"], {}, "not logged in to the hub"),
    ],
)
def test_what_cannot_be_pushed_is_said_before_anything_is_generated(squares, tmp_path, words, variables, message):
    run = train(squares, tmp_path / "run", "--max_steps", 1, "--save_steps", 1)
    name, *options = words
    words = ["--ckpt", run / name, "--push-to-hub", "finder", *options]
    out = call("evaluate.py", *words, HF_HOME=str(tmp_path), **variables)
    assert out.returncode == 2 and message in out.stderr
    assert not (run / "eval").exists()
