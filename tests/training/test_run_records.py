"""Parts of a run that need no training: its checkpoints, its record, its sample of validation images and its callbacks."""

import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from boxtune.batching.encoder import IGNORE_INDEX
from boxtune.common.errors import UserError
from boxtune.data.dataset import data_hash
from boxtune.training.box_validation import drawn_records, require_objects
from boxtune.training.callbacks import EpochCallback, InterruptCallback, ProgressLine
from boxtune.training.last_checkpoint import last_whole_checkpoint
from boxtune.training.recipe import load_recipe
from boxtune.training.run import say_changes
from boxtune.training.run_info import changed_data, changed_keys, describe_batch, describe_tokens
from boxtune.training.trackers import usable_trackers
from tests.helpers.records import make_record


def test_the_last_checkpoint_is_the_latest_complete_one(tmp_path):
    assert last_whole_checkpoint(tmp_path) == (None, [])
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-200", "checkpoint-300-backup", "other-400"):
        (tmp_path / name).mkdir()
        if name != "checkpoint-200":  # its save was interrupted
            (tmp_path / name / "trainer_state.json").write_text("{}")
    assert last_whole_checkpoint(tmp_path) == (tmp_path / "checkpoint-10", [])


def test_changed_values_of_a_recipe_are_named(tmp_path):
    recipe = load_recipe(["--config", "tiny_nutrition_qlora"])
    assert changed_keys(tmp_path, recipe) == []
    (tmp_path / "recipe.yaml").write_text(
        json.dumps(recipe.values | {"learning_rate": 0.5, "resume_from_checkpoint": "x"})
    )
    assert changed_keys(tmp_path, recipe) == ["learning_rate"]
    without = {key: value for key, value in recipe.values.items() if key != "learning_rate"}
    (tmp_path / "recipe.yaml").write_text(json.dumps(without | {"max_grad_norm": 0.25}))
    assert changed_keys(tmp_path, recipe) == ["learning_rate", "max_grad_norm"]


def test_changed_data_is_noticed(tmp_path, squares):
    assert not changed_data(tmp_path, squares)
    for digest, is_changed in ((data_hash(squares), False), ("0", True)):
        (tmp_path / "run.json").write_text(json.dumps({"data": {"sha256": digest}}))
        assert changed_data(tmp_path, squares) is is_changed
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="Remove it to resume without comparing the data"):
        changed_data(tmp_path, squares)


def test_a_resumed_run_says_what_has_changed(tmp_path, squares, capsys):
    recipe = load_recipe(["--config", "tiny_nutrition_qlora", "--output_dir", str(tmp_path)])
    for digest, changes in ((data_hash(squares), []), ("0", ["the data"])):
        (tmp_path / "run.json").write_text(json.dumps({"data": {"sha256": digest}}))
        for values, names in ((recipe.values, []), (recipe.values | {"learning_rate": 0.5}, ["learning_rate"])):
            (tmp_path / "recipe.yaml").write_text(json.dumps(values))
            say_changes(recipe, squares)
            note = f"note: the resumed run differs from the earlier one in: {', '.join(names + changes)}\n"
            assert capsys.readouterr().out == (note if names or changes else "")


def test_the_text_of_a_batch_counts_images_and_shows_what_is_supervised():
    words = {1: "<image>", 2: "Where?", 3: "Here.", 0: "<pad>"}
    tokenizer = SimpleNamespace(decode=lambda ids: "".join(words[i] for i in ids.tolist()))
    batch = {
        "input_ids": torch.tensor([[1, 1, 1, 2, 3], [2, 3, 0, 0, 0]]),
        "attention_mask": torch.tensor([[1] * 5, [1, 1, 0, 0, 0]]),
        "labels": torch.tensor([[IGNORE_INDEX] * 4 + [3], [IGNORE_INDEX, 3, *[IGNORE_INDEX] * 3]]),
    }
    text = describe_batch(SimpleNamespace(tokenizer=tokenizer, image_token="<image>"), batch)
    assert text == (
        "--- example 0\n[3 image tokens]Where?Here.\n--- supervised\nHere.\n\n"
        "--- example 1\nWhere?Here.\n--- supervised\nHere.\n"
    )


def test_the_tokens_of_the_first_example_are_listed_with_their_supervision():
    words = {1: "<image>", 2: "Where", 3: "?", 4: "Here", 5: ".", 0: "<pad>"}
    tokenizer = SimpleNamespace(decode=lambda ids: "".join(words[i] for i in ids.tolist()))
    batch = {
        "input_ids": torch.tensor([[2, 1, 1, 1, 3, 4, 5, 0], [2] * 8]),
        "attention_mask": torch.tensor([[1] * 7 + [0], [1] * 8]),
        "labels": torch.tensor([[IGNORE_INDEX] * 5 + [4, 5, IGNORE_INDEX], [2] * 8]),
    }
    lines = describe_tokens(SimpleNamespace(tokenizer=tokenizer, image_token="<image>"), batch).splitlines()
    assert lines[0] == "--- 7 tokens: 3 of images, 2 supervised"
    assert [line.split(maxsplit=2) for line in lines[1:]] == [
        *(["0", "2", "'Where'"], ["1", "1", "'<image>' × 3"], ["4", "3", "'?'"]),
        *(["5", "4", "+ 'Here'"], ["6", "5", "+ '.'"]),
    ]


# ---- Validation sample ---------------------------------------------------------------------------------------------------


def test_the_validation_sample_is_fixed_and_asks_what_evaluation_asks():
    records = [
        make_record(f"{i:02}", "a.png", 90, 90, [([0, 0, 9, 9], "cat"), ([5, 5, 9, 9], "dog")]) for i in range(50)
    ]
    for record in records[::2]:
        record["messages"][1]["content"] = "<boxes:dog>"
    drawn = drawn_records(records, 20)
    assert len(drawn) == 20 and drawn == drawn_records(records, 20)
    ids = [record["id"] for record in drawn]
    assert ids == sorted({*ids}) and ids != [f"{i:02}" for i in range(20)]
    assert {len(record["objects"]["bbox"]) for record in drawn if int(record["id"]) % 2 == 0} == {1}
    assert len(drawn_records(records, 80)) == 50


@pytest.mark.parametrize("metric", ["AP", "f1", "fp", "unparsable"])
def test_the_best_model_needs_objects_only_for_metrics_that_are_undefined_without(metric):
    records = [make_record(str(i), "a.png", 90, 90, [([0, 0, 9, 9], "cat")]) for i in range(5)]
    require_objects(metric, records, 3)
    for record in records:
        record["objects"]["ignore"] = [True]
    if metric in ("fp", "unparsable"):
        require_objects(metric, records, 3)
    else:
        with pytest.raises(
            UserError, match=f"{metric} is undefined, because the 3 sampled validation images contain no"
        ):
            require_objects(metric, records, 3)


# ---- Callbacks -----------------------------------------------------------------------------------------------------------


def test_ctrl_c_saves_and_stops_after_the_step_and_handlers_are_restored(capsys):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    callback, arguments = InterruptCallback(), SimpleNamespace(world_size=1, save_total_limit=1)
    control = TrainerControl(should_evaluate=True)
    callback.on_train_begin(arguments, None, control)
    callback.on_step_end(arguments, None, control)
    assert not control.should_training_stop and control.should_evaluate and arguments.save_total_limit == 1
    os.kill(os.getpid(), signal.SIGINT)
    assert "press Ctrl-C again to stop immediately" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    callback.on_step_end(arguments, None, control)
    assert (control.should_save, control.should_training_stop, control.should_evaluate) == (True, True, False)
    assert arguments.save_total_limit is None and callback.interrupted and callback.stopped
    control.should_evaluate = True
    callback.on_epoch_end(arguments, None, control)
    assert not control.should_save and not control.should_evaluate
    callback.on_train_end(arguments, None, control)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_epoch_is_a_whole_number():
    variation = SimpleNamespace(epoch=torch.zeros((), dtype=torch.int64))
    for epoch, expected in ((2.75, 2), (None, 0)):
        EpochCallback(variation).on_epoch_begin(None, SimpleNamespace(epoch=epoch), None)
        assert variation.epoch.item() == expected


def test_an_evaluation_is_one_line_of_the_metrics_that_exist(capsys):
    state = TrainerState(max_steps=10, global_step=4)
    line = ProgressLine()
    line.on_train_begin(None, state, None)
    line.on_step_end(None, state, None)
    assert line.bar.n == 4
    line.on_log(None, state, None, {"loss": "1.23456", "learning_rate": 0.00012345})
    assert line.bar.postfix == "loss 1.235, learning rate 0.00012"
    line.on_log(None, state, None, {"eval_loss": 5.0})
    line.on_evaluate(None, state, None, {"eval_loss": 0.123456, "eval_AP": None, "eval_fp": 3, "eval_other": 1})
    line.on_train_end(None, state, None)
    assert "evaluation at step 4/10: loss 0.1235, FP 3\n" in capsys.readouterr().out


def test_trackers_that_are_not_installed_are_noted(monkeypatch):
    assert (
        usable_trackers(None, "p", "r")
        == usable_trackers("none", "p", "r")
        == usable_trackers(["all"], "p", "r")
        == ([], [])
    )
    assert usable_trackers(["tensorboard", "mlflow"], "p", "r") == (
        ["tensorboard"],
        ["mlflow is not installed: training continues without it"],
    )
    with pytest.raises(UserError, match="report_to: wandbb, x must be one of"):
        usable_trackers(["wandbb", "x", "tensorboard"], "p", "r")
