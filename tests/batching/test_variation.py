"""Variation between epochs: the questions, the noise objects, and that evaluation is not affected."""

import json
import random
import shutil
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader

import evaluate
from boxtune.answers.codecs import CODECS
from boxtune.answers.grounding import Grounding
from boxtune.answers.noise import NOISE_LABEL, with_noise
from boxtune.answers.prediction_file import read_predictions
from boxtune.answers.predictions import make_prediction
from boxtune.batching.augmentation import OPERATIONS
from boxtune.batching.encoder import IGNORE_INDEX, grid_input_size
from boxtune.batching.hard_negatives import read_confused
from boxtune.batching.lengths import answer_budget, as_dataset, measure
from boxtune.batching.variation import Variation
from boxtune.common.errors import UserError
from boxtune.data.questions import QUESTIONS, first_question, question
from boxtune.data.record_checks import record_problems
from boxtune.data.records import in_order
from boxtune.metrics.scoring import score
from boxtune.training import setup_examples
from boxtune.training.recipe import load_recipe
from tests.helpers.collators import make_collator
from tests.helpers.records import CODEC_NAMES, FAMILIES, make_record
from tests.helpers.training import train

CLASSES = ["cat", "dog", "traffic light"]
OBJECTS = [([10.0, 20, 110, 90], "cat"), ([0, 0, 300, 200], "traffic light")]


def make_variation(**changes) -> Variation:
    values = {"operations": [], "negative_questions": 0.0, "prompt_variety": False, "noise_objects": 0.0}
    values |= {"object_order": "source", "classes": CLASSES, "max_pixels": 50_000, "max_length": None, "seed": 0}
    return Variation(**values | changes)


@pytest.fixture
def record(tmp_path) -> dict:
    pixels = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return make_record("a", "a.png", 300, 200, OBJECTS, classes=CLASSES)


def epochs(variation: Variation, record: dict, count: int):
    """The (record, image) of each of the first epochs."""
    image = Image.new("RGB", (record["width"], record["height"]))
    for epoch in range(count):
        variation.epoch.fill_(epoch)
        yield variation(record, image)


def test_questions_about_one_class_have_objects_as_often_as_not(record):
    variation = make_variation(negative_questions=0.2)
    asked, known = Counter(), set(variation.questions([record]))
    for varied, _ in epochs(variation, record, 1000):
        assert record_problems(varied) == []
        text, shown = first_question(varied), set(varied["objects"]["category"])
        assert text in known
        named = {name for name in CLASSES if name in text}
        assert shown == named & {"cat", "traffic light"}
        asked["all" if len(named) == 3 else "shown" if shown else "absent"] += 1
    assert sum(asked.values()) == 1000
    assert abs(asked["absent"] - 200) < 40
    assert abs(asked["shown"] - 200) < 40


def test_an_order_drawn_once_is_not_drawn_again():
    objects = [([10.0 * i, 0, 10 * i + 8, 8], f"cat {i}") for i in range(9)]
    shown = in_order(make_record("a", "a.png", 300, 200, objects), "random")
    for varied, _ in epochs(make_variation(operations=["color"], object_order="random"), shown, 5):
        assert varied["objects"]["category"] == shown["objects"]["category"]
    assert in_order(shown, "random") != shown, "or this test could not fail"


def test_wordings_that_only_empty_images_would_get_are_rejected(record):
    recipe = load_recipe(["--config", "tiny_nutrition_qlora", "--prompt_variety", "true"])
    turns = [record["messages"][0], {"role": "assistant", "content": "<boxes:cat>"}]
    own = record | {"messages": turns}
    empty = record | {"objects": {key: [] for key in record["objects"]}}
    with pytest.raises(UserError, match="other wordings mean an empty image"):
        setup_examples.make_variation(recipe, [own, empty], CLASSES, max_pixels=1)
    with pytest.raises(UserError, match="this dataset has no such example, so they would have no effect"):
        setup_examples.make_variation(recipe, [own, own], CLASSES, max_pixels=1)


def test_an_ignored_object_is_not_absent(record):
    """An ignored crowd of dogs may contain a dog that should be found."""
    record["objects"]["ignore"] = [True, False]
    asked = {first_question(varied) for varied, _ in epochs(make_variation(negative_questions=0.5), record, 50)}
    assert asked == {
        "<image>Detect every dog in the image.",
        "<image>Detect every traffic light in the image.",
    }


def test_half_of_the_questions_keep_their_own_wording(record):
    record["messages"][0]["content"] = "<image>Any animals or signals?"
    variation = make_variation(prompt_variety=True)
    asked = Counter(first_question(varied) for varied, _ in epochs(variation, record, 400))
    assert abs(asked["<image>Any animals or signals?"] - 200) < 50
    assert len(asked) == 1 + len(QUESTIONS)
    # The record's own question comes first: it is the default question for a checkpoint.
    assert variation.questions([record])[0] == "<image>Any animals or signals?"
    assert set(asked) == set(variation.questions([record]))


@pytest.mark.parametrize("order", ["raster", "area"])
def test_objects_keep_their_order_when_the_image_is_cropped_or_flipped(record, order):
    boxes = [[x, y, x + 40 + x / 9, y + 40.0] for y in (0.0, 70) for x in (0.0, 80, 160)]
    mixed = in_order(make_record("a", "a.png", 300, 200, [(box, "cat") for box in boxes]), order)
    variation = make_variation(operations=["crop", "flip"], object_order=order)
    moved = 0
    for varied, _ in epochs(variation, mixed, 30):
        assert varied == in_order(varied, order)
        moved += varied["objects"]["bbox"][0] != mixed["objects"]["bbox"][0]
    assert moved > 10


def test_other_conversations_stay_as_they_are(record):
    everything = make_variation(negative_questions=0.5, prompt_variety=True, noise_objects=1.0)
    for answer in ("<boxes:cat>", "Two."):
        other = record | {"messages": [record["messages"][0], {"role": "assistant", "content": answer}]}
        assert all(varied == other for varied, _ in epochs(everything, other, 20))
        assert everything.questions([other]) == [first_question(other)]


def test_variation_depends_on_epoch_and_seed_and_not_on_workers(tiny_models, tmp_path, record):
    records = [record | {"id": str(i)} for i in range(4)]
    rows = as_dataset(records, tmp_path, varied=True)

    def batches(seed: int, workers: int, epochs=(0, 1)) -> list[torch.Tensor]:
        collator = make_collator(tiny_models["qwen3_vl"], tmp_path, max_pixels=50_000)
        collator.variation = make_variation(operations=list(OPERATIONS), prompt_variety=True, seed=seed)
        options = {"num_workers": workers, "persistent_workers": workers > 0}
        loader = DataLoader(rows, batch_size=2, collate_fn=collator, **options)
        found = []
        for epoch in epochs:
            collator.variation.epoch.fill_(epoch)
            found += [batch["pixel_values"] for batch in loader]
        return found

    def same(a, b) -> list[bool]:
        return [x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True)]

    first = batches(seed=0, workers=0)
    assert all(same(first, batches(seed=0, workers=2)))  # the worker processes live longer than the first epoch
    assert all(same(first[2:], batches(seed=0, workers=0, epochs=(1,))))  # as after an interruption
    assert not any(same(first[:2], first[2:]))
    assert not any(same(first, batches(seed=1, workers=0)))


def test_only_rows_of_training_are_varied(tiny_models, tmp_path, record):
    collator = make_collator(tiny_models["qwen3_vl"], tmp_path, max_pixels=50_000)
    plain = collator(list(as_dataset([record], tmp_path)))
    question, _ = collator.collate_questions([record])
    collator.variation = make_variation(operations=["resize", "color"], prompt_variety=True)
    again = collator(list(as_dataset([record], tmp_path)))
    assert plain.pop("ids") == again.pop("ids") == ["a"]
    assert all(torch.equal(plain[key], again[key]) for key in plain)
    asked, _ = collator.collate_questions([record])
    assert all(torch.equal(question[key], asked[key]) for key in question)
    varied = collator(list(as_dataset([record], tmp_path, varied=True)))
    assert varied["pixel_values"].shape != plain["pixel_values"].shape


def test_an_example_that_would_exceed_max_length_is_not_varied(tiny_models, tmp_path, record):
    collator = make_collator(tiny_models["qwen2_5_vl"], tmp_path, max_pixels=200_000)
    [length] = measure([record], collator.encoder)
    rows, sizes = list(as_dataset([record], tmp_path, varied=True)), {}
    for limit in (None, length.total):
        collator.variation = make_variation(operations=["resize"], max_pixels=200_000, max_length=limit)
        sizes[limit] = []
        for epoch in range(12):
            collator.variation.epoch.fill_(epoch)
            sizes[limit].append(collator(rows)["input_ids"].shape[1])
    assert max(sizes[None]) > length.total
    assert max(sizes[length.total]) == length.total
    # Those that fit are varied.
    assert min(sizes[length.total]) == min(sizes[None])


# ---- noise objects -----------------------------------------------------------------------------------------------------


def test_noise_objects_follow_the_true_ones(record):
    record["objects"]["number"] = [1, 2]
    kinds, counts = Counter(), []
    for seed in range(300):
        noisy = with_noise(record, 0.75, random.Random(seed))
        assert record_problems(noisy) == []
        objects = noisy["objects"]
        assert [objects["bbox"][:2], objects["category"][:2]] == [
            record["objects"][key] for key in ("bbox", "category")
        ]
        assert set(objects["category"][2:]) <= {NOISE_LABEL}
        counts.append(len(objects["bbox"]) - 2)
        kinds.update(box in record["objects"]["bbox"] for box in objects["bbox"][2:])
    assert set(counts) == {1, 2}
    assert abs(sum(counts) / len(counts) - 1.5) < 0.1
    assert kinds[True] > 100 < kinds[False]  # duplicates, and other boxes
    empty = make_record("b", "b.png", 300, 200, [])
    assert with_noise(empty, 5, random.Random(0)) == empty


@pytest.mark.parametrize("answer", ["boxes", "click"])
@pytest.mark.parametrize("family", FAMILIES)
def test_labels_of_noise_are_supervised_and_coordinates_are_not(tiny_models, tmp_path, record, family, answer):
    collator = make_collator(tiny_models[family], tmp_path, answer, noise_label=NOISE_LABEL)
    noisy = with_noise(record, 1.0, random.Random(3))
    [row] = [{"record": json.dumps(noisy)}]
    batch = collator([row])
    ids, labels, tokenizer = batch["input_ids"][0], batch["labels"][0], collator.tokenizer
    start = int((labels != IGNORE_INDEX).nonzero()[0])
    size = grid_input_size(collator.processor, batch["image_grid_thw"][0])
    text = collator.codec.encode(noisy["objects"]["bbox"], noisy["objects"]["category"], (200, 300), size).text
    answer_ids = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
    stop = start + len(answer_ids)
    assert ids[start:stop].tolist() == answer_ids
    taught = labels[start:stop] != IGNORE_INDEX
    assert torch.equal(labels[start:stop][taught], ids[start:stop][taught])
    assert (labels[stop:] == IGNORE_INDEX).all()
    # Only the tokens from the first to the last digit of each noise object are not supervised.
    left_out = "".join(
        "#" if not kept else tokenizer.decode([token]) for token, kept in zip(answer_ids, taught.tolist(), strict=True)
    )
    places = collator.codec.decode(text, (200, 300), size).places
    wanted = text + tokenizer.eos_token
    for place, label in reversed(list(zip(places, noisy["objects"]["category"], strict=True))):
        if label == NOISE_LABEL:
            numbers = text[slice(*place.numbers)]
            tokens = len(tokenizer(numbers.strip("()"))["input_ids"])
            wanted = (
                wanted[: place.numbers[0]]
                + numbers.replace(numbers.strip("()"), "#" * tokens)
                + wanted[place.numbers[1] :]
            )
    assert left_out == wanted
    # Without noise objects in the checkpoint, the word is an ordinary label.
    plain = make_collator(tiny_models[family], tmp_path, answer)([row])["labels"][0]
    assert plain[plain != IGNORE_INDEX].tolist() == answer_ids


def test_box_losses_do_not_use_noise_objects(tiny_models, tmp_path, record):
    collator = make_collator(tiny_models["qwen3_vl"], tmp_path, noise_label=NOISE_LABEL).for_losses(True, True)
    plain, noisy = (
        collator([{"record": json.dumps(each)}]) for each in (record, with_noise(record, 3.0, random.Random(0)))
    )
    for key in ("boxes_xyxy", "digit", "digit_at", "edge"):
        assert torch.equal(plain["targets"][key], noisy["targets"][key])
    # Continuing to a noise object does not count as finding an object.
    assert noisy["targets"]["goes_on"].tolist() == plain["targets"]["goes_on"].tolist() == [True] * 2 + [False]
    assert noisy["targets"]["decision_at"].tolist() != plain["targets"]["decision_at"].tolist(), "it stops later"
    # Sampled responses are scored on the true objects.
    assert noisy["asked"]["records"] == plain["asked"]["records"]


@pytest.mark.parametrize("family", FAMILIES)
def test_lengths_and_the_answer_budget_allow_for_noise(tiny_models, tmp_path, record, family):
    collator = make_collator(tiny_models[family], tmp_path, noise_label=NOISE_LABEL)
    [without], [length] = measure([record], collator.encoder), measure([record], collator.encoder, 2.25)
    assert length.answer > 2 * without.answer
    size = (length.image, without.image)
    assert size[0] == size[1]
    input_size = grid_input_size(collator.processor, collator([{"record": json.dumps(record)}])["image_grid_thw"][0])
    drawn = [collator.encoder.encode(with_noise(record, 2.25, random.Random(seed)), input_size) for seed in range(40)]
    assert max(len(example.input_ids) for example in drawn) <= length.total
    assert max(example.answer_tokens for example in drawn) <= length.answer <= answer_budget([length])


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_noise_is_dropped_before_anything_is_scored(record, codec, tmp_path):
    boxes = [box for box, _ in OBJECTS]
    text = CODECS[codec].encode([boxes[1], *boxes], [NOISE_LABEL, "cat", "traffic light"], (200, 300), (280, 420)).text
    plain = make_prediction(record, codec, (280, 420), text, 0.5)
    assert plain["objects"]["category"] == [NOISE_LABEL, "cat", "traffic light"]
    assert plain["problems"] == []
    prediction = make_prediction(record, codec, (280, 420), text, 0.5, noise_label=NOISE_LABEL)
    place = "point" if CODECS[codec].is_click else "bbox"
    assert prediction["objects"]["category"] == ["cat", "traffic light"]
    assert prediction["objects"][place] == plain["objects"][place][1:]
    assert prediction["problems"] == [NOISE_LABEL]
    metrics = score([record], [prediction], CLASSES)
    assert (metrics["points"] or metrics["matching"])["fp"] == 0
    assert metrics["unknown_label_boxes"] == 0
    assert metrics["parse"] == {"images": 1, "clean": 1, "problems": {NOISE_LABEL: 1}}
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(prediction) + "\n")
    assert read_predictions(path, [record], reparse=True) == ([prediction], [])


def test_a_class_called_noise_stops_the_recipe(squares, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for path in squares.iterdir():
        (data / path.name).write_text(path.read_text().replace("red square", "Noise"))
    with pytest.raises(SystemExit) as stop:
        train(data, tmp_path / "run", "--noise_objects", 0.5)
    assert stop.value.code == 2
    assert "--rename Noise=OTHER" in capsys.readouterr().err


# ---- training ----------------------------------------------------------------------------------------------------------


def write_metrics(path, rows: list[str], matrix: list[list[int]]):
    confusion = {"rows": [*rows, "background"], "columns": [*rows, "unknown label", "background"], "matrix": matrix}
    path.write_text(json.dumps({"confusion": confusion}))
    return path


def test_hard_negatives_ask_for_classes_that_were_predicted_wrongly(tmp_path):
    """A dog was predicted on three cats and five times on background, a traffic light on a dog only."""
    matrix = [[9, 3, 0, 7, 1], [0, 4, 6, 0, 0], [0, 0, 2, 0, 0], [0, 5, 0, 1, 0]]
    confused = read_confused(write_metrics(tmp_path / "metrics.json", CLASSES, matrix), CLASSES)
    record = make_record("a", "a.png", 300, 200, [([10.0, 20, 110, 90], "cat")], classes=CLASSES)

    def share_of_dogs(**changes) -> float:
        varied = epochs(make_variation(negative_questions=0.5, **changes), record, 600)
        asked = Counter(first_question(record) for record, _ in varied)
        dogs, lights = (asked[question([name])] for name in ("dog", "traffic light"))
        assert dogs + lights > 200
        return dogs / (dogs + lights)

    assert share_of_dogs(confused=confused) == pytest.approx(9 / 10, abs=0.05)  # 1 + 3 + 5 against 1
    assert share_of_dogs() == pytest.approx(1 / 2, abs=0.1)


def test_hard_negatives_need_a_confusion_matrix_of_these_classes(tmp_path):
    with pytest.raises(UserError, match=r"the confusion matrix in .*missing.json cannot be read: FileNotFoundError"):
        read_confused(tmp_path / "missing.json", CLASSES)
    (tmp_path / "other.json").write_text('{"AP": 0.5}')
    with pytest.raises(UserError, match=r"Give the metrics\.json of an evaluation"):
        read_confused(tmp_path / "other.json", CLASSES)
    path = write_metrics(tmp_path / "metrics.json", ["fish"], [[1, 0, 0], [0, 0, 0]])
    with pytest.raises(UserError, match=r"none of this dataset's classes\. It has fish; the dataset has cat, dog"):
        read_confused(path, CLASSES)


ALL_KEYS = ("--augment", *OPERATIONS, "--negative_questions", 0.2, "--prompt_variety", "true", "--noise_objects", 1.0)


def test_all_keys_train_and_evaluate(squares, tmp_path, capsys):
    run = train(squares, tmp_path / "run", *ALL_KEYS, "--iou_loss_weight", 1, "--fp_loss_weight", 0.1)
    grounding = Grounding.load(run / "final")
    assert grounding.noise_label == NOISE_LABEL
    assert grounding.questions[0] == "<image>Detect every red square and blue square in the image."
    assert len(grounding.questions) == len(QUESTIONS) * 3
    capsys.readouterr()
    evaluate.main(["--ckpt", str(run / "final"), "--limit", "2", "--max-new-tokens", "8"])
    assert "never trained on" not in capsys.readouterr().err


@pytest.mark.slow
def test_epochs_differ_and_a_resumed_run_sees_the_same_examples(squares, tmp_path, monkeypatch):
    """Five steps of four of the sixteen images: the last step is in the second epoch."""
    shown = defaultdict(dict)

    class Recorded(Variation):
        def __call__(self, record, image):
            varied, varied_image = super().__call__(record, image)
            shown[self.epoch.item()][record["id"]] = varied_image.tobytes()
            return varied, varied_image

    steps = (*ALL_KEYS, "--max_steps", 5, "--save_steps", 3, "--per_device_train_batch_size", 4)
    with monkeypatch.context() as recording:
        recording.setattr(setup_examples, "Variation", Recorded)
        run = train(squares, tmp_path / "run", *steps)
    assert {epoch: len(images) for epoch, images in shown.items()} == {0: 16, 1: 8}  # the loader prefetches
    assert not any(shown[0][name] == pixels for name, pixels in shown[1].items())
    reference = load_file(run / "final" / "adapter_model.safetensors")
    for name in ("final", "checkpoint-5"):
        shutil.rmtree(run / name)
    train(squares, run, *steps, "--resume_from_checkpoint", "true")
    resumed = load_file(run / "final" / "adapter_model.safetensors")
    assert all(torch.equal(resumed[key], reference[key]) for key in reference)


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        (
            "augment",
            ["crop", "rotate"],
            "augment must be one of crop, flip, resize, color, blur, jpeg, got ['crop', 'rotate']",
        ),
        ("negative_questions", 0.7, "negative_questions: 0.7 must be from 0 to 0.5"),
        ("negative_sampling", "hard", "negative_sampling: hard needs negative_from"),
        ("negative_from", "metrics.json", "negative_from: has no effect without negative_sampling: hard"),
        ("noise_objects", -1, "noise_objects: -1.0 must be 0 or more, and finite"),
    ],
)
def test_invalid_values_are_reported(tmp_path, key, value, rule):
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({key: value}))
    with pytest.raises(UserError) as error:
        load_recipe(["--config", "tiny_nutrition_qlora", "--overlay", str(path)])
    assert rule in str(error.value)
