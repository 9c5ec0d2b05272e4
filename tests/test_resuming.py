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
from conftest import ROOT
from safetensors.torch import load_file
from training import train

from boxtune.records import read_records
from boxtune.run_folder import last_whole_checkpoint


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(squares, tmp_path):
    """Same data order, optimiser state, dropout and schedule: the weights agree to the bit on one machine."""
    steps = ("--max_steps", 6, "--save_steps", 3, "--lora_dropout", 0.1)
    whole = train(squares, tmp_path / "whole", *steps)
    cut = train(squares, tmp_path / "cut", *steps)
    reference = load_file(whole / "final" / "adapter_model.safetensors")
    # Make `cut` look killed while it was saving step 6: no final folder, a torn last checkpoint.
    for name in ("final", "checkpoint-6"):
        for path in sorted((cut / name).rglob("*"), reverse=True):
            if name == "final" or path.name == "trainer_state.json":
                path.unlink()
    (cut / "final").rmdir()
    train(squares, cut, *steps, "--resume_from_checkpoint", "true")
    resumed = load_file(cut / "final" / "adapter_model.safetensors")
    assert resumed.keys() == reference.keys()
    assert all(torch.equal(resumed[key], reference[key]) for key in reference)


# A loss that never changes: the first checkpoint stays the best.
STILL = ["--learning_rate", 1e-12, "--load_best_model_at_end", "true", "--metric_for_best_model", "eval_loss"]
STILL += ["--greater_is_better", "false"]


def test_a_resumed_run_stops_as_early_as_an_uninterrupted_one(squares, tmp_path):
    """The best is step 1; three evaluations later patience ends, wherever the run was cut."""
    options = [*STILL, "--eval_strategy", "steps", "--eval_steps", 1, "--save_steps", 1, "--save_total_limit", 9]
    options += ["--early_stopping_patience", 3, "--max_steps", 8]
    run = train(squares, tmp_path / "run", *options)
    assert last_whole_checkpoint(run).name == "checkpoint-4"
    for name in ("final", "checkpoint-4"):
        shutil.rmtree(run / name)
    assert last_whole_checkpoint(run).name == "checkpoint-3"
    train(squares, run, *options, "--resume_from_checkpoint", "true")
    assert last_whole_checkpoint(run).name == "checkpoint-4"


def test_a_resumed_run_has_the_patience_of_its_recipe(squares, tmp_path):
    options = [*STILL, "--eval_strategy", "steps", "--eval_steps", 1, "--save_steps", 1, "--save_total_limit", 9]
    options += ["--max_steps", 8, "--early_stopping_patience"]
    run = train(squares, tmp_path / "run", *options, 1)
    assert last_whole_checkpoint(run).name == "checkpoint-2"
    train(squares, run, *options, 3, "--resume_from_checkpoint", "true")
    assert last_whole_checkpoint(run).name == "checkpoint-4"


def test_bf16_adapters_stay_bf16_in_a_resumed_run(squares, tmp_path):
    options = ("--adapter_dtype", "bfloat16", "--max_steps", 4, "--save_steps", 2, "--learning_rate", 1e-3)
    whole = train(squares, tmp_path / "whole", *options)
    reference = load_file(whole / "final" / "adapter_model.safetensors")
    for name in ("final", "checkpoint-4"):
        shutil.rmtree(whole / name)
    train(squares, whole, *options, "--resume_from_checkpoint", "true")
    resumed = load_file(whole / "final" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in resumed.values()} == {torch.bfloat16}
    assert all(torch.equal(resumed[key], reference[key]) for key in reference)


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


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_checkpoint_to_resume_from(number, squares, tmp_path):
    command = [sys.executable, "train_sft.py", "--config", "tiny_nutrition_qlora", "--data_dir", str(squares)]
    command += ["--output_dir", str(tmp_path / "run"), "--eval_strategy", "no", "--save_strategy", "no"]
    command += ["--per_device_train_batch_size", "1", "--max_steps", "4000", "--logging_steps", "1"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 120
        while "'loss'" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.3)
        process.send_signal(number)
        code = process.wait(timeout=60)
    text = (tmp_path / "log").read_text()
    assert code == 130, text
    assert "Traceback" not in text
    assert "--resume_from_checkpoint true" in text
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] >= 1
    assert (checkpoint / "grounding.json").is_file()
    assert last_whole_checkpoint(tmp_path / "run") == checkpoint
