"""Checkpoints that another program trained, as Unsloth, ms-swift and LLaMA-Factory save them: no grounding.json."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import evaluate
import merge_adapter
from boxtune import Detector
from boxtune.answers.grounding import Grounding
from boxtune.answers.stated import Stated
from boxtune.common.errors import UserError
from boxtune.data.dataset import read_records
from boxtune.families import FAMILIES
from boxtune.models.checkpoint import load_checkpoint_model, open_checkpoint
from boxtune.models.merged_weights import compare_weights
from boxtune.models.merging import merge_shards
from boxtune.models.quantization import nf4_config
from tests.helpers.records import ROOT
from tests.helpers.training import train

BASE = str(ROOT / "assets" / "tiny_qwen3_vl")
# What another program does not write.
OURS = ("grounding.json", "run.json", "recipe.yaml", "first_batch.txt", "merge_report.json")
PROCESSOR_FILES = ("processor_config.json", "chat_template.jinja", "tokenizer_config.json", "tokenizer.json")
BRIEF = ("--max-new-tokens", "24", "--precision", "float32")


@pytest.fixture(scope="module")
def run(squares, tmp_path_factory) -> Path:
    """A run whose prompt is not the default one, with its merged model."""
    folder = tmp_path_factory.mktemp("run") / "run"
    run = train(squares, folder, "--learning_rate", "1e-3", "--lora_vision", "false", "--load_in_4bit", "false")
    replace(Grounding.load(run / "final"), system_prompt="Find things.").save(run / "final")
    merge_adapter.main(["--ckpt", str(run / "final"), "--samples", "1", "--skip-nf4"])
    return run


def foreign_copy(checkpoint: Path, folder: Path, without: tuple[str, ...] = ()) -> Path:
    """The checkpoint as another program would save it."""
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns(*OURS, *without))
    return folder


def words_for(checkpoint: Path, squares: Path) -> list[str]:
    """The options that state what grounding.json says."""
    known = Grounding.load(checkpoint)
    stated = ["--family", known.codec, "--system-prompt", known.system_prompt]
    stated += ["--format-sentence", known.format_sentence, "--max-pixels", str(known.max_pixels)]
    return [*stated, "--data", str(squares)]


def predictions(out: Path, *words: str) -> list[dict]:
    evaluate.main([*map(str, words), "--out", str(out), "--limit", "4", *BRIEF])
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def refusal(capsys, main, *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, words)])
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("kind", ["final", "final_merged"])
def test_predictions_equal_those_with_grounding_json(run, squares, tmp_path, kind):
    words = words_for(run / kind, squares)
    expected = predictions(tmp_path / "a", "--ckpt", run / kind)
    assert any(row["objects"]["bbox"] for row in expected) and not Grounding.load(run / kind).calibration
    assert predictions(tmp_path / "b", "--ckpt", foreign_copy(run / kind, tmp_path / "other"), *words) == expected


def test_an_adapter_without_processor_files_takes_those_of_its_base(run, squares, tmp_path):
    """As ms-swift saves it. LLaMA-Factory's tokenizer without an image processor is not used either."""
    expected = predictions(tmp_path / "a", "--ckpt", run / "final")
    words = words_for(run / "final", squares)
    for name, left_out in (("swift", PROCESSOR_FILES), ("factory", PROCESSOR_FILES[:2])):
        copy = foreign_copy(run / "final", tmp_path / name, without=left_out)
        (copy / "args.json").write_text('{"model": "x", "system": null}')
        assert predictions(tmp_path / f"{name}_out", "--ckpt", copy, *words) == expected


@pytest.mark.parametrize("kind", ["final", "final_merged"])
def test_without_the_options_the_message_holds_the_command_that_works(run, squares, tmp_path, capsys, kind):
    copy = foreign_copy(run / kind, tmp_path / "my model")
    (copy / "args.json").write_text(json.dumps({"system": "Find things.", "max_pixels": None}))
    common = ["--ckpt", copy, "--data", squares, "--limit", "4", *BRIEF, "--out", tmp_path / "out"]
    error = refusal(capsys, evaluate.main, *common)
    assert f"{copy} has no grounding.json" in error
    command = shlex.split(error.splitlines()[-1])
    assert command[:2] == ["python", "evaluate.py"]
    evaluate.main(command[2:])
    found = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    expected = predictions(tmp_path / "a", "--ckpt", run / kind)
    assert [row["text"] for row in found] == [row["text"] for row in expected]
    # What is stated already is kept, and not listed as missing.
    error = refusal(capsys, evaluate.main, *common, "--system-prompt", "")
    assert "State how it was trained: family, format_sentence, max_pixels." in error
    assert shlex.split(error.splitlines()[-1]).count("--system-prompt") == 1


def test_the_message_in_python_holds_the_call_that_works(run, squares, tmp_path):
    copy = foreign_copy(run / "final_merged", tmp_path / "model")
    with pytest.raises(UserError) as error:
        Detector.from_pretrained(copy, system_prompt="Find things.", precision="float32")
    call = str(error.value).splitlines()[-1].strip()
    assert re.match(r"Detector\.from_pretrained\('.*model', system_prompt='Find things.', family='qwen3_vl'", call)
    detector = eval(call.replace(")", ", precision='float32', max_new_tokens=24)"))  # its only parenthesis
    images = [record["image"] for record in read_records(squares, "test")[:2]]
    known = Detector.from_pretrained(run / "final_merged", precision="float32", max_new_tokens=24)
    classes = ["red square", "blue square"]
    assert [found.text for found in detector(images, classes=classes)] == [found.text for found in known(images)]
    with pytest.raises(UserError) as error:
        Detector.from_pretrained(copy, family="yolo")
    assert "family must be one of qwen2_vl" in error.value.problems[0]


def test_a_merged_adapter_remembers_what_was_stated(run, squares, tmp_path, capsys):
    copy = foreign_copy(run / "final", tmp_path / "adapter", without=PROCESSOR_FILES)
    out = tmp_path / "merged"
    error = refusal(capsys, merge_adapter.main, "--ckpt", copy, "--out", out)
    words = shlex.split(error.splitlines()[-1])
    assert words[:6] == ["python", "merge_adapter.py", "--ckpt", str(copy), "--out", str(out)]
    assert "give --data DIR to compare on" in refusal(capsys, merge_adapter.main, *words[2:])
    assert not out.exists()
    stated = words_for(run / "final", squares)
    merge_adapter.main(["--ckpt", str(copy), "--out", str(out), "--samples", "1", *stated])
    assert json.loads((out / "merge_report.json").read_text())["agrees"] is True
    assert Grounding.load(out).system_prompt == "Find things."
    data = ("--data", squares)
    assert predictions(tmp_path / "a", "--ckpt", out, *data) == predictions(
        tmp_path / "b", "--ckpt", run / "final_merged", *data
    )


def test_a_base_that_is_not_here_or_quantized_is_replaced(run, squares, tmp_path, capsys):
    copy = foreign_copy(run / "final", tmp_path / "adapter", without=PROCESSOR_FILES)
    config = json.loads((copy / "adapter_config.json").read_text())

    def name_base(base: str) -> None:
        (copy / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))

    # ModelScope's cache on another machine, as ms-swift writes it.
    name_base("/home/someone/.cache/modelscope/hub/models/Qwen/Qwen2___5-VL-7B-Instruct")
    error = refusal(capsys, evaluate.main, "--ckpt", copy, "--data", squares)
    assert "--base-model Qwen/Qwen2.5-VL-7B-Instruct --family qwen2_5_vl" in error
    words = [*words_for(run / "final", squares), "--base-model", BASE]
    assert predictions(tmp_path / "a", "--ckpt", copy, *words) == predictions(tmp_path / "b", "--ckpt", run / "final")

    # A base that was published in 4 bits, as Unsloth's are.
    quantized = tmp_path / "unsloth" / "tiny-unsloth-bnb-4bit"
    four_bits = nf4_config(FAMILIES["qwen3_vl"], "bfloat16")
    AutoModelForImageTextToText.from_pretrained(BASE, quantization_config=four_bits).save_pretrained(quantized)
    AutoProcessor.from_pretrained(BASE).save_pretrained(quantized)
    name_base(str(quantized))
    common = ["--ckpt", str(copy), *words[:-2], "--limit", "1", "--max-new-tokens", "8", "--out", str(tmp_path / "c")]
    assert "cannot run in float32; omit --precision" in refusal(
        capsys, evaluate.main, *common, "--precision", "float32"
    )
    evaluate.main(common)
    assert json.loads((tmp_path / "c" / "metrics.json").read_text())["parse"]["images"] == 1
    error = refusal(capsys, merge_adapter.main, "--ckpt", copy, "--out", tmp_path / "m", *words[:-2])
    assert (
        f"is quantized, and merging needs the weights that it was quantized from: add --base-model {quantized.parent}/tiny\n"
        in error
    )


def test_a_whole_model_without_processor_files_needs_the_model_that_has_them(run, squares, tmp_path, capsys):
    copy = foreign_copy(run / "final_merged", tmp_path / "model", without=PROCESSOR_FILES)
    words = words_for(run / "final_merged", squares)
    assert "State how it was trained: base_model." in refusal(capsys, evaluate.main, "--ckpt", copy, *words)
    expected = predictions(tmp_path / "a", "--ckpt", run / "final_merged")
    assert predictions(tmp_path / "b", "--ckpt", copy, *words, "--base-model", BASE) == expected


def test_another_familys_box_format_is_read_and_noted(run, squares, tmp_path, capsys):
    """Some trainers write coordinates from 0 to 1000 for a model of pixels."""
    copy = foreign_copy(run / "final_merged", tmp_path / "model")
    known = Grounding.load(run / "final_merged")
    found = open_checkpoint(str(copy), Stated("qwen2_5_vl", "", "", known.max_pixels))
    assert (found.grounding.codec, found.grounding.system_prompt, found.grounding.format_sentence) == (
        "qwen2_5_vl",
        "",
        "",
    )
    assert "reads boxes as qwen2_5_vl writes them, although the model is a qwen3_vl" in capsys.readouterr().err


def test_an_adapter_with_the_paths_of_an_earlier_transformers_is_read(tiny_models, tmp_path):
    """Before 4.52, the language model of Qwen2.5-VL was below `model`, and the vision tower beside it."""
    base = AutoModelForImageTextToText.from_pretrained(tiny_models["qwen2_5_vl"], dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=["q_proj", "qkv", "gate_proj"], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "new")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    weights = load_file(tmp_path / "new" / "adapter_model.safetensors")
    older = {re.sub(r"model\.(language_model|visual)", r"\1", key): tensor for key, tensor in weights.items()}
    older = {key.replace("base_model.model.language_model", "base_model.model.model"): older[key] for key in older}
    save_file(older, tmp_path / "old" / "adapter_model.safetensors", metadata={"format": "pt"})
    assert "base_model.model.visual.blocks.0.attn.qkv.lora_A.weight" in older and not older.keys() & weights.keys()

    opened = [open_checkpoint(str(tmp_path / name), Stated("qwen2_5_vl", "", "", 50_176)) for name in ("new", "old")]
    new, old = (load_checkpoint_model(checkpoint, "float32", "cpu").state_dict() for checkpoint in opened)
    assert new.keys() == old.keys() and all(torch.equal(old[key], tensor) for key, tensor in new.items())
    (tmp_path / "merged").mkdir()
    assert merge_shards(opened[1], tmp_path / "merged") == len(weights) // 2
    assert compare_weights(opened[0], tmp_path / "merged")["different"] == 0
    assert compare_weights(opened[1], tmp_path / "merged")["different"] == 0


def test_a_checkpoint_of_boxtune_takes_no_statement(run, capsys):
    error = refusal(capsys, evaluate.main, "--ckpt", run / "final", "--family", "qwen3_vl", "--system-prompt", "x")
    assert "was trained by boxtune, and its grounding.json states family, system_prompt; omit these" in error
    error = refusal(capsys, evaluate.main, "--predictions", "p.jsonl", "--family", "qwen3_vl")
    assert "--family has no effect with --predictions" in error
