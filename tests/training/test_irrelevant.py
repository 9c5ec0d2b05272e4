"""Unrelated images in training: how many, what is supervised, and what the checkpoint keeps."""

import pytest
from PIL import Image

from boxtune.answers.grounding import Grounding
from boxtune.batching.collator import DetectionCollator
from boxtune.batching.encoder import IGNORE_INDEX
from boxtune.batching.lengths import as_dataset
from boxtune.common.errors import UserError
from boxtune.data.dataset import read_records
from boxtune.models.config import load_config
from boxtune.models.processors import load_processor
from boxtune.training import setup_examples
from boxtune.training.irrelevant import with_irrelevant
from boxtune.training.recipe import load_recipe
from tests.helpers.records import ROOT
from tests.helpers.training import train

EMBEDDED = str(ROOT / "assets" / "tiny_qwen3_vl")
CLASSES = ["red square", "blue square"]
RULE = "If the image has nothing to do with the question, answer {}."


@pytest.fixture
def make(squares, tmp_path):
    """(recipe, encoder, collator, training records with the irrelevant ones) for recipe keys."""

    def made(*words):
        out = ("--data_dir", str(squares), "--output_dir", str(tmp_path / "run"))
        recipe = load_recipe(["--config", "tiny_nutrition_qlora", *out, *words])
        processor = load_processor(EMBEDDED, min_pixels=4096, max_pixels=50176)
        encoder = setup_examples.make_encoder(recipe, load_config(EMBEDDED), processor, CLASSES)
        own = read_records(squares, "train")
        grounding = setup_examples.make_grounding(recipe, encoder, own, CLASSES, None, 64)
        return recipe, encoder, DetectionCollator(processor, grounding, squares), with_irrelevant(recipe, own, encoder)

    return made


@pytest.mark.parametrize(("answer", "text"), [("无关图片", "无关图片"), ("", "[]")])
def test_exactly_the_agreed_answer_is_supervised_after_the_prompt_of_evaluation(make, answer, text):
    words = ["--irrelevant_answer", answer] if answer else []
    _, encoder, collator, records = make("--irrelevant_images", "generated", "--irrelevant_share", "0.2", *words)
    assert (
        encoder.system_prompt.endswith(RULE.format(text)) and collator.grounding.system_prompt == encoder.system_prompt
    )
    irrelevant = records[16:]
    assert len(irrelevant) == 4 and len(records) == 20  # a fifth
    tokenizer = collator.tokenizer
    batch = collator(list(as_dataset(irrelevant, collator.data_dir)))
    asked = collator.collate_asked(read_records(collator.data_dir, "train")[:1], [(224, 224)])
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        supervised = labels[labels != IGNORE_INDEX]
        assert tokenizer.decode(supervised) == text + tokenizer.eos_token
        prompt = tokenizer.decode(ids).partition(text + tokenizer.eos_token)[0]
        assert _without_image(prompt) == _without_image(tokenizer.decode(asked["input_ids"][0]))


def _without_image(text: str) -> str:
    return text.replace("<|image_pad|>", "")


def test_without_the_key_nothing_changes(make):
    recipe, encoder, _, records = make("--irrelevant_answer", "无关图片")
    assert len(records) == 16 and encoder.system_prompt == recipe.options.system_prompt


def test_images_of_a_folder_are_used_more_than_once_where_they_are_few(make, tmp_path):
    for i in range(2):
        Image.new("RGB", (64, 64), (i * 90, 9, 9)).save(tmp_path / f"{i}.png")
    _, _, _, records = make("--irrelevant_images", str(tmp_path), "--irrelevant_share", "0.5")
    added = records[16:]
    assert len(added) == 16 and len({record["image"] for record in added}) == 2
    assert len({record["id"] for record in added}) == 16


def test_teachers_are_never_irrelevant(make):
    recipe, _, _, records = make(
        "--irrelevant_images", "generated", "--irrelevant_share", "0.5", "--teacher_ratio", "0.5"
    )
    teachers = setup_examples.make_teachers(recipe, records)
    assert len(teachers.pool) == 16 and {record["id"] for record in teachers.pool} == {r["id"] for r in records[:16]}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--irrelevant_share", "0.3"], "irrelevant_share: has no effect without irrelevant_images"),
        (
            ["--irrelevant_images", "generated", "--irrelevant_share", "0.7"],
            "irrelevant_share: 0.7 must be above 0, at most 0.5",
        ),
        (["--irrelevant_answer", "x<|im_end|>"], "irrelevant_answer: 'x<|im_end|>' contains a special token"),
    ],
)
def test_values_that_cannot_be_used_are_refused(words, problem):
    with pytest.raises(UserError) as error:
        load_recipe(["--config", "tiny_nutrition_qlora", *words])
    assert problem in str(error.value)


def test_a_folder_without_images_is_refused(make, tmp_path):
    with pytest.raises(UserError, match="no folder with images"):
        make("--irrelevant_images", str(tmp_path / "nowhere"))


@pytest.mark.slow
def test_a_run_saves_rule_and_answer_with_the_checkpoint(squares, tmp_path, capsys):
    run = train(squares, tmp_path / "run", "--irrelevant_images", "generated", "--irrelevant_answer", "无关图片")
    grounding = Grounding.load(run / "final")
    assert grounding.irrelevant_answer == "无关图片" and grounding.system_prompt.endswith(RULE.format("无关图片"))
    assert all("bbox_2d" not in question for question in grounding.questions)
    assert len(list((run / "irrelevant_images").glob("*.png"))) == 2
    assert "irrelevant_images: 2 examples with 2 images of generated added to 16" in capsys.readouterr().out
