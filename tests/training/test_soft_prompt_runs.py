"""The soft prompt from the recipe to the merged model: what a run saves, resumes, refuses, and what the merged model answers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

import check_recipe
import merge_adapter
from boxtune.answers.grounding import Grounding
from boxtune.answers.virtual_tokens import split_soft_prompt, virtual_tokens
from boxtune.common.errors import UserError
from boxtune.data.dataset import read_records
from boxtune.inference.detector import Detector
from boxtune.inference.merge_check import compare, observe
from boxtune.inference.served_model import find_model
from boxtune.models import merging
from boxtune.models.checkpoint import open_checkpoint, weights_identity
from boxtune.models.merged_weights import compare_weights
from boxtune.models.soft_prompt import FILE_NAME, KEY, text_rows
from boxtune.training.recipe import load_recipe
from boxtune.training.soft_prompt import require_whole_embeddings
from tests.helpers.serving import Behaviour, lora_models, serving
from tests.helpers.soft_prompts import build_base
from tests.helpers.training import log_history, train, trainer_state

COUNT, TEXT = 4, "检测 red square"
PROMPT = ("--num_virtual_tokens", COUNT, "--prompt_tuning_init", "text", "--prompt_tuning_init_text", TEXT)
HEADS = ("untied", "tied")


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {head: build_base("qwen2_5_vl", head == "tied", folder / head) for head in HEADS}


@pytest.fixture(scope="module")
def runs(bases, squares, tmp_path_factory) -> dict[str, Path]:
    """{head: run folder} of NF4 + LoRA + soft prompt with short responses; the untied one has no other system prompt."""
    folder, trained = tmp_path_factory.mktemp("runs"), {}
    for head, base in bases.items():
        options = ["--model_name_or_path", base, *PROMPT, "--gradient_checkpointing", "true"]
        options += ["--learning_rate", 0.01, "--warmup_steps", 0]
        options += ["--system_prompt", ""] if head == "untied" else []
        trained[head] = train(squares, folder / head, *options)
        replace(Grounding.load(folder / head / "final"), max_new_tokens=12).save(folder / head / "final")
    return trained


@pytest.fixture(scope="module")
def images(squares) -> list[Path]:
    return [Path(record["image"]) for record in read_records(squares, "test")[1:4]]


def prompt_of(folder: Path) -> torch.Tensor:
    return load_file(folder / FILE_NAME)[KEY]


def copied(run: Path, folder: Path, **weights) -> Path:
    """A copy of the final adapter of a run. `weights`: {part of a key of its LoRA: factor}."""
    shutil.copytree(run / "final", folder)
    lora = load_file(folder / "adapter_model.safetensors")
    for part, factor in weights.items():
        lora |= {key: factor * tensor for key, tensor in lora.items() if part in key}
    save_file(lora, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


# ---- training --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_a_run_trains_the_tokens_of_its_text_and_saves_them_with_the_adapter(runs, bases, head):
    final = runs[head] / "final"
    tokens, text = split_soft_prompt(Grounding.load(final).system_prompt)
    assert tokens == virtual_tokens(COUNT) and bool(text) == (head == "tied")
    checkpoint = open_checkpoint(str(final))
    base = AutoModelForImageTextToText.from_pretrained(bases[head], dtype=torch.float32)
    rows, _ = text_rows(checkpoint.processor.tokenizer, TEXT, COUNT)
    moved = (prompt_of(final) - base.get_input_embeddings().weight[rows]).abs()
    # Two steps of Adam move each number by at most twice the learning rate.
    assert moved.max() < 0.021 and (moved.max(dim=1).values > 0.005).all()
    assert torch.equal(prompt_of(runs[head] / "checkpoint-2"), prompt_of(final))
    assert weights_identity(checkpoint)[FILE_NAME]
    assert f"system\n{''.join(tokens)}{text}<|im_end|>" in (final / "first_batch.txt").read_text()
    trained = json.loads((final / "run.json").read_text())["parameters"]["trainable"]
    lora = load_file(final / "adapter_model.safetensors").values()
    assert trained == sum(tensor.numel() for tensor in lora) + COUNT * 64


@pytest.mark.parametrize("adapter_dtype", ["float32", "bfloat16"])
def test_a_resumed_run_ends_with_the_prompt_of_an_uninterrupted_one(adapter_dtype, bases, squares, tmp_path):
    options = ["--model_name_or_path", bases["tied"], *PROMPT, "--adapter_dtype", adapter_dtype, "--lora_dropout", 0.1]
    options += ["--max_steps", 4, "--save_steps", 2, "--learning_rate", 0.01]
    run = train(squares, tmp_path / "run", *options)
    expected = prompt_of(run / "final")
    assert expected.dtype == getattr(torch, adapter_dtype)
    assert not torch.equal(expected, prompt_of(run / "checkpoint-2"))
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoint-4")
    train(squares, run, *options, "--resume_from_checkpoint", "true")
    assert torch.equal(prompt_of(run / "final"), expected)


def test_another_number_of_tokens_is_refused_when_a_run_is_resumed(bases, squares, tmp_path, capsys):
    options = ["--model_name_or_path", bases["untied"], *PROMPT, "--max_steps", 2, "--save_steps", 1]
    run = train(squares, tmp_path / "run", *options)
    shutil.rmtree(run / "checkpoint-2")
    shutil.rmtree(run / "final")
    for change, message in [
        (
            ["--num_virtual_tokens", 3],
            "must hold prompt_embeddings of shape [3, 64], but holds {'prompt_embeddings': [4, 64]}",
        ),
        (["--num_virtual_tokens", 0], "has a soft prompt"),
    ]:
        with pytest.raises(SystemExit) as stop:
            train(squares, run, *options, *change, "--resume_from_checkpoint", "true")
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_the_best_checkpoint_is_loaded_with_its_prompt(bases, squares, tmp_path):
    """Steps that are far too large make the model worse, so the last checkpoint is not the best."""
    options = ["--model_name_or_path", bases["untied"], *PROMPT, "--max_steps", 2, "--save_steps", 1]
    options += ["--eval_strategy", "steps", "--eval_steps", 1, "--learning_rate", 3.0, "--warmup_steps", 0]
    options += [
        "--lr_scheduler_type",
        "constant",
        "--load_best_model_at_end",
        "true",
        "--metric_for_best_model",
        "eval_loss",
    ]
    run = train(squares, tmp_path / "run", *options, "--greater_is_better", "false", "--save_total_limit", 9)
    best = Path(trainer_state(run)["best_model_checkpoint"])
    assert best.name == "checkpoint-1", [row for row in log_history(run) if "eval_loss" in row]
    assert torch.equal(prompt_of(run / "final"), prompt_of(best))
    assert not torch.equal(prompt_of(run / "final"), prompt_of(run / "checkpoint-2"))


# ---- recipe ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_virtual_tokens", "-1"], "num_virtual_tokens: -1 must be 0 or more"),
        (["--num_virtual_tokens", "4", "--prompt_tuning_init", "text"], "text needs prompt_tuning_init_text"),
        (
            ["--num_virtual_tokens", "4", "--prompt_tuning_init_text", "a"],
            "has no effect without prompt_tuning_init: text",
        ),
        (
            ["--num_virtual_tokens", "4", "--use_peft", "false", "--load_in_4bit", "false"],
            "set use_peft: true, or omit them",
        ),
        (["--system_prompt", "<|soft_prompt_0|> Hi"], "contains a special token"),
    ],
)
def test_values_without_effect_are_refused(words, message):
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        load_recipe(["--config", "tiny_nutrition_qlora", *words])


def test_a_soft_prompt_is_turned_off_by_its_number_alone():
    words = ["--config", "tiny_nutrition_qlora", "--prompt_tuning_init", "text", "--prompt_tuning_init_text", "a"]
    assert load_recipe([*words, "--num_virtual_tokens", "2"]).notes == []
    (note,) = load_recipe([*words, "--num_virtual_tokens", "0"]).notes
    assert note.endswith("have no effect: prompt_tuning_init, prompt_tuning_init_text")


def test_fsdp_is_refused(monkeypatch):
    recipes = [load_recipe(["--config", "tiny_nutrition_qlora", "--num_virtual_tokens", n]) for n in ("0", "4")]
    for recipe in recipes:
        require_whole_embeddings(recipe)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    require_whole_embeddings(recipes[0])
    with pytest.raises(UserError, match=r"FSDP shards them. Launch with recipes/accelerate/ddp.yaml"):
        require_whole_embeddings(recipes[1])


def test_the_check_counts_the_virtual_tokens_and_names_a_number_that_does_not_fit(squares, tmp_path, capsys):
    """The embedded model has 64 spare rows."""
    words = ["--config", "tiny_nutrition_qlora", "--data_dir", str(squares), "--output_dir", str(tmp_path)]
    longest = []
    for count in ("0", "64"):
        check_recipe.main([*words, "--num_virtual_tokens", count])
        longest.append(int(capsys.readouterr().out.partition("the longest has ")[2].partition(" tokens")[0]))
    assert longest[1] == longest[0] + 64
    with pytest.raises(SystemExit) as stop:
        check_recipe.main([*words, "--num_virtual_tokens", "65"])
    assert stop.value.code == 2 and "need 65 rows" in capsys.readouterr().err


# ---- the adapter -----------------------------------------------------------------------------------------------------------


def same(found, expected) -> bool:
    return all(
        a.text == b.text and a.scores.tolist() == b.scores.tolist() and a.boxes_xyxy.tolist() == b.boxes_xyxy.tolist()
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("head", HEADS)
def test_a_detector_switches_adapter_and_prompt_off_and_on(runs, bases, images, tmp_path, head):
    """The base has never seen the virtual tokens, and has the adapter's words and precision."""
    adapter = copied(runs[head], tmp_path / "adapter", lora_B=30)
    base = tmp_path / "base"
    shutil.copytree(bases[head], base)
    grounding = Grounding.load(adapter)
    replace(grounding, system_prompt=split_soft_prompt(grounding.system_prompt)[1]).save(base)
    expected = Detector.from_pretrained(base)(images)
    assert same(Detector.from_pretrained(adapter, adapted=False)(images), expected)
    detector = Detector.from_pretrained(adapter)
    tuned = detector(images)
    assert not same(tuned, expected)
    with detector.without_adapter() as base_detector:
        assert same(base_detector(images), expected)
        assert base_detector.grounding().system_prompt == Grounding.load(base).system_prompt
    assert same(detector(images), tuned)


def test_a_base_is_only_opened_for_an_adapter_that_is_loaded_here(runs, bases):
    with pytest.raises(UserError, match="adapted=False has no effect with server"):
        Detector.from_pretrained(runs["tied"] / "final", adapted=False, server="http://localhost:1/v1")
    with pytest.raises(UserError, match="is not an adapter, so it has no base"):
        Detector.from_pretrained(
            bases["tied"], adapted=False, family="qwen2_5_vl", system_prompt="", format_sentence="", max_pixels=50176
        )


def test_an_adapter_whose_prompt_is_incomplete_is_refused(runs, tmp_path):
    def spoil(name: str, message: str, change) -> None:
        folder = copied(runs["tied"], tmp_path / name)
        change(folder)
        with pytest.raises(UserError, match=message):
            Detector.from_pretrained(folder)

    def drop_tokens(folder: Path) -> None:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["added_tokens"] = [row for row in tokenizer["added_tokens"] if "soft_prompt" not in row["content"]]
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))

    def drop_prompt(folder: Path) -> None:
        replace(Grounding.load(folder), system_prompt="Find things.").save(folder)

    spoil("file", f"has no {FILE_NAME}", lambda folder: (folder / FILE_NAME).unlink())
    spoil("shape", "must hold", lambda folder: save_file({KEY: torch.zeros(COUNT, 32)}, folder / FILE_NAME))
    spoil("tokenizer", "tokenizer of .* lacks 4 of the 4 virtual tokens", drop_tokens)
    spoil("prompt", "does not begin with virtual tokens", drop_prompt)


# ---- the merged model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_the_merged_model_is_the_base_with_adapter_and_prompt(runs, squares, tmp_path, head):
    """Without a LoRA, nothing is rounded, so all logits are equal, those of the virtual tokens too.

    The prompt holds rows of tokens that responses consist of: a head that is still tied would write virtual tokens instead.
    """
    adapter, out = copied(runs[head], tmp_path / "adapter", lora_B=0), tmp_path / "merged"
    checkpoint = open_checkpoint(str(adapter))
    base = AutoModelForImageTextToText.from_pretrained(checkpoint.grounding.base_model, dtype=torch.float32)
    ids = checkpoint.processor.tokenizer.convert_tokens_to_ids(["1", "[", "<|im_end|>", '"'])
    save_file({KEY: base.get_input_embeddings().weight.detach()[ids] * 1.5}, adapter / FILE_NAME)
    merge_adapter.main(["--ckpt", str(adapter), "--out", str(out), "--samples", "2"])
    report = json.loads((out / "merge_report.json").read_text())
    assert report["agrees"]
    found = report["bf16_base_and_adapter"]
    assert found["logit_difference"] == 0 < found["adapter_moves_logits_by"] and found["same_answers"] == 2
    config = json.loads((out / "config.json").read_text())
    assert config["tie_word_embeddings"] is config["text_config"]["tie_word_embeddings"] is False
    assert Grounding.load(out).system_prompt == checkpoint.grounding.system_prompt
    assert not (out / FILE_NAME).exists()


@pytest.mark.parametrize("head", HEADS)
def test_a_merge_of_lora_and_prompt_agrees(runs, squares, tmp_path, head):
    adapter, out = copied(runs[head], tmp_path / "adapter", lora_B=1), tmp_path / "merged"
    merge_adapter.main(["--ckpt", str(adapter), "--out", str(out), "--samples", "1", "--skip-nf4"])
    found = json.loads((out / "merge_report.json").read_text())["bf16_base_and_adapter"]
    assert found["logit_difference"] < 0.05 < found["adapter_moves_logits_by"]


def test_a_wrong_row_and_a_wrong_head_are_found(runs, tmp_path):
    checkpoint = open_checkpoint(str(runs["tied"] / "final"))
    merging.merge_shards(checkpoint, tmp_path)
    assert compare_weights(checkpoint, tmp_path)["different"] == 0
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    embeddings, head = "model.embed_tokens.weight", "lm_head.weight"
    swapped = weights[embeddings].clone()
    ids = checkpoint.processor.tokenizer.convert_tokens_to_ids(virtual_tokens(COUNT))
    swapped[ids[:2]] = swapped[ids[1::-1]]
    neighbour = weights[embeddings].clone()
    neighbour[ids[-1] + 1] += 1
    for change, key in [
        ({embeddings: swapped}, embeddings),
        ({embeddings: neighbour}, embeddings),
        ({head: weights[embeddings].clone()}, head),
    ]:
        save_file(weights | change, file, metadata={"format": "pt"})
        assert compare_weights(checkpoint, tmp_path)["examples"] == [key]
    save_file({key: tensor for key, tensor in weights.items() if key != head}, file, metadata={"format": "pt"})
    assert compare_weights(checkpoint, tmp_path)["examples"] == [head]


def test_a_server_must_serve_the_merged_model(runs, tmp_path):
    final, merged = runs["untied"] / "final", tmp_path / "merged"
    checkpoint = open_checkpoint(str(final))
    merged.mkdir()
    merging.merge_shards(checkpoint, merged)
    with serving(Behaviour([*lora_models(runs["untied"]), {"id": "merged", "root": str(merged)}]), (None, None)) as url:
        for name in ("tuned", "base"):
            with pytest.raises(UserError, match=rf"soft prompt, which a server cannot add to '{name}'. Merge it"):
                find_model(url, name, str(final), checkpoint)
        assert find_model(url, "merged", str(final), checkpoint)["id"] == "merged"
    # The merged model and the adapter are asked with the same words.
    records = read_records(Path(checkpoint.grounding.data_dir), "test")[:1]
    observed = [observe(c, "bfloat16", records, Path()) for c in (open_checkpoint(str(merged)), checkpoint)]
    assert compare(*observed)["logit_difference"] < 0.05
