"""A real vLLM gives the results of generation here: a merged model, an adapter, and both with decode settings.

`make test-vllm` installs vLLM for the CPU into an environment of its own and runs this file. Elsewhere it is skipped.
"""

import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

import evaluate
import merge_adapter
from boxtune.data.dataset import write_dataset
from tests.helpers.programs import running
from tests.helpers.records import ROOT
from tests.helpers.training import train, tune

VLLM = os.environ.get("BOXTUNE_VLLM")  # the command `vllm` of its environment
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(VLLM is None, reason="needs vLLM in an environment of its own: make test-vllm"),
]
IMAGES = 24
EMBEDDED = ROOT / "assets" / "tiny_qwen3_vl"
# On a CPU, vLLM reserves memory for its cache, binds threads to cores, and compiles, unless told otherwise.
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Held-out images of the embedded model's pretraining, which it answers with many boxes."""
    from assets.pretraining_batches import held_out

    folder = tmp_path_factory.mktemp("data") / "scenes"
    splits = {}
    for split, seed in (("train", 11), ("test", 12)):
        splits[split] = held_out(IMAGES, seed)
        for i, record in enumerate(splits[split]):
            path = folder.parent / f"{split}_{i:02d}.png"
            record.pop("scenes")[-1].image.save(path)
            record |= {"id": path.stem, "image": str(path)}
    labels = {label for records in splits.values() for record in records for label in record["objects"]["category"]}
    write_dataset(folder, name="scenes", source_format="test", classes=sorted(labels), splits=splits, problems=[])
    return folder


@pytest.fixture(scope="module")
def run(scenes, tmp_path_factory) -> Path:
    """An adapter of the language model that changes the base a little, and the merged model beside it."""
    out = tmp_path_factory.mktemp("run") / "run"
    options = ("--lora_vision", "false", "--load_in_4bit", "false", "--max_pixels", 448 * 448)
    train(scenes, out, "--learning_rate", "1e-3", "--warmup_steps", 0, *options)
    merge_adapter.main(["--ckpt", str(out / "final"), "--out", str(out / "merged")])
    return out


@contextmanager
def serving(log: Path, *words: str):
    """The address of a vLLM that runs in the background."""
    command = [VLLM, "serve", *words, "--enforce-eager", "--max-model-len", "2048"]
    with running(command, log, "/health", os.environ | ENVIRONMENT) as (_, address):
        yield f"{address}/v1"


def results(checkpoint: Path, out: Path, *words: str) -> tuple[dict, list[dict]]:
    """(metrics, predictions) of evaluate.py."""
    evaluate.main(["--ckpt", str(checkpoint), "--out", str(out), "--batch-size", "4", *words])
    lines = (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads((out / "metrics.json").read_text(encoding="utf-8")), [json.loads(line) for line in lines]


def compare(checkpoint: Path, url: str, out: Path, *words: str) -> list[tuple[dict, dict]]:
    """The pairs of (local, served) predictions, whose metrics are equal."""
    local, here = results(checkpoint, out / "local", "--precision", "float32")
    served, there = results(checkpoint, out / "served", "--server", url, *words)
    assert {key: served["matching"][key] for key in ("tp", "fp", "fn")} == {
        key: local["matching"][key] for key in ("tp", "fp", "fn")
    }
    assert local["matching"]["tp"] > 5  # else equality would say little
    return list(zip(here, there, strict=True))


def texts_of(prediction: dict) -> list[str]:
    return [part["text"] for part in prediction["parts"]] if "parts" in prediction else [prediction["text"]]


SETTINGS = ({}, {"repetition_penalty": 1.05, "suppress_iou": 0.7, "score_threshold": 0.2}, {"ask": "each"})


def test_merged_model_gives_the_same_boxes_with_every_decode_setting(run, tmp_path):
    with serving(tmp_path / "vllm.log", str(run / "merged"), "--dtype", "float32") as url:
        for i, settings in enumerate(SETTINGS):
            tune(run / "merged", **settings)
            pairs = compare(run / "merged", url, tmp_path / str(i))
            assert [texts_of(there) for _, there in pairs] == [texts_of(here) for here, _ in pairs]
            for here, there in pairs:
                assert there["objects"]["score"] == pytest.approx(here["objects"]["score"], abs=0.02)
    tune(run / "merged")


def test_adapter_gives_the_same_boxes_without_merging(run, tmp_path):
    lora = ("--enable-lora", "--max-lora-rank", "64", "--lora-modules", f"tuned={run / 'final'}")
    tune(run / "final", repetition_penalty=1.05)
    with serving(tmp_path / "vllm.log", str(EMBEDDED), "--dtype", "float32", *lora) as url:
        pairs = compare(run / "final", url, tmp_path, "--served-model", "tuned")
    assert sum(texts_of(here) == texts_of(there) for here, there in pairs) == len(pairs)
