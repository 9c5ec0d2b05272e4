"""Recipes, overlays and command lines: which value wins, and that every user error is one message with exit code 2."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import check_recipe
import train_sft
from boxtune.common.errors import UserError
from boxtune.models.checkpoint import open_checkpoint
from boxtune.models.config import load_config
from boxtune.training.recipe import RECIPES, fit_to_machine, load_recipe
from tests.helpers.records import ROOT
from tests.helpers.training import train


def test_later_sources_win(tmp_path):
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("learning_rate: 3e-4\nlora_r: 8\n")
    recipe = load_recipe(["--config", "tiny_nutrition_qlora", "--overlay", str(overlay), "--lora_r", "4"])
    assert recipe.training.learning_rate == 3e-4
    assert recipe.model.lora_r == 4
    assert recipe.values["lora_r"] == 4
    assert recipe.training.output_dir == "runs/tiny_nutrition_qlora-mine"


def test_recipe_headers_state_command_hardware_and_score():
    for path in [*RECIPES.glob("*.yaml"), *(RECIPES / "overlays").glob("*.yaml")]:
        header = path.read_text(encoding="utf-8").split("\n\n")[0]
        for word in ("make train", "Hardware:", "Score:"):
            if word == "Score:" and path.stem == "tiny" and path.parent.name == "overlays":
                continue
            assert word in header, f"the header of {path.name} does not contain {word!r}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "did you mean learning_rate?"),
        ("learning_rate: fast", "invalid float value: 'fast'"),
        ("learning_rate: [1", "not valid YAML"),
        ("learning_rate: 1\nlearning_rate: 2", "duplicate key: learning_rate"),
        ("- a\n- b", "must contain `key: value` lines"),
        ("lora_r: {a: 1}", "lora_r: {'a': 1} must be a plain value"),
        ("lora_r: [8, 16]", "must be a plain value"),
        ("learning_rate: null", "learning_rate: None must be a plain value"),
        ("run_name: 2026-02-30", "not valid YAML"),
        ("run_name: 2026-02-20", "must be a plain value or null"),
        ("answer: polygons", "polygons"),
        ("per_device_train_batch_size: 1.5", "invalid int value"),
        ("model_name_or_path: ./nowhere", "does not exist"),
        ("use_dora: true", "use_dora: True has no effect"),
        ("bnb_4bit_quant_type: fp4", "leave it at 'nf4'"),
        ("packing: true", "packing: True has no effect"),
        ("dtype: auto", "dtype: 'auto' must be one of"),
        ("use_peft: false", "4-bit weights cannot be trained"),
        ("early_stopping_patience: 2", "needs load_best_model_at_end"),
        ("augment: [crop, rotate]", "augment must be one of crop, flip, resize"),
        ("codec: morse", "codec: 'morse' must be one of qwen2_vl, qwen2_5_vl, qwen3_vl"),
        ("codec: qwen3_vl\nanswer: click", "codec: has no effect with answer: click"),
        ("tiles: 640\nanswer: click", "tiles: points of several tiles cannot be merged"),
        ("object_order: size", "size"),
        (
            "run_name: no",
            "run_name: False must be text. YAML reads an unquoted no, off, yes or on as a boolean; quote it",
        ),
        ("eval_strategy: yes", "eval_strategy: True must be text"),
        ("report_to: [no]", "report_to: [False] must be text"),
        ("torch_dtype: bfloat16", "did you mean dtype?"),
        ("evaluation_strategy: 'no'", "did you mean eval_strategy?"),
        ("max_seq_length: 512", "did you mean max_length?"),
        ("load_in_4bit: false\nquantize_vision: true", "quantize_vision: true has no effect"),
        (
            "lora_parts: [language_mlp, merger]\nlora_target_modules: [q_proj]",
            "lora_target_modules: conflicts with lora_parts",
        ),
        ("lora_parts: [language_mlp]\nlora_vision: true", "lora_vision: conflicts with lora_parts"),
        ("lora_llm_layers: 2", "lora_llm_layers: '2' could be a number or an index; write -2 for the last 2"),
        ("lora_vision_blocks: [3, -2]", "lora_vision_blocks: '-2' is neither -N"),
        (
            "lora_parts: [language_mlp, merger]\nlora_vision_blocks: -2",
            "lora_vision_blocks: has no effect, because lora_parts names no part of this tower; add vision_attention",
        ),
        ("lora_bias: lora_only", "lora_bias: lora_only cannot be trained with load_in_4bit: true"),
        ("load_in_4bit: false\ndtype: bfloat16\nlora_bias: all", "lora_bias: all needs dtype: float32"),
    ],
)
def test_error_in_yaml_is_reported_with_its_cause(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        recipe = load_recipe(["--config", "tiny_nutrition_qlora", "--overlay", str(path)])
        load_config(recipe.model.model_name_or_path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("lora_r", "0", "at least 1"),
        ("lora_dropout", ".nan", "from 0 to 1"),
        ("lora_target_modules", "[]", "at least one module"),
        ("lora_parts", "[]", "one or more of language_attention, language_linear_attention, language_mlp"),
        (
            "lora_parts",
            "[vision, merger]",
            "one or more of language_attention, language_linear_attention, language_mlp",
        ),
        ("learning_rate", "1e999", "above 0"),
        ("per_device_train_batch_size", "-1", "at least 1"),
        ("box_loss", "w1", "has no effect while iou_loss_weight is 0"),
        ("end_token_weight", ".nan", "0 or more, and finite"),
        ("end_token_weight", "-1", "0 or more, and finite"),
        ("max_steps", "-2", "-1 to train for num_train_epochs"),
        ("max_length", "0", "at least 1"),
        ("tiles", "31", "whole number of pixels, 32 or more"),
        ("seed", "4294967296", "from 0 to 4294967295"),
        ("min_pixels", "60000", "must not exceed max_pixels"),
        ("system_prompt", "'<|im_end|>'", "special token"),
    ],
)
def test_all_values_out_of_range_are_reported(tmp_path, key, value, rule):
    path = tmp_path / "mine.yaml"
    path.write_text(f"{key}: {value}\nweight_decay: -1")
    with pytest.raises(UserError, match=f"{key}: .*{rule}") as error:
        load_recipe(["--config", "tiny_nutrition_qlora", "--overlay", str(path)])
    assert "weight_decay: -1.0 must be 0 or more, and finite" in error.value.problems


def test_the_bounds_of_each_range_are_allowed():
    words = [
        "--grounding_mode",
        "policy",
        "--fn_loss_weight",
        "1",
        "--grounding_samples",
        "2",
        "--grounding_every",
        "1",
    ]
    words += ["--lora_r", "1", "--lora_dropout", "1", "--adam_beta1", "0", "--weight_decay", "0", "--eval_images", "0"]
    recipe = load_recipe(["--config", "tiny_nutrition_qlora", *words, "--eval_strategy", "no"])
    assert (recipe.options.grounding_samples, recipe.model.lora_r, recipe.model.lora_dropout) == (2, 1, 1.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--metric_for_best_model", "eval_fp"], "greater_is_better: set it to false with fp"),
        (["--overlay", "quality", "--metric_for_best_model", "AP50"], "greater_is_better: set it to true with AP50"),
        (["--metric_for_best_model", "eval_loss", "--greater_is_better", "true"], "set it to false with loss"),
        (["--grounding_mode", "policy", "--iou_loss_weight", "1", "--box_loss", "w1"], "box_loss: w1 has no effect"),
        (["--metric_for_best_model", "eval_ap50"], "'ap50' is not logged; choose one of AP, AP50"),
        (["--metric_for_best_model", "eval_AP50", "--answer", "click"], "points have no AP50; use f1"),
        (
            ["--metric_for_best_model", "eval_nonsense"],
            "'nonsense' is not logged; choose one of AP, AP50, f1, mean_iou, fp",
        ),
        (["--metric_for_best_model", "iou_loss"], "'iou_loss' is not logged; choose one of AP, AP50"),
        (["--metric_for_best_model", "iou_loss", "--iou_loss_weight", "0.5"], None),
        (["--metric_for_best_model", "eval_mean_token_accuracy"], None),
        (
            ["--overlay", "quality", "--metric_for_best_model", "eval_mean_token_accuracy"],
            "greater_is_better: set it to true with mean_token_accuracy",
        ),
        (["--metric_for_best_model", "eval_loss"], None),
        (["--metric_for_best_model", "eval_fn", "--greater_is_better", "false"], None),
        (["--overlay", "quality"], None),
    ],
)
def test_best_checkpoint_requires_a_logged_metric_and_its_direction(arguments, words):
    arguments = ["--config", "tiny_nutrition_qlora", *arguments]
    if words is None:
        load_recipe(arguments)
        return
    with pytest.raises(UserError) as error:
        load_recipe(arguments)
    assert words in str(error.value)


def test_value_rejected_by_a_library_is_reported_with_the_recipe(tmp_path):
    """transformers has no optimizer of this name, and TRL reports it when it creates its arguments."""
    path = tmp_path / "mine.yaml"
    path.write_text("optim: steepest")
    with pytest.raises(UserError, match=r"recipe tiny_nutrition_qlora-mine .* steepest"):
        load_recipe(["--config", "tiny_nutrition_qlora", "--overlay", str(path)])


def test_list_with_one_item_needs_no_brackets(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data_args: --copy-images\nlora_parts: merger")
    recipe = load_recipe(["--config", "tiny_nutrition_qlora", "--overlay", str(path)])
    assert recipe.options.data_args == ["--copy-images"]
    assert recipe.options.lora_parts == ["merger"]


@pytest.mark.parametrize(
    ("text", "words", "read"),
    [
        ("-2", ["--lora_llm_layers", "-2"], ["-2"]),
        ("20-23", ["--lora_llm_layers", "20-23"], ["20-23"]),
        ("last 2", ["--lora_llm_layers", "last 2"], ["last 2"]),
        ("0", ["--lora_llm_layers", "0"], ["0"]),
        ("[34, 35]", [], [34, 35]),
    ],
)
def test_layers_are_read_from_yaml_and_from_the_command_line(tmp_path, text, words, read):
    path = tmp_path / "mine.yaml"
    path.write_text(f"lora_llm_layers: {text}")
    for arguments in (["--overlay", str(path)], words):
        recipe = load_recipe(["--config", "tiny_nutrition_qlora", *arguments])
        assert recipe.options.lora_llm_layers == (read if arguments else None)


@pytest.mark.parametrize(
    ("arguments", "parts", "suffixes", "vision"),
    [
        ([], None, 7, True),
        (["--lora_parts", "merger", "vision_mlp"], ["merger", "vision_mlp"], None, False),
        (["--overlay", "quality"], ["language_attention", "language_mlp"], None, False),
        (["--overlay", "quality", "--lora_target_modules", "q_proj", "k_proj"], None, 2, False),
        (["--overlay", "quality", "--lora_parts", "merger"], ["merger"], None, False),
    ],
)
def test_later_lora_targets_replace_earlier_ones(arguments, parts, suffixes, vision):
    recipe = load_recipe(["--config", "tiny_nutrition_qlora", *arguments])
    options, modules = recipe.options, recipe.model.lora_target_modules
    assert (options.lora_parts, modules and len(modules), options.lora_vision) == (parts, suffixes, vision)
    assert ("lora_parts" in recipe.values, "lora_target_modules" in recipe.values) == (bool(parts), bool(suffixes))


def test_lora_keys_without_peft_are_a_note_not_an_error():
    options = ["--use_peft", "false", "--load_in_4bit", "false"]
    (note,) = load_recipe(["--config", "tiny_nutrition_qlora", *options]).notes
    for word in ("use_peft: false", "lora_r", "lora_target_modules", "lora_vision"):
        assert word in note
    assert load_recipe(["--config", "tiny_nutrition_qlora"]).notes == []


def test_sampling_keys_without_sampling_are_noted():
    options = ["--grounding_every", "5", "--iou_loss_weight", "1"]
    (note,) = load_recipe(["--config", "tiny_nutrition_qlora", *options]).notes
    assert "these keys have no effect: grounding_every" in note
    assert load_recipe(["--config", "tiny_nutrition_qlora", *options, "--grounding_mode", "policy"]).notes == []


def test_keys_of_a_head_that_is_not_there_are_named(tmp_path):
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("detection_queries: 50\n")
    words = ["--config", "tiny_nutrition_qlora", "--overlay", str(overlay)]
    notes = "\n".join(load_recipe(words).notes)
    assert "these keys have no effect: detection_queries" in notes
    used = load_recipe([*words, "--detection_head", "true"]).notes
    assert not any("no effect" in note for note in used)


def test_unquoted_no_in_yaml_is_the_word_no(tmp_path):
    """YAML 1.1 reads it as false."""
    path = tmp_path / "mine.yaml"
    path.write_text("eval_strategy: no\nsave_strategy: off\nlogging_strategy: no\ngradient_checkpointing: no\n")
    recipe = load_recipe(["--config", "tiny_nutrition_qlora", "--overlay", str(path)])
    training = recipe.training
    assert [training.eval_strategy, training.save_strategy, training.logging_strategy] == ["no"] * 3
    assert (recipe.values["eval_strategy"], recipe.values["gradient_checkpointing"]) == ("no", False)
    assert training.gradient_checkpointing is False


def test_keys_of_earlier_library_versions_are_named_as_they_are_today():
    with pytest.raises(UserError, match=r"unknown option --torch_dtype; did you mean --dtype\?"):
        load_recipe(["--config", "tiny_nutrition_qlora", "--torch_dtype", "bfloat16"])


def test_evaluation_uses_the_training_batch_size_unless_a_source_sets_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("per_device_eval_batch_size: 3\n")
    for arguments, size in [
        ([], 8),
        (["--per_device_train_batch_size", "1"], 1),
        (["--per_device_train_batch_size", "1", "--per_device_eval_batch_size", "4"], 4),
        (["--per_device_train_batch_size", "1", "--overlay", str(path)], 3),
    ]:
        training = load_recipe(["--config", "tiny_nutrition_qlora", *arguments]).training
        assert (training.per_device_eval_batch_size, training.eval_batch_size) == (size, size)


def test_all_unknown_keys_are_reported_at_once(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("lora_rr: 1\nmax_pixel: 2\n")
    with pytest.raises(UserError) as error:
        load_recipe(["--config", "tiny_nutrition_qlora", "--overlay", str(path), "--learning_rat", "1"])
    for word in ("lora_r?", "max_pixels?", "--learning_rate?"):
        assert word in str(error.value)


def test_unexpected_arguments_are_rejected():
    with pytest.raises(UserError, match=r"unexpected arguments 'small_gpu', 't4'.*commas"):
        load_recipe(["--config", "tiny_nutrition_qlora", "--overlay", "tiny", "small_gpu", "--max_steps", "1", "t4"])


def test_unknown_recipe_or_overlay_lists_the_available_ones():
    with pytest.raises(UserError, match=r"Did you mean nutrition_qlora\? Available: .*my_data"):
        load_recipe(["--config", "nutrition_qlra"])
    with pytest.raises(UserError, match="no overlay 'huge'"):
        load_recipe(["--config", "tiny_nutrition_qlora", "--overlay", "huge"])
    with pytest.raises(UserError, match=r"no recipe given\. Use --config"):
        load_recipe([])


def test_gpu_without_bf16_trains_in_fp16_with_a_note(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    values, notes = fit_to_machine({"bf16": True, "dtype": "bfloat16"})
    assert (values["bf16"], values["fp16"], values["dtype"]) == (False, True, "float16")
    assert len(notes) == 1
    assert "training in fp16 with fp32 adapters" in notes[0]
    chosen = {"bf16": True, "dtype": "bfloat16"}
    assert fit_to_machine(chosen, {"dtype", "bf16"}) == (chosen, []), "values of the command line are kept"


def test_negated_flag_is_saved_with_the_values():
    plain = load_recipe(["--config", "tiny_nutrition_qlora", "--gradient_checkpointing", "true"])
    assert plain.values["gradient_checkpointing"] is True
    recipe = load_recipe(["--config", "nutrition_qlora", "--overlay", "tiny", "--no_gradient_checkpointing"])
    assert recipe.training.gradient_checkpointing is False and recipe.values["gradient_checkpointing"] is False


def run(*arguments, script="train_sft.py", **options) -> subprocess.CompletedProcess:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, script, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, env=environment, **options)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "nutrition_qlora"], ["needs a CUDA GPU", "make train RECIPE=nutrition_qlora OVERLAY=tiny"]),
        (
            ["--config", "nutrition_qlora", "--requires_gpu", "false"],
            ["Qwen/Qwen2-VL-7B-Instruct is not in the local cache, and the Hugging Face Hub", "overlay tiny"],
        ),
        (
            ["--config", "my_data", "--overlay", "tiny", "--data_dir", "/nonexistent/x", "--data_format", "sketch"],
            ["sketch"],
        ),
    ],
)
def test_missing_gpu_model_or_data_format_is_one_message(arguments, words, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has the GPU that the recipe requires")
    with pytest.raises(SystemExit) as stopped:
        train_sft.main(arguments)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "Traceback" not in said
    for word in words:
        assert word in said


def test_full_disk_is_one_message_and_leaves_no_partial_checkpoint(squares, tmp_path):
    """A limit on file size simulates a full disk: the adapter exceeds it, the small files do not."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))

    result = run(
        *("--config", "tiny_nutrition_qlora", "--data_dir", squares, "--output_dir", tmp_path / "run"),
        *("--max_steps", 1, "--per_device_train_batch_size", 1, "--eval_strategy", "no", "--save_steps", 1),
        preexec_fn=limit,
    )
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert "could not be saved" in result.stderr
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.fixture(scope="module")
def resumable_run(squares, tmp_path_factory) -> Path:
    """A run of three steps with the checkpoints of the first two, as if interrupted, for tests that copy it."""
    folder = tmp_path_factory.mktemp("resumable") / "run"
    run = train(squares, folder, "--max_steps", 3, "--save_steps", 1, "--save_total_limit", 9)
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoint-3")
    return run


@pytest.mark.parametrize(
    ("damaged", "option"),
    [("trainer_state.json", []), ("optimizer.pt", []), ("adapter_model.safetensors", []), (None, ["--lora_r", 4])],
)
def test_checkpoint_that_cannot_be_resumed_is_one_message(resumable_run, squares, tmp_path, capsys, damaged, option):
    """The checkpoint is corrupt or was trained with another LoRA rank. The run folder stays unchanged."""
    run = tmp_path / "run"
    shutil.copytree(resumable_run, run)
    if damaged:
        (run / "checkpoint-2" / damaged).write_text("{")
    before = sorted(path.name for path in run.iterdir())
    with pytest.raises(SystemExit) as stop:
        train(squares, run, "--resume_from_checkpoint", run / "checkpoint-2", "--max_steps", 3, *option)
    assert stop.value.code == 2
    assert f"{run / 'checkpoint-2'}" in capsys.readouterr().err
    assert sorted(path.name for path in run.iterdir()) == before


def test_diverged_run_is_not_saved(squares, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train(squares, tmp_path / "run", "--learning_rate", "1e30", "--warmup_steps", 0, "--max_steps", 3)
    assert stop.value.code == 2
    assert "training diverged" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("*/adapter_model.safetensors"))


def test_data_dir_on_the_command_line_uses_the_data_of_the_recipe_not_of_the_overlay():
    own = load_recipe(["--config", "my_data", "--overlay", "tiny", "--data_dir", "data/my_data"]).options
    assert (own.data_format, own.data_source, own.data_dir) == ("auto", "path/to/annotations", "data/my_data")
    generated = load_recipe(["--config", "my_data", "--overlay", "tiny"]).options
    assert (generated.data_format, generated.data_source, generated.data_dir) == ("nutrition", None, "data/nutrition")
    arguments = ["--config", "grounding_qwen3vl", "--overlay", "tiny", "--data_format=coco", "--data_dir=x"]
    named = load_recipe(arguments).options
    assert (named.data_format, named.data_dir) == ("coco", "x")


def test_recipes_that_share_a_data_folder_generate_the_same_images():
    data_args = {}
    for path in [*RECIPES.glob("*.yaml"), *(RECIPES / "overlays").glob("*.yaml")]:
        values = yaml.safe_load(path.read_text())
        if values.get("data_format") == "nutrition":
            data_args.setdefault(values["data_dir"], set()).add(tuple(values["data_args"]))
    assert data_args and all(len(arguments) == 1 for arguments in data_args.values())


@pytest.mark.parametrize(
    ("main", "purpose"),
    [
        (train_sft.main, "trains with TRL's SFTTrainer"),
        (check_recipe.main, "decodes the supervised tokens back to boxes"),
    ],
)
def test_help_states_the_purpose_and_lists_recipes_and_boxtune_keys(capsys, main, purpose):
    for words in (["--help"], ["--config", "tiny_grounding", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert not stopped.value.code
        page = " ".join(capsys.readouterr().out.split())
        assert purpose in page and "--noise_objects" in page and "GIoU" in page
        if len(words) == 1:
            assert all(word in page for word in ("--config NAME", "nutrition_qlora", "small_gpu"))


@pytest.mark.parametrize("name", ["assets/tiny_qwen3_vl", "runs/mine/final"])
def test_a_missing_folder_of_the_repository_is_reported_with_the_current_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for load in (load_config, open_checkpoint):
        with pytest.raises(UserError) as error:
            load(name)
        assert f"no model at {name!r}: the folder does not exist" in str(error.value)
        assert f"relative to the repository root; the current folder is {tmp_path}" in str(error.value)
        assert ("train the model first" in str(error.value)) == name.startswith("runs/")


def test_make_help_lists_targets_and_recipes():
    result = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for word in ("train", "check", "eval", "merge", "test", "quality", "nutrition_qlora", "small_gpu"):
        assert word in result.stdout


def test_every_key_of_every_recipe_is_read():
    """Loading rejects unknown keys. This also checks that no key gets lost on the way."""
    for path in RECIPES.glob("*.yaml"):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        recipe = load_recipe(["--config", str(path), "--overlay", "tiny"])
        assert set(values) <= set(recipe.values)
