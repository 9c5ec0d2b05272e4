"""Runs that are interrupted, resumed, rejected or started over."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import merge_adapter
from benchmarks.kills import killed_like_uninterrupted
from boxtune.answers.grounding import Grounding
from boxtune.data.dataset import read_records
from boxtune.training.last_checkpoint import last_whole_checkpoint
from tests.helpers.records import ROOT
from tests.helpers.training import log_history, train


@pytest.mark.parametrize("adapter_dtype", ["float32", "bfloat16"])
def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_run(adapter_dtype, squares, tmp_path):
    """Data order, optimizer state, dropout and schedule are restored, so the weights are equal bit by bit on one machine."""
    options = ("--max_steps", 6, "--save_steps", 3, "--lora_dropout", 0.1, "--adapter_dtype", adapter_dtype)
    run = train(squares, tmp_path / "run", *options)
    reference = load_file(run / "final" / "adapter_model.safetensors")
    # As if killed while saving step 6: there is no final folder, and the last checkpoint is incomplete.
    shutil.rmtree(run / "final")
    (run / "checkpoint-6" / "trainer_state.json").unlink()
    train(squares, run, *options, "--resume_from_checkpoint", "true")
    resumed = load_file(run / "final" / "adapter_model.safetensors")
    assert {str(tensor.dtype) for tensor in resumed.values()} == {f"torch.{adapter_dtype}"}
    assert resumed.keys() == reference.keys()
    assert all(torch.equal(resumed[key], reference[key]) for key in reference)


def test_resumed_run_continues_in_its_phase(squares, tmp_path):
    """16 steps are an epoch. The run is interrupted in the first phase, whose frozen weights learn in the second."""
    phases = tmp_path / "phases.yaml"
    phases.write_text("phases: [{until: 0.1875, vision_lr: 0}, {until: 1, llm_lr: 1e-4, vision_lr: 1e-3}]\n")
    options = ["--max_steps", 5, "--save_steps", 1, "--save_total_limit", 9, "--lora_dropout", 0.1, "--merger_lr", 0]
    options += [
        "--lora_parts",
        "language_attention",
        "vision_mlp",
        "merger",
        "--vision_warmup_steps",
        5,
        "--llm_lr_tail",
        0.1,
    ]
    run = train(squares, tmp_path / "run", *options, overlay=phases)
    reference = load_file(run / "final" / "adapter_model.safetensors")
    rows = [row for row in log_history(run, 5) if "loss" in row]
    interrupt_at(run, 2)
    train(squares, run, *options, "--resume_from_checkpoint", "true", overlay=phases)
    resumed = load_file(run / "final" / "adapter_model.safetensors")
    assert all(torch.equal(resumed[key], reference[key]) for key in reference)
    keys = ("loss", "grad_norm", "learning_rate/vision", "learning_rate/llm", "weight_norm/vision")
    again = [row for row in log_history(run, 5) if "loss" in row]
    assert [[row[key] for key in keys] for row in again] == [[row[key] for key in keys] for row in rows]
    assert [row["learning_rate/vision"] > 0 for row in rows] == [False, False, False, True, True]
    changed = {key: weight.any().item() for key, weight in resumed.items() if "lora_B" in key}
    assert {any_change for key, any_change in changed.items() if "merger" in key} == {False}
    assert {any_change for key, any_change in changed.items() if "merger" not in key} == {True}


# The loss hardly changes, so the first checkpoint stays the best.
FIRST_IS_BEST = ["--learning_rate", 1e-12, "--load_best_model_at_end", "true", "--metric_for_best_model", "eval_loss"]
FIRST_IS_BEST += ["--greater_is_better", "false"]


def test_resumed_run_keeps_its_count_of_evaluations_but_uses_the_new_patience(squares, tmp_path):
    """Step 1 is the best, so a patience of 3 ends at step 4. A lost count would end at step 5, the old patience at step 3."""
    options = [
        *FIRST_IS_BEST,
        "--eval_strategy",
        "steps",
        "--eval_steps",
        1,
        "--save_steps",
        1,
        "--save_total_limit",
        9,
    ]
    options += ["--max_steps", 8, "--early_stopping_patience"]
    run = train(squares, tmp_path / "run", *options, 1)
    assert last_whole_checkpoint(run)[0].name == "checkpoint-2"
    train(squares, run, *options, 3, "--resume_from_checkpoint", "true")
    assert last_whole_checkpoint(run)[0].name == "checkpoint-4"


def test_interrupt_keeps_its_checkpoint_although_another_is_the_best(squares, tmp_path, capsys):
    """With save_total_limit 1, transformers would end by deleting all checkpoints but the best. No evaluation follows."""
    options = [*FIRST_IS_BEST, "--max_steps", 400, "--eval_strategy", "epoch", "--save_strategy", "epoch"]
    options += ["--save_total_limit", 1]
    steps = len(read_records(squares, "train"))

    def interrupt():
        while not (tmp_path / "run" / f"checkpoint-{steps}" / "trainer_state.json").is_file():
            time.sleep(0.05)
        time.sleep(0.3)  # somewhere in the second epoch
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(SystemExit) as stop:
        train(squares, tmp_path / "run", *options)
    assert stop.value.code == 130
    (step,) = re.findall(r"stopped at step (\d+)", capsys.readouterr().out)
    last, _ = last_whole_checkpoint(tmp_path / "run")
    assert last.name == f"checkpoint-{step}" and int(step) > steps
    evaluated = [row["step"] for row in log_history(tmp_path / "run", int(step)) if "eval_loss" in row]
    assert int(step) % steps == 0 or int(step) not in evaluated


def interrupt_at(run: Path, step: int) -> None:
    """Leave a run of which each step was saved as if it had been interrupted after `step`."""
    shutil.rmtree(run / "final")
    for checkpoint in run.glob("checkpoint-*"):
        if int(checkpoint.name.removeprefix("checkpoint-")) > step:
            shutil.rmtree(checkpoint)


def test_finished_run_is_not_resumed(squares, tmp_path, capsys):
    """Its learning rate is 0. The message says how to train on: from the merged model."""
    run = train(squares, tmp_path / "run", "--save_steps", 1)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    resume = ["--resume_from_checkpoint", "true"]
    for options in (
        [*resume, "--max_steps", 3],  # one more step
        [*resume, "--max_steps", -1, "--num_train_epochs", 9],
        resume,  # nothing left to do
        ["--resume_from_checkpoint", run / "checkpoint-2", "--output_dir", tmp_path / "other", "--max_steps", 3],
    ):
        with pytest.raises(SystemExit) as stop:
            train(squares, run, *options)
        assert stop.value.code == 2
        message = capsys.readouterr().err
        assert f"{run / 'checkpoint-2'} is the end of a finished run: 2 of 2 steps are done" in message
        assert f"make merge CKPT={run / 'final'}" in message
        assert f"--model_name_or_path {run / 'final_merged'} and another --output_dir" in message
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    # An earlier checkpoint of the run still has steps to do.
    train(squares, run, "--resume_from_checkpoint", run / "checkpoint-1")


def test_finished_run_without_final_model_names_its_last_checkpoint(squares, tmp_path, capsys):
    """As if saving the final model had failed. A checkpoint can be evaluated and merged like the final model."""
    run = train(squares, tmp_path / "run")
    shutil.rmtree(run / "final")
    with pytest.raises(SystemExit) as stop:
        train(squares, run, "--resume_from_checkpoint", "true")
    assert stop.value.code == 2
    assert f"make merge CKPT={run / 'checkpoint-2'}) and start a new run" in capsys.readouterr().err


@pytest.mark.slow
def test_new_run_starts_from_the_merged_model_of_a_finished_one(squares, tmp_path):
    """What the message about a finished run advises."""
    run = train(squares, tmp_path / "run")
    merge_adapter.main(["--ckpt", str(run / "final"), "--samples", "1", "--skip-nf4"])
    further = train(squares, tmp_path / "further", "--model_name_or_path", run / "final_merged")
    assert Grounding.load(further / "final").base_model == str(run / "final_merged")


def test_rejected_resumption_leaves_the_record_of_the_run_unchanged(squares, tmp_path, capsys):
    run = train(squares, tmp_path / "run", "--max_steps", 3, "--save_steps", 1, "--save_total_limit", 9)
    interrupt_at(run, 2)
    before = {name: (run / name).read_bytes() for name in ("recipe.yaml", "run.json", "first_batch.txt")}
    with pytest.raises(SystemExit) as error:
        train(squares, run, "--resume_from_checkpoint", "true", "--max_steps", 3, "--lora_parts", "merger")
    assert error.value.code == 2
    assert "checkpoint-2" in capsys.readouterr().err
    assert {name: (run / name).read_bytes() for name in before} == before


def test_existing_run_is_overwritten_only_with_overwrite_output_dir(squares, tmp_path, capsys):
    run = train(squares, tmp_path / "run")
    before = (run / "final" / "adapter_model.safetensors").stat().st_mtime_ns
    with pytest.raises(SystemExit) as stop:
        train(squares, tmp_path / "run")
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "--resume_from_checkpoint true" in message
    assert "--overwrite_output_dir true" in message
    assert (run / "final" / "adapter_model.safetensors").stat().st_mtime_ns == before
    train(squares, tmp_path / "run", "--overwrite_output_dir", "true")
    assert (run / "final" / "adapter_model.safetensors").stat().st_mtime_ns > before


def test_new_run_replaces_only_the_folders_of_the_old_run(squares, tmp_path):
    """A link is deleted, but neither its target nor the user's notes. The new model has no files of an interrupted save."""
    run, link_target = tmp_path / "run", tmp_path / "link_target"
    for folder in (link_target, run / "checkpoint-7", run / "final.partial"):
        folder.mkdir(parents=True)
    (link_target / "config.json").write_text("{}")
    (run / "final_merged").symlink_to(link_target)
    (run / "eval_notes.txt").write_text("my notes")
    (run / "final.partial" / "model.safetensors").write_text("other weights")
    train(squares, run, "--overwrite_output_dir", "true")
    assert not (run / "final_merged").exists() and not (run / "checkpoint-7").exists()
    assert (link_target / "config.json").read_text() == "{}" and (run / "eval_notes.txt").read_text() == "my notes"
    assert not (run / "final" / "model.safetensors").exists() and (run / "final" / "adapter_config.json").exists()


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_to_resume_from(squares, tmp_path):
    command = [sys.executable, "train_sft.py", "--config", "tiny_nutrition_qlora", "--data_dir", str(squares)]
    command += ["--output_dir", str(tmp_path / "run"), "--eval_strategy", "no", "--save_strategy", "no"]
    command += ["--per_device_train_batch_size", "1", "--max_steps", "4000", "--logging_steps", "1"]
    command += ["--dataloader_num_workers", "2"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        deadline = time.monotonic() + 120
        while ", learning rate" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.3)
        os.killpg(process.pid, signal.SIGTERM)  # as `timeout` and clusters do
        code = process.wait(timeout=60)
    text = (tmp_path / "log").read_text()
    assert code == 130, text
    assert "Traceback" not in text
    assert "--resume_from_checkpoint true" in text
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] >= 1
    assert (checkpoint / "grounding.json").is_file()
    assert last_whole_checkpoint(tmp_path / "run") == (checkpoint, [])


# ---- corrupt checkpoints and killed runs ---------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("adapter_model.safetensors", cut),
        ("optimizer.pt", cut),
        ("optimizer.pt", flip),
        ("trainer_state.json", cut),
        ("grounding.json", cut),
    ],
)
def test_a_corrupt_checkpoint_is_named_and_the_last_good_one_is_found(two_checkpoints, tmp_path, name, damage):
    run = shutil.copytree(two_checkpoints, tmp_path / "run")
    damage(run / "checkpoint-2" / name)
    checkpoint, [line] = last_whole_checkpoint(run)
    assert checkpoint == run / "checkpoint-1"
    assert line.startswith(f"{run / 'checkpoint-2'} is corrupt: {name}: ")
    damage(run / "checkpoint-1" / name)
    checkpoint, lines = last_whole_checkpoint(run)
    assert checkpoint is None and len(lines) == 2


@pytest.fixture(scope="module")
def two_checkpoints(squares, tmp_path_factory) -> Path:
    return train(squares, tmp_path_factory.mktemp("corrupt") / "run", "--save_steps", 1, "--save_total_limit", 9)


def test_resuming_passes_over_a_corrupt_checkpoint(two_checkpoints, squares, tmp_path, capsys):
    run = shutil.copytree(two_checkpoints, tmp_path / "run")
    cut(run / "checkpoint-2" / "adapter_model.safetensors")
    train(squares, run, "--save_steps", 1, "--save_total_limit", 9, "--resume_from_checkpoint", "true")
    printed = capsys.readouterr().out
    assert f"warning: {run / 'checkpoint-2'} is corrupt: adapter_model.safetensors: " in printed
    assert f"Resuming from {run / 'checkpoint-1'} instead" in printed
    final, reference = (load_file(folder / "final" / "adapter_model.safetensors") for folder in (run, two_checkpoints))
    assert all(torch.equal(final[key], reference[key]) for key in reference)


@pytest.mark.slow
def test_killed_runs_end_with_the_weights_of_an_uninterrupted_run(squares, tmp_path):
    assert killed_like_uninterrupted(squares, tmp_path, kills=1, seed=0) == 1
