"""The images and the optimizer with which the embedded model is pretrained."""

import csv
import random
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from assets import pretrain_tiny_model, pretraining_batches
from assets.build_tiny_model import build_model
from assets.dense_targets import BACKGROUND, BINS, DENSE_PARTS, NONE, dense_targets, edge_loss, fine_targets
from assets.muon import Muon, orthogonalize
from assets.pretraining_batches import make_collator
from assets.pretraining_images import HELD_OUT_STAGE, MAX_OBJECTS, SIDES, STAGES, Scene, draw_scene, draw_size
from assets.pretraining_objects import CLASSES, EMOJI_FONT
from assets.pretraining_questions import IRRELEVANT, TALKS, make_record
from assets.pretraining_report import held_out_results
from boxtune.answers.codecs import CODECS
from boxtune.answers.conversation import FORMAT_SENTENCES

needs_emoji = pytest.mark.skipif(not EMOJI_FONT.exists(), reason=f"{EMOJI_FONT} is not installed")


@needs_emoji
@pytest.mark.parametrize("stage", STAGES, ids=range(len(STAGES)))
def test_scenes_depend_only_on_the_generator_and_boxes_are_inside(stage):
    for i in range(30):
        size = draw_size(random.Random(f"size {i}"), stage)
        assert all(side in SIDES for side in size)
        scene, again = (draw_scene(random.Random(f"test {i}"), stage, size) for _ in range(2))
        assert scene.image.size == size
        assert scene.image.tobytes() == again.image.tobytes()
        assert (scene.boxes_xyxy, scene.labels) == (again.boxes_xyxy, again.labels)
        assert set(scene.labels) <= set(CLASSES)
        assert len(scene.labels) <= MAX_OBJECTS
        for x0, y0, x1, y1 in scene.boxes_xyxy:
            assert 0 <= x0 < x1 <= size[0]
            assert 0 <= y0 < y1 <= size[1]


@needs_emoji
def test_answers_contain_the_classes_in_the_question():
    """All objects of the classes in the question and nothing else. Over many images, every kind of question occurs."""
    kinds = set()
    for i in range(120):
        record = make_record(f"test {i}", STAGES[-1], (160, 160), "boxes")
        names = record["messages"][0]["content"].removeprefix("<image>Detect every ").removesuffix(" in the image.")
        asked = set(names.replace(" and ", ", ").split(", "))
        scene, labels = record["scenes"][0], record["objects"]["category"]
        assert asked <= set(CLASSES)
        assert sorted(labels) == sorted(label for label in scene.labels if label in asked)
        kinds.add("absent" if not labels else "one class" if len(asked) == 1 else "several")
    assert kinds == {"absent", "one class", "several"}


@needs_emoji
def test_an_example_comes_before_the_question_with_its_own_image():
    record = make_record("test", STAGES[-1], (192, 128), "example")
    example, scene = record["scenes"]
    shown, answer, asked, placeholder = (turn["content"] for turn in record["messages"])
    assert shown == f"{asked} {FORMAT_SENTENCES['json_boxes']}" and placeholder == "<boxes>"
    found = CODECS["qwen3_vl"].decode(answer, (128, 192), (128, 192))
    assert set(found.labels) <= set(example.labels)
    assert set(record["objects"]["category"]) <= set(scene.labels)
    batch = make_collator().collate([record], asks=True, dense=True)
    assert len(batch["image_grid_thw"]) == 2
    assert int(batch["mm_token_type_ids"].sum()) == len(batch["dense"]["classes"]) == 2 * 6 * 4


@needs_emoji
def test_short_conversations_are_true():
    answers = defaultdict(set)
    for i in range(60):
        for talk in ("class", "box", "object caption", "scene caption"):
            record = make_record(f"test {i}", STAGES[-1], (160, 160), talk)
            scene = record["scenes"][0]
            asked, answer = (turn["content"] for turn in record["messages"])
            answers[record["talk"]].add(answer)
            if record["talk"] == "class":
                name = asked.removeprefix("<image>Is there a ").removesuffix(" in the image?")
                assert answer == ("Yes." if name in scene.labels else "No.")
            elif record["talk"] == "object caption":
                assert answer.removesuffix(".").split(" ", 2)[2] in scene.labels
                where = asked[asked.index("[") : asked.index("]") + 1]
                encoded = CODECS["qwen3_vl"].encode(scene.boxes_xyxy, scene.labels, (160, 160), (160, 160))
                assert f'"bbox_2d": {where}' in encoded.text
            elif record["talk"] == "scene caption" and scene.labels:
                assert sum(int(word) for word in answer.replace(".", "").split() if word.isdigit()) == len(scene.labels)
    assert answers["class"] == answers["box"] == {"Yes.", "No."}


@needs_emoji
def test_the_rule_for_unrelated_images_has_both_outcomes():
    """With the rule in the system prompt, a question about another theme gets the agreed answer and any other gets boxes."""
    replies = set()
    for i in range(40):
        record = make_record(f"test {i}", STAGES[-1], (160, 160), "irrelevant")
        if not record["rule"]:
            assert not record["scenes"][0].labels  # nothing in it, so nothing to be unrelated to
            continue
        reply = record["messages"][-1]["content"]
        replies.add(reply)
        if reply == IRRELEVANT:
            assert not record["objects"]["bbox"]
    assert replies == {IRRELEVANT, "<boxes>"}
    batch = make_collator().collate([record], asks=True, dense=False)
    assert IRRELEVANT in make_collator().tokenizer.decode(batch["input_ids"][0])


def test_dense_targets_locate_the_object():
    """One box in an image twice the size of the input, with tokens of 32 pixels."""
    scene = Scene(Image.new("RGB", (256, 128)), [[64, 0, 192, 128]], ["ring"])
    targets = dense_targets(scene, (64, 128), cell=32)
    assert targets["classes"].reshape(2, 4).tolist() == [[BACKGROUND, 5, 5, BACKGROUND]] * 2
    assert CLASSES[5] == "ring"
    inside = targets["classes"] != BACKGROUND
    assert targets["place"][inside].unique(dim=0).tolist() == [[0.25, 0, 0.75, 1]]
    # The token with center (48, 16): 16 px from the left edge, 16 from the top, 48 from the right and the bottom edge.
    assert targets["near"][1].tolist() == [16, 16, 48, 48]
    empty = dense_targets(Scene(scene.image), (64, 128), cell=32)
    assert set(empty["classes"].tolist()) == {BACKGROUND}


def test_fine_targets_are_in_the_order_of_the_tower():
    """The four patches of each token follow one another, in row order."""
    scene = Scene(Image.new("RGB", (64, 32)), [[48, 16, 64, 32], [0, 0, 32, 16]], ["ring", "star"])
    targets = fine_targets(scene, (32, 64), patch=16, merge=2)
    star, ring = CLASSES.index("star"), CLASSES.index("ring")
    assert targets["classes"].tolist() == [star, star, BACKGROUND, BACKGROUND, BACKGROUND, BACKGROUND, BACKGROUND, ring]
    assert targets["near"][1].tolist() == [24, 8, 8, 8]


def test_dense_targets_give_the_next_object_of_the_answer():
    """Two rings and a star between them in raster order, each on its own token, listed out of order."""
    boxes_xyxy = [[64, 64, 96, 96], [0, 0, 32, 32], [32, 40, 64, 62]]
    targets = dense_targets(Scene(Image.new("RGB", (96, 96)), boxes_xyxy, ["ring", "ring", "star"]), (96, 96), cell=32)
    low, high, star = (8, 0, 4)  # their tokens
    place = targets["place"]
    assert targets["next"][[high, star]].tolist() == place[[star, low]].tolist()
    assert targets["next_alike"][high].tolist() == place[low].tolist()
    assert targets["next"][low].tolist() == targets["next_alike"][star].tolist() == [NONE] * 4
    assert targets["ends"][[high, star, low]].tolist() == [[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 1, 1]]


def test_the_edge_loss_is_smallest_at_the_edges():
    edges = torch.tensor([[10.5, 20.5, 30.5, 40.5]])
    bins = torch.arange(BINS) + 0.5
    scores = {shift: -((bins - (edges + shift).reshape(-1, 1)) ** 2 / 2).reshape(1, -1) for shift in (0, 1, 5)}
    found = {shift: edge_loss(value, edges).item() for shift, value in scores.items()}
    assert found[0] < found[1] < found[5]
    assert found[0] == pytest.approx(0.5 * np.log(2 * np.pi * np.e), abs=0.001)  # the entropy of a Gaussian
    assert edge_loss(torch.ones(0, DENSE_PARTS[1], requires_grad=True), torch.zeros(0, 4)).item() == 0


@pytest.mark.parametrize("shape", [(192, 192), (192, 576), (576, 192)])
def test_muon_updates_all_directions_equally(shape):
    """Five iterations of the quintic bring any singular values to 0.7…1.2 (the author's bounds)."""
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=draw) @ torch.diag(torch.logspace(-1, 1, shape[1]))
    values = torch.linalg.svdvals(orthogonalize(matrix))
    assert values.max() < 1.3
    assert values.median() > 0.6


def test_muon_descends_and_skips_parameters_without_gradient():
    draw = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(8, 8, generator=draw))
    idle = torch.nn.Parameter(torch.ones(4, 4))
    optimizer, target = Muon([weight, idle], lr=0.2), torch.randn(8, 8, generator=draw)
    first = (weight - target).square().sum().item()
    for _ in range(30):
        optimizer.zero_grad()
        (weight - target).square().sum().backward()
        optimizer.step()
    assert (weight - target).square().sum().item() < first / 2
    assert torch.equal(idle, torch.ones(4, 4))


def test_muon_treats_matrices_of_one_shape_separately():
    draw = torch.Generator().manual_seed(0)
    together = [torch.nn.Parameter(torch.randn(6, 4, generator=draw)) for _ in range(3)]
    alone = [torch.nn.Parameter(parameter.detach().clone()) for parameter in together]
    optimizers = [Muon(together, lr=0.1), *(Muon([parameter], lr=0.1) for parameter in alone)]
    for _ in range(3):
        for parameters in (together, alone):
            for i, parameter in enumerate(parameters):
                parameter.grad = (i + 1) * parameter.detach() ** 3
        for optimizer in optimizers:
            optimizer.step()
    for first, second in zip(together, alone, strict=True):
        torch.testing.assert_close(first, second)  # batched products may round differently


@needs_emoji
def test_positions_in_a_batch_are_those_that_the_model_computes():
    collator = make_collator()
    records = [
        make_record(f"test {i}", STAGES[-1], (128, 96), talk) for i, talk in enumerate(["example", "class", "boxes"])
    ]
    batch = collator.collate(records, asks=True, dense=False)
    del batch["labels"]
    model = (
        build_model("qwen3_vl", collator.tokenizer, hidden=64, layers=1, vision_layers=1, deepstack=1).float().eval()
    )
    positions = batch.pop("position_ids")
    with torch.no_grad():
        own, given = model(**batch).logits, model(**batch, position_ids=positions).logits
    shown = batch["attention_mask"].bool()
    assert torch.equal(given[shown], own[shown])


@needs_emoji
def test_batches_depend_only_on_their_step(monkeypatch):
    monkeypatch.setattr(pretrain_tiny_model, "STAGES", [replace(STAGES[0], steps=8, pixels=1)])
    monkeypatch.setattr(pretrain_tiny_model, "TOTAL_STEPS", 8)

    def pixels(start: int, workers: str) -> list[torch.Tensor]:
        args = pretrain_tiny_model.parse_arguments(["--work", "unused", "--workers", workers])
        return [batch["pixel_values"] for batch in pretrain_tiny_model.batches_from(start, args)]

    whole = pixels(0, "0")
    assert len(whole) == 8 and not torch.equal(whole[0], whole[1])
    for start, workers in ((0, "2"), (3, "2"), (6, "0")):
        assert all(map(torch.equal, pixels(start, workers), whole[start:]))
        assert len(pixels(start, workers)) == 8 - start


@needs_emoji
def test_held_out_results_cover_every_kind_of_conversation(monkeypatch):
    monkeypatch.setattr(pretraining_batches, "MAX_NEW_TOKENS", 4)
    collator = make_collator()
    model = build_model("qwen3_vl", collator.tokenizer, hidden=64, layers=1, vision_layers=1, deepstack=1)
    result = held_out_results(model, collator, seed=0, images=20, talk_images=3)
    assert set(result["conversations"]) == set(TALKS)
    assert set(result["f1_per_class"]) == set(CLASSES) and set(result["f1_per_kind"]) <= set(HELD_OUT_STAGE.kinds)
    assert result["conversations"]["class"]["right"] == 0  # random weights answer neither Yes. nor No.


@needs_emoji
@pytest.mark.slow
def test_pretraining_runs_through_stages_with_different_losses(tmp_path, monkeypatch):
    """A stage always ends with a row of the curve. A resumed run has the weights of an uninterrupted one."""
    stages = [replace(STAGES[i], steps=4, pixels=1) for i in (0, 3, 5, 3)]
    assert [stage.learns for stage in stages] == ["vision", "language", "both", "language"]
    monkeypatch.setattr(pretrain_tiny_model, "STAGES", stages)
    monkeypatch.setattr(pretrain_tiny_model, "EVAL_IMAGES", 2)
    monkeypatch.setattr(pretraining_batches, "MAX_NEW_TOKENS", 8)

    monkeypatch.setattr(pretrain_tiny_model, "TOTAL_STEPS", 16)

    def pretrain(folder: str, minutes: float) -> dict:
        options = {"work": tmp_path / folder, "log-every": 3, "threads": torch.get_num_threads(), "minutes": minutes}
        options = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        done = pretrain_tiny_model.train(
            pretrain_tiny_model.parse_arguments([*options, "--float32", "--device", "cpu"])
        )
        assert done == (minutes > 0)
        torch.set_flush_denormal(False)  # restore the default
        return torch.load(tmp_path / folder / "state.pt", weights_only=True)["model"]

    whole = pretrain("whole", 60)
    rows = list(csv.DictReader((tmp_path / "whole" / "curve.csv").open()))
    assert [int(row["step"]) for row in rows] == [3, 4, 6, 8, 9, 12, 15, 16]
    assert [bool(row["loss"]) for row in rows] == [False, False, True, True, True, True, True, True]
    assert [bool(row["class_loss"]) for row in rows] == [True, True, False, False, True, True, False, False]
    pretrain("stopped", 0)
    resumed = pretrain("stopped", 60)
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())
