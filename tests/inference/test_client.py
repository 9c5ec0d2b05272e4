"""Evaluation through a server: the same results as without one, and setups that would silently give wrong results."""

import json
import shutil
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import merge_adapter
from boxtune.answers.conversation import SYSTEM_PROMPT
from boxtune.answers.decoding import Decoding
from boxtune.common.errors import UserError
from boxtune.data.dataset import read_records
from boxtune.inference import server_connection
from boxtune.inference.chat_reply import place_pieces, read_log_odds
from boxtune.inference.client import ServerClient, answers_of_servers
from boxtune.inference.detector import Detector
from boxtune.inference.generation import generate_answers, token_spans
from boxtune.inference.server_connection import ServerConnection
from boxtune.models.checkpoint import load_checkpoint_model, open_checkpoint
from boxtune.models.loading import load_model
from tests.helpers.collators import make_collator
from tests.helpers.records import FAMILIES, ROOT
from tests.helpers.serving import Behaviour, lora_models, serving
from tests.helpers.stated import stated_words
from tests.helpers.training import train, tune

LIMIT = ["--max-new-tokens", "64", "--limit", "4"]
# Records on which adapter and base are compared. Both are certain about the first, which is empty.
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
    """(model, processor) of the adapter, loaded once for all servers of this file."""
    checkpoint = open_checkpoint(str(run / "final"))
    return load_checkpoint_model(checkpoint), checkpoint.processor


def read_lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


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


def test_a_served_adapter_gives_the_same_predictions_as_the_local_model(run, local, tuned, tmp_path):
    behaviour = Behaviour(lora_models(run), fail=[500, 429])
    with serving(behaviour, tuned) as url, pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_connection, "PAUSES", (0, 0))
        served = asked(url, run, tmp_path, "--served-model", "tuned", "--batch-size", "3")
    assert any(p["objects"]["bbox"] for p in local), "without boxes the comparison would be empty"
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


def test_two_servers_share_the_images(run, local, tuned, tmp_path, capsys):
    """Each gets some of them, both are checked, and an unreachable or repeated one is named."""
    behaviours = [Behaviour(lora_models(run)) for _ in range(2)]
    with serving(behaviours[0], tuned) as first, serving(behaviours[1], tuned) as second:
        urls = f"{first},{second}/"
        served = asked(urls, run, tmp_path / "out", "--served-model", "tuned", "--batch-size", "2")
        assert [line["text"] for line in served] == [line["text"] for line in local]
        for behaviour in behaviours:
            assert "tuned" in behaviour.asked and behaviour.asked.count("base") == PROBED
        metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert metrics["provenance"]["server"] == urls
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(server_connection, "PAUSES", ())
            words = (f"{first},http://localhost:9/v1", run, tmp_path, "--served-model", "tuned")
            assert "http://localhost:9" in refusal(capsys, *words)
        assert "twice" in refusal(capsys, f"{first},{first}/", run, tmp_path)
        detector = Detector.from_pretrained(run / "final", server=urls, served_model="tuned", trust_server=True)
        before = [len(behaviour.asked) for behaviour in behaviours]
        for _ in range(4):
            detector(Image.new("RGB", (64, 64)))
        assert [len(behaviour.asked) for behaviour in behaviours] == [count + 2 for count in before]


@pytest.mark.parametrize("settings", [{"repetition_penalty": 1.2}, {"ask": "each", "suppress_iou": 0.2}])
def test_decode_settings_of_the_checkpoint_hold_on_a_server_too(run, tuned, tmp_path, settings):
    """Texts, objects and problems are those of the local model."""
    shutil.copytree(run / "final", tmp_path / "run" / "final")
    tune(tmp_path / "run" / "final", **settings)
    words = ["--ckpt", str(tmp_path / "run" / "final"), *LIMIT, "--batch-size", "1"]
    evaluate.main([*words, "--out", str(tmp_path / "local")])
    with serving(Behaviour(lora_models(tmp_path / "run")), tuned) as url:
        evaluate.main([*words, "--server", url, "--served-model", "tuned", "--out", str(tmp_path / "served")])
    for ours, theirs in zip(read_lines(tmp_path / "local"), read_lines(tmp_path / "served"), strict=True):
        for key in ours.keys() - {"objects", "seconds"}:
            assert theirs[key] == ours[key], key
        assert theirs["objects"]["bbox"] == ours["objects"]["bbox"]
        assert theirs["objects"]["score"] == pytest.approx(ours["objects"]["score"], abs=1e-3)
    assert (
        json.loads((tmp_path / "served" / "metrics.json").read_text())["provenance"]["decoding"].items()
        >= settings.items()
    )


def test_the_verifier_asks_the_server_and_gives_the_scores_of_the_local_model(squares):
    """The embedded model was pretrained with such questions, so both answers are among the 20 tokens that a server lists."""
    folder = ROOT / "assets" / "tiny_qwen3_vl"
    collator, other = (
        make_collator(folder, squares, system_prompt=SYSTEM_PROMPT, min_pixels=4096, max_pixels=50176) for _ in range(2)
    )
    collator.grounding = replace(collator.grounding, decoding=Decoding(verify=True))
    model, records = load_model(str(folder), dtype=torch.float32).eval(), read_records(squares, "test")[1:3]
    local = {line["id"]: line["objects"] for line in generate_answers(model, collator, records, 2)}
    assert sum(len(objects["score_verify"]) for objects in local.values()) > 1
    with serving(Behaviour([]), (model, other.processor)) as url:
        served = ServerClient(url, {"id": "tuned"}, collator)
        for line in answers_of_servers([served], records, requests=1):
            objects = line["objects"]
            assert objects["bbox"] == local[line["id"]]["bbox"] and objects["score"] == objects["score_verify"]
            assert objects["score"] == pytest.approx(local[line["id"]]["score"], abs=1e-3)
    with (
        serving(Behaviour([], log_probs=False), (model, other.processor)) as url,
        pytest.raises(UserError, match=f"verify: {url} gives no log-probabilities"),
    ):
        list(answers_of_servers([ServerClient(url, {"id": "tuned"}, collator)], records, requests=1))


def test_a_checkpoint_to_which_neither_answer_is_probable_is_refused():
    rows = [{"token": token, "logprob": value} for token, value in {"[": -0.1, "{": -9.0}.items()]
    reply = {"choices": [{"logprobs": {"content": [rows[0] | {"top_logprobs": rows}]}}]}
    with pytest.raises(UserError, match="verify: neither 'Yes' nor 'No' is among the 2 most probable tokens"):
        read_log_odds(reply, "Yes", "No", "http://server")


@pytest.mark.parametrize(
    ("listed", "log_odds"),
    [
        ({"Yes": -0.1, "No": -2.5, "[": -9.0}, 2.4),
        ({"Yes": -0.1, "[": -9.0}, 8.9),  # "No" has less than what is listed last
        ({"No": -0.1, "[": -9.0}, -8.9),
    ],
)
def test_an_answer_that_the_server_does_not_list_counts_as_its_least_probable_one(listed, log_odds):
    rows = [{"token": token, "logprob": value} for token, value in listed.items()]
    reply = {"choices": [{"logprobs": {"content": [rows[0] | {"top_logprobs": rows}]}}]}
    assert read_log_odds(reply, "Yes", "No", "http://server") == pytest.approx(log_odds)


@pytest.mark.parametrize(
    "reply", [{}, {"choices": []}, {"choices": [{"logprobs": {"content": [{"top_logprobs": [1]}]}}]}]
)
def test_a_reply_of_another_format_is_named(reply):
    with pytest.raises(UserError, match="http://server does not respond in the format of OpenAI's chat API"):
        read_log_odds(reply, "Yes", "No", "http://server")


def test_an_interrupted_evaluation_continues_with_the_missing_records(run, local, tuned, tmp_path, capsys):
    call = ["--served-model", "tuned", "--batch-size", "1"]
    behaviour = Behaviour(lora_models(run))
    with serving(behaviour, tuned) as url, pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_connection, "PAUSES", ())
        behaviour.fail = [503, *[200] * (2 * PROBED + 2)]  # from the end: comparison with the base, two records
        error = refusal(capsys, url, run, tmp_path, *call)
        assert "503" in error and "the engine is busy" in error and "continue where it stopped" in error
        assert not (tmp_path / "predictions.jsonl").exists()
        before = len(behaviour.asked)
        served = asked(url, run, tmp_path, *call)
        # A request that was running when another failed may have reached the server after `before` was counted.
        assert len(behaviour.asked) - before in (len(local), len(local) + 1)
    assert [p["text"] for p in served] == [p["text"] for p in local]


@pytest.mark.slow
def test_a_merged_model_is_accepted_as_its_adapter_and_the_base_is_not(run, tuned, squares, tmp_path, capsys):
    merged = tmp_path / "merged"
    merge_adapter.main(["--ckpt", str(run / "final"), "--out", str(merged), "--samples", "1", "--skip-nf4"])
    with serving(Behaviour([{"id": "tuned", "root": str(merged), "parent": None}]), tuned) as url:
        assert len(asked(url, run, tmp_path / "out")) == 4
        tune(merged, repetition_penalty=1.1)  # after merging: the weights are still those of the adapter
        assert len(asked(url, run, tmp_path / "out")) == 4
        evaluate.main(["--ckpt", str(merged), "--server", url, "--out", str(tmp_path / "m"), *LIMIT])
        with pytest.raises(SystemExit):
            base, data = str(ROOT / "assets/tiny_qwen3_vl"), ["--data", str(squares)]
            evaluate.main(["--ckpt", base, "--server", url, "--out", str(tmp_path / "no"), *data, *stated_words()])
        assert f"is served from {merged}, not from {base}" in capsys.readouterr().err
    for models in (lora_models(run)[:1], [{"id": "base"}]):
        with serving(Behaviour(models), tuned) as url:
            error = refusal(capsys, url, run, tmp_path / "no")
            assert "is not an adapter" in error and "--lora-modules" in error and "--trust-server" in error
            assert len(asked(url, run, tmp_path / f"trusted{len(models[0])}", "--trust-server")) == 4
    assert not (tmp_path / "no" / "predictions.jsonl").exists()


def test_another_adapter_under_the_same_name_is_refused(run, tuned, tmp_path, capsys):
    models = [{"id": "tuned", "root": str(run / "checkpoint-1"), "parent": "base"}]
    folder = run / "checkpoint-1"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights of an earlier step")
    with serving(Behaviour(models), tuned) as url:
        assert "its weights differ from those of" in refusal(capsys, url, run, tmp_path)


def test_an_adapter_of_the_vision_tower_is_refused_because_the_server_may_ignore_it(run, tuned, tmp_path, capsys):
    final = tmp_path / "final"
    shutil.copytree(run / "final", final)
    config = json.loads((final / "adapter_config.json").read_text())
    config["target_modules"] += r"|model\.visual\..*\.qkv"
    (final / "adapter_config.json").write_text(json.dumps(config))
    with serving(Behaviour(lora_models(tmp_path)), tuned) as url:
        assert "--enable-tower-connector-lora" in refusal(capsys, url, tmp_path, tmp_path, "--served-model", "tuned")
    (final / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": ["model.visual.merger"]}))
    with serving(Behaviour(lora_models(tmp_path)), tuned) as url:
        assert "modules that were trained whole" in refusal(capsys, url, tmp_path, tmp_path, "--served-model", "tuned")


def test_an_adapter_without_effect_is_refused(run, tuned, tmp_path, capsys):
    """The server lists the adapter but does not apply it."""
    with serving(Behaviour(lora_models(run), adapter=False), tuned) as url:
        error = refusal(capsys, url, run, tmp_path, "--served-model", "tuned")
    assert "the server ignores the adapter" in error


def test_a_server_that_resizes_images_is_refused_at_its_first_response(run, tuned, tmp_path, capsys):
    behaviour = Behaviour(lora_models(run), max_pixels=128 * 128)
    with serving(behaviour, tuned) as url:
        error = refusal(capsys, url, run, tmp_path, "--served-model", "tuned", "--trust-server")
    assert "another pixel budget" in error and "another chat template" in error
    assert len(behaviour.asked) == 1


def test_a_server_that_reports_no_prompt_length_or_log_probabilities(run, local, tuned, tmp_path, capsys):
    call = ["--served-model", "tuned"]
    with serving(Behaviour(lora_models(run), usage=False, log_probs=False), tuned) as url:
        assert "does not report the number of prompt tokens" in refusal(capsys, url, run, tmp_path, *call)
        served = asked(url, run, tmp_path, *call, "--trust-server")
    assert "gives no log-probabilities" in capsys.readouterr().err
    for ours, theirs in zip(local, served, strict=True):
        assert theirs["text"].startswith(ours["text"])  # loops are detected in tokens, which this server does not list
        assert set(theirs["objects"]["score"]) <= {1.0}


def test_an_unreachable_server_or_an_unknown_model_is_an_error(run, tuned, tmp_path, capsys):
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
def test_an_incomplete_response_is_retried_unless_the_caller_gave_up(status, given_up):
    request = {"model": "m", "messages": []}
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
        patch.setattr(server_connection, "PAUSES", (0,))
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{http_server.server_port}"
        if given_up:
            with pytest.raises(UserError, match=r"cannot be reached|answered 503"):
                ServerConnection(address).complete_chat(request, event)
        else:
            assert ServerConnection(address).complete_chat(request, event) == {}
        assert len(replies) == given_up
        http_server.shutdown()


@pytest.mark.parametrize("key", ["secret", None])
def test_a_request_carries_the_key_and_the_fields_that_openai_lacks(tiny_models, squares, monkeypatch, key):
    if key is None:
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    else:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, self.headers["Authorization"], body))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"choices": [{"message": {"content": "[]"}, "finish_reason": "stop"}]}')

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        collator = make_collator(tiny_models["qwen3_vl"], squares)
        client = ServerClient(f"http://127.0.0.1:{http_server.server_port}/v1", {"id": "m"}, collator)
        assert client.ask([{"role": "user", "content": "Where?"}], "m").text == "[]"
        http_server.shutdown()
    ((path, authorization, body),) = requests
    assert path == "/v1/chat/completions" and authorization == (f"Bearer {key}" if key else None)
    assert body["model"] == "m" and body["temperature"] == 0 and body["repetition_penalty"] == 1.0
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["skip_special_tokens"] is False and body["spaces_between_special_tokens"] is False


def test_a_redirect_is_not_followed(monkeypatch):
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
            ServerConnection(f"http://127.0.0.1:{http_server.server_port}/v1").list_models()
        http_server.shutdown()
    assert seen == ["/v1/models"]


def test_a_key_that_cannot_be_sent_is_an_error(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "“secret”")
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        ServerConnection("http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    "reply",
    [
        {"choices": [{"message": {"content": ["a"]}, "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": [1]},
    ],
)
def test_a_response_in_another_format_is_an_error(tiny_models, squares, monkeypatch, reply):
    monkeypatch.setattr(ServerConnection, "complete_chat", lambda *_: reply)
    client = ServerClient("http://there/v1", {"id": "m"}, make_collator(tiny_models["qwen3_vl"], squares))
    with pytest.raises(UserError, match="does not respond in the format of OpenAI's chat API"):
        client.ask([], "m")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_processor_does_not_change_a_resized_image(tiny_models, squares, family):
    collator = make_collator(tiny_models[family], squares, max_pixels=128 * 128)
    for record in read_records(squares, "test"):
        there = collator.processor.image_processor(
            images=[collator.resized(collator.load(record))], return_tensors="pt"
        )
        here, _ = collator.process_images([record])
        assert torch.equal(there["pixel_values"], here["pixel_values"])
        assert torch.equal(there["image_grid_thw"], here["image_grid_thw"])


@pytest.mark.parametrize("text", ["cat", "Fußgänger 歩行者", "🙂🙃 a", "<|box_start|>(1,2)", ""])
def test_pieces_have_the_spans_of_their_tokens(tiny_models, text):
    tokenizer = make_collator(tiny_models["qwen2_vl"], ".").tokenizer
    ids = tokenizer(text)["input_ids"]
    pieces = [tokenizer.decode([token]) for token in ids]
    found, expected = place_pieces(text, pieces), token_spans(tokenizer, ids)[1]
    whole = np.array(["\ufffd" not in piece for piece in pieces], dtype=bool)
    assert np.array_equal(found[whole], expected[whole])
    assert (found[:, 0] <= expected[:, 0]).all() and (found[:, 1] >= expected[:, 1]).all()
    with pytest.raises(UserError, match="log-probabilities are for the token"):
        place_pieces(f"a{text}", ["b", *pieces])
