"""Runs that are cut, resumed, refused or begun again."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from safetensors.torch import load_file

from boxtune.data.dataset import read_records
from boxtune.training.run_folder import last_whole_checkpoint
from tests.helpers.records import ROOT
from tests.helpers.training import train


@pytest.mark.parametrize("adapter_dtype", ["float32", "bfloat16"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(adapter_dtype, squares, tmp_path):
    """Same data order, optimiser state, dropout and schedule: the weights agree to the bit on one machine."""
    options = ("--max_steps", 6, "--save_steps", 3, "--lora_dropout", 0.1, "--adapter_dtype", adapter_dtype)
    run = train(squares, tmp_path / "run", *options)
    reference = load_file(run / "final" / "adapter_model.safetensors")
    # As if killed while it was saving step 6: no final folder, a torn last checkpoint.
    shutil.rmtree(run / "final")
    (run / "checkpoint-6" / "trainer_state.json").unlink()
    train(squares, run, *options, "--resume_from_checkpoint", "true")
    resumed = load_file(run / "final" / "adapter_model.safetensors")
    assert {str(tensor.dtype) for tensor in resumed.values()} == {f"torch.{adapter_dtype}"}
    assert resumed.keys() == reference.keys()
    assert all(torch.equal(resumed[key], reference[key]) for key in reference)


# A loss that never changes: the first checkpoint stays the best.
STILL = ["--learning_rate", 1e-12, "--load_best_model_at_end", "true", "--metric_for_best_model", "eval_loss"]
STILL += ["--greater_is_better", "false"]


def test_a_resumed_run_goes_on_counting_with_the_patience_of_its_recipe(squares, tmp_path):
    """The best is step 1; three evaluations later patience ends. A lost count would end at 5, the old patience at 3."""
    options = [*STILL, "--eval_strategy", "steps", "--eval_steps", 1, "--save_steps", 1, "--save_total_limit", 9]
    options += ["--max_steps", 8, "--early_stopping_patience"]
    run = train(squares, tmp_path / "run", *options, 1)
    assert last_whole_checkpoint(run).name == "checkpoint-2"
    train(squares, run, *options, 3, "--resume_from_checkpoint", "true")
    assert last_whole_checkpoint(run).name == "checkpoint-4"


def test_an_interrupt_keeps_its_checkpoint_beside_the_best(squares, tmp_path, capsys):
    """With a limit of one checkpoint transformers ends by removing all but the best; nothing is evaluated any more."""
    options = [*STILL, "--max_steps", 400, "--eval_strategy", "epoch", "--save_strategy", "epoch"]
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
    last = last_whole_checkpoint(tmp_path / "run")
    assert last.name == f"checkpoint-{step}" and int(step) > steps
    logged = json.loads((last / "trainer_state.json").read_text())["log_history"]
    assert int(step) % steps == 0 or not any(row["step"] == int(step) for row in logged if "eval_loss" in row)


def test_a_resumption_that_is_refused_leaves_the_runs_record(squares, tmp_path, capsys):
    run = train(squares, tmp_path / "run")
    before = {name: (run / name).read_bytes() for name in ("recipe.yaml", "run.json", "first_batch.txt")}
    with pytest.raises(SystemExit) as error:
        train(squares, run, "--resume_from_checkpoint", "true", "--max_steps", 3, "--lora_parts", "merger")
    assert error.value.code == 2
    assert "checkpoint-2" in capsys.readouterr().err
    assert {name: (run / name).read_bytes() for name in before} == before


def test_an_existing_run_is_never_overwritten_unasked(squares, tmp_path, capsys):
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


def test_a_new_run_replaces_what_is_the_old_ones_and_nothing_else(squares, tmp_path):
    """A link goes and what it leads to stays, as does a note; what a killed run was saving does not end in the new model."""
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    for folder in (elsewhere, run / "checkpoint-7", run / "final.partial"):
        folder.mkdir(parents=True)
    (elsewhere / "config.json").write_text("{}")
    (run / "final_merged").symlink_to(elsewhere)
    (run / "eval_notes.txt").write_text("mine")
    (run / "final.partial" / "model.safetensors").write_text("of other weights")
    train(squares, run, "--overwrite_output_dir", "true")
    assert not (run / "final_merged").exists() and not (run / "checkpoint-7").exists()
    assert (elsewhere / "config.json").read_text() == "{}" and (run / "eval_notes.txt").read_text() == "mine"
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
        while "'loss'" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
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
    assert last_whole_checkpoint(tmp_path / "run") == checkpoint
