"""README.md of a finished model: metadata that the Hub's parser reads, and example code that runs."""

import re
import shutil
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

import evaluate
import merge_adapter
from boxtune.answers.grounding import Grounding
from boxtune.batching.collator import DetectionCollator
from boxtune.batching.encoder import expected_input_size
from boxtune.data.dataset import read_records
from boxtune.data.records import image_path
from boxtune.models.checkpoint import open_checkpoint
from boxtune.reports.model_card import write_card
from tests.helpers.records import FAMILIES
from tests.helpers.training import train


@pytest.fixture(scope="module")
def runs(tiny_models, squares, tmp_path_factory) -> dict:
    """{family: folder of a finished run}."""
    folder = tmp_path_factory.mktemp("cards")
    options = ["--save_strategy", "no", "--max_steps", "1"]
    return {
        name: train(squares, folder / name, "--model_name_or_path", tiny_models[name], *options) for name in FAMILIES
    }


def run_snippet(card: str, folder, image) -> dict:
    """The variables after running the code of the card."""
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    code = code.replace('"FOLDER"', repr(str(folder))).replace('"image.jpg"', repr(str(image)))
    names: dict = {}
    exec(re.sub(r"max_new_tokens=\d+", "max_new_tokens=4", code), names)
    return names


@pytest.mark.parametrize("family", FAMILIES)
def test_the_code_of_the_card_prompts_the_model_as_in_training(runs, squares, family):
    """It gives the same tokens as evaluation, for the folder of an adapter."""
    folder = runs[family] / "final"
    record = read_records(squares, "train")[0]
    image = image_path(record, squares)
    names = run_snippet((folder / "README.md").read_text(), folder, image)
    checkpoint = open_checkpoint(str(folder))
    collator = DetectionCollator(checkpoint.processor, checkpoint.grounding, squares)
    size = expected_input_size(checkpoint.processor, (record["height"], record["width"]))
    assert names["inputs"]["input_ids"][0].tolist() == collator.encoder.encode_question(record, size)
    assert names["tokens"].shape[1] > names["inputs"]["input_ids"].shape[1]


def test_the_code_of_the_card_keeps_any_wording(runs, squares, tmp_path):
    """No system prompt, the image in the middle of the text, and characters beyond the basic plane."""
    folder = tmp_path / "final"
    shutil.copytree(runs["qwen3_vl"] / "final", folder)
    question = 'Find 😀 "things"\\n in <image> please.'
    replace(Grounding.load(folder), system_prompt="", format_sentence="", questions=[question]).save(folder)
    write_card(folder, "finder")
    record = read_records(squares, "train")[0]
    record["messages"][0]["content"] = question
    names = run_snippet((folder / "README.md").read_text(), folder, image_path(record, squares))
    checkpoint = open_checkpoint(str(folder))
    collator = DetectionCollator(checkpoint.processor, checkpoint.grounding, squares)
    size = expected_input_size(checkpoint.processor, (record["height"], record["width"]))
    assert names["inputs"]["input_ids"][0].tolist() == collator.encoder.encode_question(record, size)


def test_evaluation_writes_its_numbers_to_the_card(runs, squares):
    folder = runs["qwen3_vl"] / "final"
    replace(Grounding.load(folder), max_new_tokens=8).save(folder)
    for experiment in (
        ["--limit", "1"],
        ["--max-new-tokens", "4"],
    ):  # these numbers are not those of the whole split with the trained settings
        evaluate.main(["--ckpt", str(folder), *experiment])
        assert "Not evaluated yet" in (folder / "README.md").read_text()
    evaluate.main(["--ckpt", str(folder)])
    card = ModelCard.load(folder / "README.md")
    assert {result.metric_type for result in card.data.eval_results} >= {"f1", "mean_iou"}
    assert card.data.library_name == "peft" and card.data.base_model is None  # a local folder is not on the Hub
    assert "Not evaluated yet" not in card.content and "| AP | AP50 |" in card.content


def test_a_merged_model_has_a_card_of_its_own(runs, tmp_path):
    merge_adapter.main(["--ckpt", str(runs["qwen2_5_vl"] / "final"), "--out", str(tmp_path / "m"), "--samples", "1"])
    card = ModelCard.load(tmp_path / "m" / "README.md")
    assert card.data.library_name == "transformers" and "A merged model" in card.content
    assert "pixels of the resized image" in card.content


def test_a_fully_fine_tuned_model_is_not_called_merged(squares, tmp_path):
    options = ["--load_in_4bit", "false", "--use_peft", "false", "--lora_vision", "false", "--max_steps", "1"]
    card = ModelCard.load(train(squares, tmp_path / "run", *options) / "final" / "README.md")
    assert card.data.library_name == "transformers" and "A fine-tuned model that detects" in card.content
    assert "merged from an adapter" not in card.content


def test_names_of_classes_are_shown_without_markdown(runs, tmp_path):
    folder = shutil.copytree(runs["qwen3_vl"] / "final", tmp_path / "final")
    replace(Grounding.load(folder), classes=["<person>", "__cat__", "a`b"], irrelevant_answer="not here").save(folder)
    write_card(folder, "finder")
    card = (folder / "README.md").read_text()
    assert "detects `<person>`, `__cat__`, `` a`b `` in images" in card
    assert "the response `not here` means" in card


def test_a_base_model_on_the_hub_is_named(runs, tmp_path):
    folder = tmp_path / "run" / "final"
    shutil.copytree(runs["qwen2_vl"] / "final", folder)
    text = (folder / "grounding.json").read_text()
    base = re.search(r'"base_model": "([^"]+)"', text).group(1)
    (folder / "grounding.json").write_text(text.replace(base, "Qwen/Qwen2-VL-2B-Instruct"))
    write_card(folder, "finder")
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "Qwen/Qwen2-VL-2B-Instruct" and card.data.tags[0] == "boxtune"
    assert "0 to 1000 of the image's width" in card.content and "skip_special_tokens=False" in card.content
