"""The Hub: the real library against a small local server that speaks the Hub's protocol."""

import base64
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import ModelCard

import evaluate
from boxtune.answers.grounding import Grounding
from boxtune.models.checkpoint import open_checkpoint
from boxtune.models.hub import commit_of
from tests.helpers.training import train


class _Hub(BaseHTTPRequestHandler):
    """Keeps the committed files in `server.files` and the created repositories in `server.created`."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else self._chunks()
        address = f"http://{self.headers['Host']}"
        if self.path.endswith("/repos/create"):
            repository = json.loads(body)
            self.server.created.append(repository)
            answer = {"url": f"{address}/me/{repository['name']}", "id": f"me/{repository['name']}"}
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


def test_a_hub_base_is_identified_by_its_commit(tmp_path, monkeypatch):
    """Otherwise evaluation and merging would use another base after the branch has moved."""
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


# False: without a network, the Hub's library retries for several seconds.
@pytest.mark.parametrize("offline", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_cached_model_is_opened_without_a_network(squares, tmp_path, monkeypatch, offline):
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
def hub(tmp_path, monkeypatch):
    """A local Hub, used by this process, in which nobody is logged in."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.created, server.files = [], {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address(server))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    server.shutdown()


def address(server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_an_evaluated_model_is_pushed_with_its_results_in_the_card(squares, tmp_path, hub, monkeypatch, capsys):
    run = train(f"{squares}/", tmp_path / "run")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    evaluate.main(["--ckpt", str(run / "final"), "--push-to-hub", "finder"])
    assert f"pushed:  {address(hub)}/me/finder" in capsys.readouterr().out
    assert hub.created[0]["name"] == "finder"
    assert hub.files.keys() >= {"README.md", "adapter_config.json", "adapter_model.safetensors", "grounding.json"}
    assert hub.files["adapter_model.safetensors"] == (run / "final" / "adapter_model.safetensors").read_bytes()
    (tmp_path / "card.md").write_bytes(hub.files["README.md"])
    results = ModelCard.load(tmp_path / "card.md").data.eval_results
    found = {result.metric_type: result.metric_value for result in results}
    matching = json.loads((run / "eval" / "metrics.json").read_text())["matching"]
    assert found["mean_iou"] == round(matching["mean_iou_gt"], 4)


@pytest.mark.slow
def test_training_pushes_only_if_somebody_is_logged_in(squares, tmp_path, hub, monkeypatch, capsys):
    """The last run finds no Hub; its library waits several seconds for one."""
    options = ("--max_steps", 1, "--push_to_hub", "true")
    train(squares, tmp_path / "one", *options)
    assert "not logged in" in capsys.readouterr().out and not hub.created
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    train(squares, tmp_path / "two", *options)
    assert [repository["name"] for repository in hub.created] == ["two"]
    assert f"pushed: {address(hub)}/me/two" in capsys.readouterr().out
    assert hub.files["README.md"] == (tmp_path / "two" / "final" / "README.md").read_bytes()
    hub.shutdown()
    hub.server_close()
    train(squares, tmp_path / "three", *options)
    said = capsys.readouterr()
    assert "trained:" in said.out
    assert "could not be pushed to three" in said.err and "Traceback" not in said.err


def test_a_push_that_cannot_work_is_refused_before_generation(squares, tmp_path, monkeypatch, capsys):
    run = train(squares, tmp_path / "run", "--max_steps", 1, "--save_steps", 1)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def refusal(*arguments) -> str:
        with pytest.raises(SystemExit) as stopped:
            evaluate.main([*map(str, arguments), "--push-to-hub", "finder"])
        assert stopped.value.code == 2 and not (run / "eval").exists()
        return capsys.readouterr().err

    assert "not logged in to the Hub" in refusal("--ckpt", run / "final")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert "Leave out --data, --limit" in refusal("--ckpt", run / "final", "--limit", 1)
    assert "checkpoint-1 is not a finished model" in refusal("--ckpt", run / "checkpoint-1")
