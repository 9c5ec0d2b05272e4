"""Examples of a run and their lengths."""

import json

import evaluate
from boxtune.answers.decoding import Decoding
from boxtune.answers.grounding import Grounding
from boxtune.answers.noise import NOISE_LABEL
from boxtune.batching.lengths import measure
from boxtune.data.boxes import box_area
from boxtune.data.dataset import read_splits
from boxtune.data.tiles import tile_of
from boxtune.training.examples import measure_splits, read_examples
from tests.helpers.collators import make_collator
from tests.helpers.training import train


def test_only_training_examples_are_measured_with_noise_objects(tiny_models, squares):
    encoder = make_collator(tiny_models["qwen3_vl"], squares, noise_label=NOISE_LABEL).encoder
    splits = read_splits(squares, ("train", "validation"))
    plain, noisy = (measure_splits(splits, encoder, noise_objects) for noise_objects in (0.0, 2.0))
    assert plain["validation"] == noisy["validation"] == measure(splits["validation"], encoder, 0.0)
    answers = [[entry.answer for entry in lengths["train"]] for lengths in (plain, noisy)]
    assert sum(answers[1]) > 2 * sum(answers[0])


def test_only_training_images_are_cut_into_tiles(squares, capsys):
    plain, tiled = (read_examples(squares, "area", tiles) for tiles in (0, 100))
    assert tiled["validation"] == plain["validation"]
    assert [view for view in tiled["train"] if tile_of(view) is None] == plain["train"]
    tiles = [view for view in tiled["train"] if tile_of(view)]
    empty = sum(not any(not ignored for ignored in tile["objects"]["ignore"]) for tile in tiles)
    assert 0 < empty < len(tiles) and len({view["id"] for view in tiled["train"]}) == len(tiled["train"])
    for tile in tiles:  # the order is that of what the tile shows
        areas = box_area(tile["objects"]["bbox"])
        assert areas.tolist() == sorted(areas.tolist(), reverse=True)
    said = f"tiles: 16 training images give {16 + len(tiles)} examples: 16 whole images and {len(tiles)} tiles, of which {empty} "
    assert said in capsys.readouterr().out


def test_a_run_on_tiles_trains_and_is_evaluated_with_the_same_tiles(squares, tmp_path, capsys):
    run = train(squares, tmp_path / "run", "--tiles", 100, "--augment", "crop", "flip", "color")
    assert "tiles: 16 training images give" in capsys.readouterr().out
    grounding = Grounding.load(run / "final")
    assert grounding.decoding == Decoding(tiles=100) and grounding.seen_pixels[0] <= 100 * 100
    evaluate.main(["--ckpt", str(run / "final"), "--limit", "1", "--max-new-tokens", "8"])
    [line] = (run / "eval" / "predictions.jsonl").read_text().splitlines()
    parts = json.loads(line)["parts"]
    assert parts[0]["tile"] is None and all(part["tile"][2] - part["tile"][0] <= 100 for part in parts[1:])


def test_a_sample_of_the_training_images_is_fixed_and_leaves_validation_whole(squares):
    everything, sample, again = (read_examples(squares, "source", train_images=count) for count in (0, 5, 5))
    assert sample == again and len(sample["train"]) == 5
    assert all(record in everything["train"] for record in sample["train"])
    assert sample["validation"] == everything["validation"]
    assert read_examples(squares, "source", train_images=1000) == everything
