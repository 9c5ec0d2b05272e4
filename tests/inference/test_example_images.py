"""The decode setting `teachers`: example images of the checkpoint in each prompt, here and for a server."""

import base64
import io
import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

import evaluate
from boxtune import Detector
from boxtune.answers.decoding import Decoding
from boxtune.answers.example_images import copy_examples, read_examples
from boxtune.answers.grounding import Grounding
from boxtune.batching.collator import DetectionCollator
from boxtune.batching.label_check import check_batch
from boxtune.common.errors import UserError
from boxtune.data.dataset import read_info, read_records, write_dataset
from boxtune.inference.client import ServerClient
from boxtune.models.checkpoint import open_checkpoint
from tests.helpers.collators import as_examples
from tests.helpers.training import train, tune


@pytest.fixture(scope="module")
def trained(squares, tmp_path_factory):
    """The final checkpoint of a run with two teachers for each example. The data that it was trained on is gone."""
    folder = tmp_path_factory.mktemp("taught")
    images = folder / "images"
    images.mkdir()

    def copied(record):
        target = images / f"{record['id']}.png"
        shutil.copyfile(squares / record["image"], target)
        return record | {"image": str(target)}

    splits = {"train": [copied(record) for record in read_records(squares, "train")]}
    classes = read_info(squares)["classes"]
    write_dataset(folder / "data", name="data", source_format="test", classes=classes, splits=splits, problems=[])
    options = ("--teacher_ratio", 1, "--num_teacher_samples", 2, "--max_length", 4096, "--max_steps", 1)
    run = train(folder / "data", folder / "run", *options, "--max_pixels", 16384)
    shutil.rmtree(images)
    shutil.rmtree(folder / "data")
    return run / "final"


@pytest.fixture
def final(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "final")


def collator_of(folder, data_dir, **settings) -> DetectionCollator:
    checkpoint = open_checkpoint(str(folder))
    return DetectionCollator(
        checkpoint.processor, replace(checkpoint.grounding, decoding=Decoding(**settings)), data_dir
    )


def test_the_copies_have_their_own_boxes(final, squares):
    examples = read_examples(final, 2)
    assert all(example["objects"]["bbox"] for example in examples)
    collator = collator_of(final, squares)
    sizes = collator.process_images(examples)[1]
    assert [(example["height"], example["width"]) for example in examples] == sizes, "nothing is resized again"
    taught = read_records(squares, "test")[2] | {"taught_by": examples}
    checked = check_batch(
        collator(as_examples(taught)), [taught], collator.processor, collator.codec, collator.grounding
    )
    assert [example.problems for example in checked] == [[], [], []]
    assert sum(example.count_boxes() for example in checked[:2]) == sum(len(e["objects"]["bbox"]) for e in examples)


def test_a_detector_shows_them_before_the_image(final, squares):
    [record] = [r for r in read_records(squares, "test") if r["id"] == "test_1"]
    image = Image.open(squares / record["image"])
    detector = Detector.from_pretrained(final, max_new_tokens=24)
    plain, shown = detector(image), detector(image, teachers=2)
    prompts = {}
    for count in (0, 2):
        collator = collator_of(final, squares)
        asked = record | ({"taught_by": read_examples(final, count)} if count else {})
        batch, _ = collator.collate_questions([asked])
        output = detector.model.generate(**batch, max_new_tokens=24, do_sample=False)
        text = collator.tokenizer.decode(output[0, batch["input_ids"].shape[1] :])
        prompts[count] = text.partition(collator.tokenizer.eos_token)[0]
    assert (plain.text, shown.text) == (prompts[0], prompts[2])
    in_list = detector([image, image], teachers=2)
    assert [found.text for found in in_list] == [shown.text] * 2
    with pytest.raises(UserError, match="3 is too many"):
        detector(image, teachers=3)
    with pytest.raises(UserError, match="teachers: -1 must be a whole number"):
        detector(image, teachers=-1)


def test_evaluation_uses_the_stored_setting(final, squares, capsys):
    tune(final, teachers=1)
    assert json.loads((final / "grounding.json").read_text())["decoding"]["teachers"] == 1
    options = ["--ckpt", str(final), "--data", str(squares), "--limit", "2", "--max-new-tokens", "8"]
    evaluate.main(options)
    metrics = json.loads((final.parent / "eval" / "metrics.json").read_text())
    assert metrics["provenance"]["decoding"]["teachers"] == 1
    tune(final)
    assert "teachers" not in (final / "grounding.json").read_text()
    assert Grounding.load(final).decoding == Decoding()
    tune(final, teachers=1)
    shutil.rmtree(final / "teachers")
    with pytest.raises(SystemExit):
        evaluate.main(options)
    assert "only training with teacher_ratio makes one" in capsys.readouterr().err


def test_corrupt_examples_are_refused(final):
    (final / "teachers" / "1.png").unlink()
    assert len(read_examples(final, 1)) == 1
    with pytest.raises(UserError, match="images are missing"):
        read_examples(final, 2)
    path = final / "teachers" / "teachers.jsonl"
    path.write_text(path.read_text().replace('"width"', '"wide"'))
    with pytest.raises(UserError, match="missing width"):
        read_examples(final, 1)


def test_a_server_gets_the_prompt_of_generation(final, squares):
    """The images and tokens that a server's processor makes of the messages."""
    collator = collator_of(final, squares)
    record = read_records(squares, "test")[1] | {"taught_by": read_examples(final, 2)}
    client = ServerClient("http://there/v1", {"id": "m"}, collator)
    messages = client.messages(record, client.image_part(collator.load(record))[0])
    for part in (part for message in messages for part in message["content"]):
        if part["type"] == "image_url":
            data = base64.b64decode(part.pop("image_url")["url"].removeprefix("data:image/png;base64,"))
            part |= {"type": "image", "image": Image.open(io.BytesIO(data))}
    there = collator.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    here, [size] = collator.collate_questions([record])
    assert torch.equal(there["input_ids"], here["input_ids"])
    assert torch.equal(there["pixel_values"], here["pixel_values"])
    client._check_prompt_length(record, size, there["input_ids"].shape[1])


def test_merging_copies_them(final, tmp_path):
    (tmp_path / "merged").mkdir()
    copy_examples(final, tmp_path / "merged")
    merged = read_examples(tmp_path / "merged", 2)
    assert [example["id"] for example in merged] == [example["id"] for example in read_examples(final, 2)]
    copy_examples(tmp_path / "nothing", tmp_path / "merged")
