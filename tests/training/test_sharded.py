"""Training from a dataset in shards."""

import json
import pickle
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from boxtune.common.errors import UserError
from boxtune.data.dataset import read_records
from boxtune.data.shards import read_shards, write_shards
from boxtune.training.recipe import load_recipe
from boxtune.training.sharded import ShardBatches, require_shardable, sharded_dataset
from tests.helpers.collators import make_collator
from tests.helpers.training import log_history, train


@pytest.fixture(scope="module")
def sharded(squares, tmp_path_factory):
    write_shards(squares, out := tmp_path_factory.mktemp("sharded") / "data", 5, seed=0)
    return out


def test_every_process_has_as_many_full_batches(sharded):
    shards = read_shards(sharded)
    for processes in (1, 2, 3):
        sampler = ShardBatches(shards, 3, seed=0, processes=processes)
        batches = list(sampler)
        assert len(batches) == len(sampler) == len(shards) // (3 * processes) * processes
        assert {len(batch) for batch in batches} == {3}
        rows = [row for batch in batches for row in batch]
        assert len(set(rows)) == len(rows)
    with pytest.raises(UserError, match="fewer than the 34 of one batch"):
        ShardBatches(shards, 17, seed=0, processes=2)


def test_rows_can_be_sent_to_workers_that_are_not_forked(sharded, tiny_models):
    shards = read_shards(sharded)
    recipe = load_recipe(["--config", "tiny_nutrition_qlora", "--data_dir", str(sharded)], needs_gpu=False)
    encoder = make_collator(tiny_models["qwen3_vl"], sharded).encoder
    rows = sharded_dataset(recipe, shards, encoder)
    again = pickle.loads(pickle.dumps(rows))
    assert again[3] == rows[3] and json.loads(rows[3]["record"])["id"] == shards[3]["id"]


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_run(sharded, squares, tmp_path):
    """With two workers that read the archives, noise and augmentation, over the end of an epoch."""
    options = ("--max_steps", 9, "--save_steps", 5, "--per_device_train_batch_size", 2, "--noise_objects", 0.5)
    options += ("--dataloader_num_workers", 2, "--augment", "crop", "--prompt_variety", "true")
    run = train(sharded, tmp_path / "run", *options)
    reference = load_file(run / "final" / "adapter_model.safetensors")
    losses = [row["loss"] for row in log_history(run, 9) if "loss" in row]
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoint-9")
    train(sharded, run, *options, "--resume_from_checkpoint", "true")
    resumed = load_file(run / "final" / "adapter_model.safetensors")
    assert all(torch.equal(resumed[key], reference[key]) for key in reference)
    assert [row["loss"] for row in log_history(run, 9) if "loss" in row] == losses
    assert json.loads((run / "run.json").read_text())["data"]["splits"]["train"]["images"] == len(read_shards(sharded))
    card = (run / "final" / "README.md").read_text()
    assert not (run / "README.md").exists(), "a card of TRL, which knows neither data nor scores"
    assert str(len(read_records(squares, "train"))) in card


def test_too_long_examples_and_keys_that_need_all_records_are_refused(sharded, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(sharded, tmp_path / "run", "--max_length", 60)
    assert (
        "train examples exceed max_length 60; raise max_length to 152, or lower max_pixels" in capsys.readouterr().err
    )
    recipe = load_recipe(
        ["--config", "tiny_nutrition_qlora", "--tiles", "100", "--overlong", "drop", "--tokens_per_batch", "500"],
        needs_gpu=False,
    )
    with pytest.raises(UserError, match="in shards") as error:
        require_shardable(recipe)
    assert re.findall(r"- (.*)", str(error.value)) == ["tiles", "tokens_per_batch", "overlong: drop"]
