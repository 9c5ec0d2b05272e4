"""Examples of a run and their lengths."""

from boxtune.answers.noise import NOISE_LABEL
from boxtune.batching.lengths import measure
from boxtune.data.dataset import read_splits
from boxtune.training.examples import measure_splits
from tests.helpers.collators import make_collator


def test_only_training_examples_are_measured_with_noise_objects(tiny_models, squares):
    encoder = make_collator(tiny_models["qwen3_vl"], squares, noise_label=NOISE_LABEL).encoder
    splits = read_splits(squares, ("train", "validation"))
    plain, noisy = (measure_splits(splits, encoder, noise_objects) for noise_objects in (0.0, 2.0))
    assert plain["validation"] == noisy["validation"] == measure(splits["validation"], encoder, 0.0)
    answers = [[entry.answer for entry in lengths["train"]] for lengths in (plain, noisy)]
    assert sum(answers[1]) > 2 * sum(answers[0])
