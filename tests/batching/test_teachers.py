"""Few-shot conversations: which examples precede a training example, what is supervised, and that no image is confused."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from boxtune.answers.codecs import CODECS
from boxtune.batching.encoder import IGNORE_INDEX, expected_input_size
from boxtune.batching.label_check import check_batch
from boxtune.batching.lengths import as_dataset, measure, with_teachers
from boxtune.batching.teachers import Teachers
from boxtune.common.errors import UserError
from boxtune.data.dataset import read_records
from boxtune.data.record_checks import record_problems
from boxtune.data.records import shown_records
from boxtune.data.tiles import training_views
from boxtune.training import setup_examples
from boxtune.training.recipe import load_recipe
from boxtune.training.run_info import describe_batch
from tests.helpers.collators import as_examples, make_collator
from tests.helpers.records import FAMILIES

BUDGET = {"min_pixels": None, "max_pixels": 30_000}


@pytest.fixture
def records(squares):
    return read_records(squares, "train")


def taught(records, samples=2):
    """A record with objects, after `samples` others."""
    shown = [record for record in records if record["objects"]["bbox"]]
    return shown[samples] | {"taught_by": shown[:samples]}


def test_teachers_are_drawn_from_other_images_and_change_with_the_epoch(records):
    teachers = Teachers(records, ratio=0.75, samples=2, seed=3)
    counts, drawn = Counter(), set()
    for epoch in range(50):
        teachers.epoch.fill_(epoch)
        for record in records:
            once, again = teachers(record), teachers(record)
            assert once == again
            ids = [teacher["id"] for teacher in once.get("taught_by", [])]
            assert record["id"] not in ids
            assert len(set(ids)) == len(ids)
            counts[len(ids)] += 1
            drawn.update(ids)
    assert set(counts) == {0, 2}
    assert counts[2] / counts.total() == pytest.approx(0.75, abs=0.06)
    assert drawn == {record["id"] for record in records}
    assert Teachers(records, 1.0, 2, seed=4)(records[0]) != Teachers(records, 1.0, 2, seed=3)(records[0])


def test_a_tile_is_not_taught_by_its_own_image(records):
    pool = records[:2]
    tile = training_views(records[1], 64)[-1]
    assert tile["id"] != records[1]["id"]
    for seed in range(20):
        assert [teacher["id"] for teacher in Teachers(pool, 1.0, 1, seed)(tile)["taught_by"]] == [records[0]["id"]]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_is_supervised_in_the_frame_of_its_own_image(tiny_models, squares, records, family):
    collator = make_collator(tiny_models[family], squares, **BUDGET)
    rows = [taught(records), records[0]]
    batch = collator(as_examples(*rows))
    checked = check_batch(batch, rows, collator.processor, collator.codec, collator.grounding)
    assert [example.problems for example in checked] == [[]] * 4
    assert [example.record["id"] for example in checked] == [
        shown["id"] for row in rows for shown in shown_records(row)
    ]
    assert all(example.count_boxes() for example in checked[:3])
    for example, pixels in zip(checked, batch["image_grid_thw"], strict=True):
        alone, _ = collator.process_images([example.record | {"taught_by": []}])
        assert torch.equal(alone["image_grid_thw"][0], pixels)


def test_an_answer_in_the_frame_of_another_image_is_caught(tiny_models, squares, records):
    collator = make_collator(tiny_models["qwen2_5_vl"], squares, **BUDGET)
    record = taught(records)
    original = collator.encoder.encode
    collator.encoder.encode = lambda record, size, teachers: original(record, size, teachers[::-1])
    sizes = [expected_input_size(collator.processor, (r["height"], r["width"])) for r in record["taught_by"]]
    assert sizes[0] != sizes[1], "or this test could not fail"
    batch = collator(as_examples(record))
    checked = check_batch(batch, [record], collator.processor, collator.codec, collator.grounding)
    assert [bool(example.problems) for example in checked] == [True, True, False]


def test_the_conversation_is_that_of_the_embedded_models_pretraining(tiny_models, squares, records):
    """System turn, then one turn pair for each image, all in the same form."""
    collator = make_collator(tiny_models["qwen3_vl"], squares, **BUDGET)
    record = taught(records, samples=1)
    text = collator.tokenizer.decode(collator(as_examples(record))["input_ids"][0])
    pairs = []
    for shown in shown_records(record):
        size = expected_input_size(collator.processor, (shown["height"], shown["width"]))
        count = size[0] * size[1] // 32**2
        objects = shown["objects"]
        answer = CODECS["qwen3_vl"].encode(
            objects["bbox"], objects["category"], (shown["height"], shown["width"]), size
        )
        question = shown["messages"][0]["content"].removeprefix("<image>")
        image = f"<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>"
        pairs.append(
            f"<|im_start|>user\n{image}{question} {collator.grounding.format_sentence}<|im_end|>\n"
            f"<|im_start|>assistant\n{answer.text}<|im_end|>\n"
        )
    assert text == f"<|im_start|>system\nFind things.<|im_end|>\n{''.join(pairs)}"


@pytest.mark.parametrize("system_prompt", ["Find things.", ""])
@pytest.mark.parametrize("family", FAMILIES)
def test_spans_of_teachers_and_student(tiny_models, squares, records, family, system_prompt):
    collator = make_collator(tiny_models[family], squares, system_prompt=system_prompt, **BUDGET)
    collator.teachers = Teachers(records, 1.0, 2, seed=0)
    rows = [taught(records), records[1]]
    batch = collator.for_losses(teacher_forced=True, sampled=False, students=True)(as_examples(*rows))
    decode = collator.tokenizer.decode
    eos = collator.tokenizer.eos_token

    texts = [decode(collator.encoder.encode(one, (56, 56)).input_ids) for one in rows[0]["taught_by"]]
    answers = [text.rsplit("assistant\n", 1)[1].removesuffix("\n") for text in texts]
    if CODECS[family].frame.steps:  # other coordinates depend on the size
        assert decode(batch["labels"][0][batch["teacher_tokens"][0]]) == answers[0] + answers[1]
    assert decode(batch["labels"][0][batch["teacher_tokens"][0]]).count(eos) == 2
    assert not batch["teacher_tokens"][1].any()
    supervised = batch["labels"] != IGNORE_INDEX
    assert (supervised & ~batch["teacher_tokens"]).any(1).all()

    assert batch["student_images"].tolist() == [2, 3]
    for ids, labels, prompt, row in zip(
        batch["input_ids"], batch["labels"], batch["student_prompt"], batch["student_images"], strict=True
    ):
        tokens_of_image = int(batch["image_grid_thw"][row].prod()) // 4
        text = decode(ids[prompt])
        assert text.strip().startswith("<|im_start|>user\n<|vision_start|>")
        assert text.endswith("<|im_start|>assistant\n")
        assert text.count("<|image_pad|>") == tokens_of_image
        first_of_response = int(prompt.nonzero()[-1]) + 1
        assert (labels[first_of_response:] != IGNORE_INDEX).any()
        assert (labels[prompt] == IGNORE_INDEX).all(), "no answer"
    # Box losses see the student's boxes only.
    assert len(batch["targets"]["boxes_xyxy"]) == sum(len(row["objects"]["bbox"]) for row in rows)


def test_prompts_of_evaluation_are_those_of_training(tiny_models, squares, records):
    collator = make_collator(tiny_models["qwen2_5_vl"], squares, **BUDGET).for_losses(False, False, students=True)
    rows = [taught(records), records[0]]
    batch, sizes = collator.collate_questions(rows)
    trained = collator(as_examples(*rows))
    assert sizes == [expected_input_size(collator.processor, (row["height"], row["width"])) for row in rows]
    assert torch.equal(batch["pixel_values"], trained["pixel_values"])
    assert torch.equal(batch["student_images"], trained["student_images"])
    for i in range(2):
        prompt = batch["input_ids"][i][batch["attention_mask"][i].bool()]
        assert torch.equal(prompt, trained["input_ids"][i][: len(prompt)])
        own = batch["input_ids"][i][batch["student_prompt"][i]]
        assert torch.equal(own, trained["input_ids"][i][trained["student_prompt"][i]])


def test_lengths_with_teachers_are_enough_for_every_draw(tiny_models, squares, records):
    collator = make_collator(tiny_models["qwen2_5_vl"], squares, **BUDGET)
    lengths = with_teachers(measure(records, collator.encoder), 2)
    teachers, drawn = Teachers(records, 1.0, 2, seed=0), Counter()
    for epoch in range(40):
        teachers.epoch.fill_(epoch)
        for record in records:
            *sizes, size = [
                expected_input_size(collator.processor, (one["height"], one["width"]))
                for one in shown_records(teachers(record))
            ]
            total = len(collator.encoder.encode(teachers(record), size, sizes).input_ids)
            drawn[record["id"]] = max(drawn[record["id"]], total)
    gaps = [entry.total - drawn[entry.id] for entry in lengths]
    assert min(gaps) in (0, 1, 2), "the longest draw needs at most what is counted, and one token per teacher less"


def test_varied_examples_keep_their_teachers_and_fit(tiny_models, squares, records):
    collator = make_collator(tiny_models["qwen2_5_vl"], squares, **BUDGET)
    recipe = load_recipe(["--config", "tiny_nutrition_qlora", "--augment", "crop", "color", "--teacher_ratio", "1"])
    longest = max(entry.total for entry in with_teachers(measure(records, collator.encoder), 1))
    variation = setup_examples.make_variation(recipe, records, ["red square", "blue square"], 30_000)
    collator.variation = replace(variation, max_length=longest)
    collator.teachers = setup_examples.make_teachers(recipe, records)
    batch = collator(list(as_dataset(records, squares, varied=True)))
    assert len(batch["image_grid_thw"]) == 2 * len(records)
    assert batch["input_ids"].shape[1] <= longest
    assert batch["teacher_tokens"].any(1).all()
    plain = collator(list(as_dataset(records, squares)))
    assert len(plain["image_grid_thw"]) == len(records), "validation has no teachers"


def test_the_first_batch_shows_each_image_as_a_count(tiny_models, squares, records):
    collator = make_collator(tiny_models["qwen2_5_vl"], squares, **BUDGET)
    collator.teachers = Teachers(records, 1.0, 1, seed=0)
    record = taught(records, samples=1)
    batch = collator(as_examples(record))
    text = describe_batch(collator.processor, batch)
    counts = [int(grid.prod()) // 4 for grid in batch["image_grid_thw"]]
    assert [f"[{count} image tokens]" in text for count in counts] == [True, True]
    assert "<|image_pad|>" not in text
    of_teacher, own = text.split("--- supervised, teachers\n")[1].split("--- supervised\n")
    assert of_teacher.count("bbox_2d") == len(record["taught_by"][0]["objects"]["bbox"])
    assert own.count("bbox_2d") == len(record["objects"]["bbox"])


def test_keys_of_the_recipe(records):
    def recipe(*options):
        return load_recipe(["--config", "tiny_nutrition_qlora", *options])

    assert setup_examples.make_teachers(recipe(), records) is None
    tiles = [view for record in records for view in training_views(record, 64)]
    assert setup_examples.make_teachers(recipe("--teacher_ratio", "0.5"), tiles).pool == records
    with pytest.raises(UserError, match="16 training images in all"):
        setup_examples.make_teachers(recipe("--teacher_ratio", "0.5", "--num_teacher_samples", "16"), records)
    for options in (
        ("--num_teacher_samples", "2"),
        ("--teacher_ratio", "1.5"),
        ("--teacher_ratio", "1", "--grounding_mode", "both", "--fp_loss_weight", "1"),
        ("--teacher_ratio", "1", "--label_smoothing_factor", "0.1"),
    ):
        with pytest.raises(UserError, match="teacher"):
            recipe(*options)


def test_the_key_of_memory_is_refused_in_data(records):
    [problem] = record_problems(records[0] | {"taught_by": []})
    assert "taught_by exists in memory only; rename it" in problem


def test_the_detection_head_learns_from_the_students_image_only(tiny_models, squares, records):
    collator = make_collator(tiny_models["qwen3_vl"], squares, **BUDGET)
    collator.grounding = replace(collator.grounding, classes=["red square", "blue square"])
    rows = [taught(records), records[0]]
    batch = collator.for_losses(False, False, head=True, students=True)(as_examples(*rows))
    targets = batch["head_targets"]
    assert torch.equal(targets["image"], batch["student_images"])
    assert len(targets["boxes"]) == sum(len(row["objects"]["bbox"]) for row in rows)
    first, second = batch["student_prompt"]
    assert (targets["question_start"][0], targets["question_end"][0]) == (first.nonzero()[0], first.nonzero()[-1] + 1)
    # Without teachers, the system turn is part of what the head sees.
    assert (targets["question_start"][1], targets["question_end"][1]) == (0, second.nonzero()[-1] + 1)
