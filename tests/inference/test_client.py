"""Evaluation through a server: the same answers as here, and set-ups that would be wrong in silence."""

import base64
import io
import json
import shutil
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import merge_adapter
from boxtune.common.errors import UserError
from boxtune.data.records import read_records
from boxtune.inference import client as server
from boxtune.inference.client import place_pieces
from boxtune.inference.generation import token_spans
from boxtune.models.checkpoint import load_checkpoint_model, open_checkpoint
from tests.helpers.collators import make_collator
from tests.helpers.records import FAMILIES, ROOT
from tests.helpers.training import train

LIMIT = ["--max-new-tokens", "64", "--limit", "4"]
# Records that adapter and base are both asked: of the first, which is empty, both are certain.
PROBED = 2


@pytest.fixture(scope="module")
def run(squares, tmp_path_factory) -> Path:
    return train(squares, tmp_path_factory.mktemp("run") / "run", "--learning_rate", "1e-3", "--lora_vision", "false")


@pytest.fixture(scope="module")
def local(run) -> list[dict]:
    evaluate.main(["--ckpt", str(run / "final"), *LIMIT, "--batch-size", "1"])
    return read_lines(run / "eval")


@pytest.fixture(scope="module")
def tuned(run):
    """(model, processor) of the adapter, loaded once for every server of this file."""
    checkpoint = open_checkpoint(str(run / "final"))
    return load_checkpoint_model(checkpoint), checkpoint.processor


class Behaviour:
    """What /v1/models tells, whether the adapter takes part, the server's own pixel budget, and failures to begin with."""

    def __init__(self, models, adapter=True, max_pixels=50176, fail=(), usage=True, log_probs=True):
        self.models, self.adapter, self.max_pixels, self.fail = models, adapter, max_pixels, list(fail)
        self.usage, self.log_probs, self.asked, self.lock = usage, log_probs, [], threading.Lock()


@contextmanager
def serving(behaviour: Behaviour, tuned):
    """The address of an OpenAI-like server that asks transformers' own processor and `generate`."""
    model, processor = tuned

    def complete(body: dict) -> dict:
        with behaviour.lock:
            processor.image_processor.size = {"shortest_edge": 4096, "longest_edge": behaviour.max_pixels}
            for part in body["messages"][-1]["content"]:
                if part["type"] == "image_url":
                    data = base64.b64decode(part.pop("image_url")["url"].removeprefix("data:image/png;base64,"))
                    part |= {"type": "image", "image": Image.open(io.BytesIO(data))}
            inputs = processor.apply_chat_template(
                body["messages"], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
            options = {"max_new_tokens": body["max_tokens"], "do_sample": False, "output_logits": True}
            if behaviour.adapter and body["model"] == "tuned":
                output = model.generate(**inputs, **options, return_dict_in_generate=True)
            else:
                with model.disable_adapter():
                    output = model.generate(**inputs, **options, return_dict_in_generate=True)
            behaviour.asked.append(body["model"])
        prompt = inputs["input_ids"].shape[1]
        ids, tokenizer = output.sequences[0, prompt:].tolist(), processor.tokenizer
        ended = ids[-1] == tokenizer.eos_token_id
        content = []
        for token, logits in zip(ids, output.logits, strict=True):
            best = logits[0].float().log_softmax(-1).topk(body["top_logprobs"])
            rows = [
                {"token": tokenizer.decode(i), "logprob": p}
                for p, i in zip(*map(torch.Tensor.tolist, best), strict=True)
            ]
            assert rows[0]["token"] == tokenizer.decode(token)
            content.append(rows[0] | {"top_logprobs": rows})
        text = tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=body["skip_special_tokens"])
        choice = {"message": {"content": text}, "finish_reason": "stop" if ended else "length"}
        choice |= {"logprobs": {"content": content} if behaviour.log_probs else None}
        return {"choices": [choice]} | ({"usage": {"prompt_tokens": prompt}} if behaviour.usage else {})

    class Handler(BaseHTTPRequestHandler):
        def send(self, status: int, value: dict):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def do_GET(self):
            known = self.path == "/v1/models"
            self.send(200 if known else 404, {"data": behaviour.models} if known else {})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = behaviour.fail.pop() if behaviour.fail else 200
            self.send(status, complete(body) if status == 200 else {"error": {"message": "the engine is busy"}})

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}/v1"
        http_server.shutdown()


def read_lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def lora_models(run: Path) -> list[dict]:
    """As vLLM lists an adapter and its base."""
    base = {"id": "base", "root": str(ROOT / "assets/tiny_qwen3_vl"), "parent": None}
    return [base, {"id": "tuned", "root": str(run / "final"), "parent": "base"}]


def asked(url: str, run: Path, out: Path, *extra: str) -> list[dict]:
    evaluate.main(["--ckpt", str(run / "final"), "--server", url, "--out", str(out), *LIMIT, *extra])
    return read_lines(out)


def refusal(capsys, *call) -> str:
    with pytest.raises(SystemExit) as stop:
        asked(*call)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "error: " in error and "Traceback" not in error
    return error


def test_a_served_adapter_answers_as_the_local_model_does(run, local, tuned, tmp_path):
    behaviour = Behaviour(lora_models(run), fail=[500, 429])
    with serving(behaviour, tuned) as url, pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "PAUSES", (0, 0))
        served = asked(url, run, tmp_path, "--served-model", "tuned", "--batch-size", "3")
    assert any(p["objects"]["bbox"] for p in local), "answers without boxes would compare nothing"
    for ours, theirs in zip(local, served, strict=True):
        assert {k: v for k, v in ours.items() if k not in ("objects", "seconds")} == {
            k: v for k, v in theirs.items() if k not in ("objects", "seconds")
        }
        assert ours["objects"].keys() == theirs["objects"].keys()
        for key, column in ours["objects"].items():
            expected = pytest.approx(column, abs=1e-3) if key.startswith("score") else column
            assert theirs["objects"][key] == expected, key
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["provenance"]["base_precision"] is None and metrics["provenance"]["server"] == url
    assert behaviour.asked.count("base") == PROBED


def test_a_run_that_broke_goes_on_with_what_is_missing(run, local, tuned, tmp_path, capsys):
    call = ["--served-model", "tuned", "--batch-size", "1"]
    behaviour = Behaviour(lora_models(run))
    with serving(behaviour, tuned) as url, pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "PAUSES", ())
        behaviour.fail = [503, *[200] * (2 * PROBED + 2)]  # from the end: probes of adapter and base, two answers
        error = refusal(capsys, url, run, tmp_path, *call)
        assert "503" in error and "the engine is busy" in error and "goes on where it stopped" in error
        assert not (tmp_path / "predictions.jsonl").exists()
        before = len(behaviour.asked)
        served = asked(url, run, tmp_path, *call)
        # Nobody waits for a request that was under way when another failed; it may be answered after `before` was taken.
        assert len(behaviour.asked) - before in (len(local), len(local) + 1)
    assert [p["text"] for p in served] == [p["text"] for p in local]


@pytest.mark.slow
def test_a_merged_model_stands_for_its_adapter_and_the_base_does_not(run, tuned, squares, tmp_path, capsys):
    merged = tmp_path / "merged"
    merge_adapter.main(["--ckpt", str(run / "final"), "--out", str(merged), "--samples", "1", "--skip-nf4"])
    with serving(Behaviour([{"id": "tuned", "root": str(merged), "parent": None}]), tuned) as url:
        assert len(asked(url, run, tmp_path / "out")) == 4
        evaluate.main(["--ckpt", str(merged), "--server", url, "--out", str(tmp_path / "m"), *LIMIT])
        with pytest.raises(SystemExit):
            base, data = str(ROOT / "assets/tiny_qwen3_vl"), ["--data", str(squares)]
            evaluate.main(["--ckpt", base, "--server", url, "--out", str(tmp_path / "no"), *data])
        assert f"is served from {merged}, not from {base}" in capsys.readouterr().err
    for models in (lora_models(run)[:1], [{"id": "base"}]):
        with serving(Behaviour(models), tuned) as url:
            error = refusal(capsys, url, run, tmp_path / "no")
            assert "is no adapter" in error and "--lora-modules" in error and "--trust-server" in error
            assert len(asked(url, run, tmp_path / f"trusted{len(models[0])}", "--trust-server")) == 4
    assert not (tmp_path / "no" / "predictions.jsonl").exists()


def test_another_adapter_under_the_name_is_refused(run, tuned, tmp_path, capsys):
    models = [{"id": "tuned", "root": str(run / "checkpoint-1"), "parent": "base"}]
    folder = run / "checkpoint-1"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"of an earlier step")
    with serving(Behaviour(models), tuned) as url:
        assert "whose weights are not those of" in refusal(capsys, url, run, tmp_path)


def test_an_adapter_of_the_vision_tower_is_refused_where_the_server_may_leave_that_out(run, tuned, tmp_path, capsys):
    final = tmp_path / "final"
    shutil.copytree(run / "final", final)
    config = json.loads((final / "adapter_config.json").read_text())
    config["target_modules"] += r"|model\.visual\..*\.qkv"
    (final / "adapter_config.json").write_text(json.dumps(config))
    with serving(Behaviour(lora_models(tmp_path)), tuned) as url:
        assert "--enable-tower-connector-lora" in refusal(capsys, url, tmp_path, tmp_path, "--served-model", "tuned")


def test_an_adapter_without_effect_is_refused(run, tuned, tmp_path, capsys):
    """Listed, and yet nothing of it takes part."""
    with serving(Behaviour(lora_models(run), adapter=False), tuned) as url:
        error = refusal(capsys, url, run, tmp_path, "--served-model", "tuned")
    assert "the server ignores the adapter" in error


def test_a_server_that_resizes_pictures_is_refused_at_its_first_answer(run, tuned, tmp_path, capsys):
    behaviour = Behaviour(lora_models(run), max_pixels=128 * 128)
    with serving(behaviour, tuned) as url:
        error = refusal(capsys, url, run, tmp_path, "--served-model", "tuned", "--trust-server")
    assert "another pixel budget" in error and "another chat template" in error
    assert len(behaviour.asked) == 1


def test_what_a_server_does_not_tell(run, local, tuned, tmp_path, capsys):
    call = ["--served-model", "tuned"]
    with serving(Behaviour(lora_models(run), usage=False, log_probs=False), tuned) as url:
        assert "does not tell how many tokens" in refusal(capsys, url, run, tmp_path, *call)
        served = asked(url, run, tmp_path, *call, "--trust-server")
    assert "gives no log-probabilities" in capsys.readouterr().err
    for ours, theirs in zip(local, served, strict=True):
        assert theirs["text"].startswith(ours["text"])  # a loop is seen in the tokens only
        assert set(theirs["objects"]["score"]) <= {1.0}


def test_a_server_that_is_down_or_serves_something_else(run, tuned, tmp_path, capsys):
    with serving(Behaviour(lora_models(run)), tuned) as url:
        error = refusal(capsys, url, run, tmp_path, "--served-model", "other")
        assert "'other'" in error and "- base" in error and "- tuned" in error
        assert "serves several models" in refusal(capsys, url, run, tmp_path)
        assert "404" in refusal(capsys, url.removesuffix("/v1"), run, tmp_path)
    assert "cannot be reached" in refusal(capsys, url, run, tmp_path)
    assert "http://" in refusal(capsys, "localhost:8000", run, tmp_path)
    assert "--base has no effect with --server" in refusal(capsys, url, run, tmp_path, "--base")


@pytest.mark.parametrize("given_up", [False, True])
@pytest.mark.parametrize("status", [200, 503])
def test_a_reply_that_breaks_off_is_asked_for_again_while_somebody_waits(status, given_up):
    replies = [(status, 100), (200, 2)]
    event = threading.Event()
    if given_up:
        event.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            code, length = replies.pop(0)
            self.send_response(code)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "PAUSES", (0,))
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{http_server.server_port}"
        if given_up:
            with pytest.raises(UserError, match=r"cannot be reached|answered 503"):
                server._post(address, {}, event)
        else:
            assert server._post(address, {}, event) == {}
        assert len(replies) == given_up
        http_server.shutdown()


def test_a_redirect_gets_neither_the_key_nor_the_question(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match=r"redirects to .*/elsewhere"):
            server._request(f"http://127.0.0.1:{http_server.server_port}/v1/models")
        http_server.shutdown()
    assert seen == ["/v1/models"]


def test_a_key_that_no_header_can_carry_is_named(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "“secret”")
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        server._request("http://127.0.0.1:9/v1/models")


@pytest.mark.parametrize(
    "reply",
    [
        {"choices": [{"message": {"content": ["a"]}, "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": [1]},
    ],
)
def test_a_reply_of_another_shape_is_told_as_that(tiny_models, squares, monkeypatch, reply):
    monkeypatch.setattr(server, "_post", lambda *_: reply)
    asked = server.Served("http://there/v1", {"id": "m"}, make_collator(tiny_models["qwen3_vl"], squares))
    with pytest.raises(UserError, match="does not answer as OpenAI's chat does"):
        asked.ask([], "m")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_that_was_resized_here_is_left_as_it_is(tiny_models, squares, family):
    collator = make_collator(tiny_models[family], squares, max_pixels=128 * 128)
    for record in read_records(squares, "test"):
        there = collator.processor.image_processor(images=[collator.resized(record)], return_tensors="pt")
        here, _ = collator.process_images([record])
        assert torch.equal(there["pixel_values"], here["pixel_values"])
        assert torch.equal(there["image_grid_thw"], here["image_grid_thw"])


@pytest.mark.parametrize("text", ["cat", "Fußgänger 歩行者", "🙂🙃 a", "<|box_start|>(1,2)", ""])
def test_pieces_stand_where_the_tokens_do(tiny_models, text):
    tokenizer = make_collator(tiny_models["qwen2_vl"], ".").tokenizer
    ids = tokenizer(text)["input_ids"]
    pieces = [tokenizer.decode([token]) for token in ids]
    found, expected = place_pieces(text, pieces), token_spans(tokenizer, ids)[1]
    whole = np.array(["\ufffd" not in piece for piece in pieces], dtype=bool)
    assert np.array_equal(found[whole], expected[whole])
    assert (found[:, 0] <= expected[:, 0]).all() and (found[:, 1] >= expected[:, 1]).all()
    with pytest.raises(UserError, match="log-probabilities are of the token"):
        place_pieces(f"a{text}", ["b", *pieces])
