"""An OpenAI-compatible server on this machine that runs a tiny model."""

import base64
import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from PIL import Image

from tests.helpers.records import ROOT


class Behaviour:
    """What a test server does, and the names of the models that it was asked for.

    models: the content of /v1/models. adapter: whether the adapter has an effect. max_pixels: the server's pixel budget.
    fail: statuses of the next responses, taken from the end. usage, log_probs: whether responses contain these.
    """

    def __init__(self, models, adapter=True, max_pixels=50176, fail=(), usage=True, log_probs=True):
        self.models, self.adapter, self.max_pixels, self.fail = models, adapter, max_pixels, list(fail)
        self.usage, self.log_probs, self.asked, self.lock = usage, log_probs, [], threading.Lock()


@contextmanager
def serving(behaviour: Behaviour, tuned):
    """The address of an OpenAI-compatible server that uses the processor and `generate` of transformers."""
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
            options["repetition_penalty"] = float(body["repetition_penalty"])
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
            log_probs = logits[0].float().log_softmax(-1)  # before the penalty, as in vLLM
            best = log_probs.topk(body["top_logprobs"])
            rows = [
                {"token": tokenizer.decode(i), "logprob": p}
                for p, i in zip(*map(torch.Tensor.tolist, best), strict=True)
            ]
            chosen = {"token": tokenizer.decode(token), "logprob": log_probs[token].item()}
            content.append(chosen | {"top_logprobs": rows})
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


def lora_models(run: Path) -> list[dict]:
    """The content of /v1/models for an adapter and its base on vLLM."""
    base = {"id": "base", "root": str(ROOT / "assets/tiny_qwen3_vl"), "parent": None}
    return [base, {"id": "tuned", "root": str(run / "final"), "parent": "base"}]
