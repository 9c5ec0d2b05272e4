"""The guardrail suite tells broken models from a sound one, and only by the probes that should notice."""

from dataclasses import replace

import pytest
import torch

from benchmarks.guardrail_reliability import BROKEN, CLASSES, broken_model, is_worse, make_collator, page_records
from boxtune.common.errors import UserError
from boxtune.inference.guardrail_suite import read_suite
from boxtune.inference.guardrails import run_base_guardrails, run_guardrails
from boxtune.inference.probes.material import make_material
from boxtune.inference.probes.subject import Subject
from boxtune.inference.probes.yes_no import yes_no_questions
from boxtune.metrics.guardrail_rules import DOMAINS, PROBES, Probe

SUITE = replace(read_suite("tiny"), images=3, unrelated_count=4, questions=6, caption_tokens=32)
BATCH = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def records(folder):
    return page_records(folder, 3)


@pytest.fixture(scope="module")
def collator():
    collator = make_collator()
    collator.grounding = replace(collator.grounding, max_new_tokens=64)
    return collator


@pytest.fixture(scope="module")
def models(collator, folder):
    return {kind: broken_model(kind, collator, SUITE, folder) for kind in BROKEN}


@pytest.fixture(scope="module")
def base_answers() -> dict:
    """What the base answered. It is the same for all models."""
    return {}


@pytest.fixture(scope="module")
def sound(models, collator, records, base_answers) -> dict[str, Probe]:
    """The results of the base of the first model."""
    return run_base_guardrails(models["always empty"], collator, SUITE, records, BATCH, base_answers)


@pytest.fixture(scope="module")
def found(models, collator, records, sound, base_answers) -> dict[str, dict[str, Probe]]:
    asked = (collator, SUITE, records, BATCH, sound, base_answers)
    return {kind: run_guardrails(model, *asked) for kind, model in models.items()}


def worse(probes, sound) -> set[str]:
    return {name for name, probe in probes.items() if is_worse(name, probe.value, sound[name].value)}


FORGOTTEN = {"pope_accuracy", "untrained_agreement", "caption_sanity", "drift_kl", "drift_top1"}


@pytest.mark.slow
def test_the_same_model_twice_gives_the_same_values(models, collator, records, sound):
    """Also with another adapter, which is turned off."""
    again = run_base_guardrails(models["random vision"], collator, SUITE, records, BATCH)
    assert again == sound and again.keys() == {*PROBES, *DOMAINS}


@pytest.mark.slow
def test_a_model_that_always_answers_with_an_empty_list_is_told_apart(found, sound):
    """It invents no boxes, so the probes of invented boxes do not notice; and without boxes there is no consistency."""
    probes = found["always empty"]
    assert worse(probes, sound) == {"blindness_rate", *FORGOTTEN}
    assert (probes["irrelevant_pass_rate"].value, probes["absent_rate"].value) == (1.0, 0.0)
    assert probes["crop_consistency"] == Probe(None, 0, sound["crop_consistency"].value)


@pytest.mark.slow
def test_a_model_that_always_answers_with_one_box_is_told_apart(found, sound):
    probes = found["always one box"]
    invented = {"irrelevant_pass_rate", "hallucination_rate", "absent_rate"}
    assert worse(probes, sound) == {"blindness_rate", *invented, *FORGOTTEN}
    assert probes["hallucinated_boxes"].value == 1.0 and probes["boxes_in_out"].value == 1.0
    assert probes["crop_consistency"].value > 0.5  # a box that never moves is consistent


@pytest.mark.slow
def test_a_model_with_a_random_vision_tower_is_told_apart_but_its_language_is_the_same(
    models, found, sound, collator, records
):
    probes = found["random vision"]
    assert worse(probes, sound) >= {
        "blindness_rate",
        "crop_consistency",
        "untrained_agreement",
        "drift_kl",
        "drift_top1",
    }
    assert probes["blindness_rate"].value == 1.0 and probes["untrained_agreement"].value < 0.2
    model = models["random vision"]
    (tuned, _), (base, _) = (
        Subject(model, collator, BATCH, adapted=adapted).logits_of_text(SUITE.drift_texts[0])
        for adapted in (True, False)
    )
    assert torch.equal(tuned, base)


@pytest.mark.slow
def test_baselines_and_answers_of_the_base_are_kept(models, collator, records, sound):
    """Answers of the base that are given are not asked for again: here they are those of another model."""
    model, suite = models["random vision"], replace(SUITE, probes=["untrained", "unrelated"])
    kept, answers = {}, {}
    first = run_guardrails(model, collator, suite, records, BATCH, base_answers=kept, answers=answers)
    assert first["untrained_agreement"].baseline is None and kept and len(answers) > len(kept)
    for key, prediction in answers.items():
        if key in kept:
            kept[key] = prediction
    second = run_guardrails(model, collator, suite, records, BATCH, sound, base_answers=kept)
    assert second["untrained_agreement"].value == 1.0
    assert second["hallucination_rate"] == replace(
        first["hallucination_rate"], baseline=sound["hallucination_rate"].value
    )


# ---- what is asked -------------------------------------------------------------------------------------------------------


@pytest.fixture
def material(collator, records):
    return make_material(SUITE, collator, records, None)


def test_half_of_the_yes_no_questions_are_about_classes_that_the_image_has(material, records):
    present, absent = yes_no_questions(material)
    assert len(present) == len(absent) == 3
    classes_of = {record["id"]: record["objects"]["category"] for record in records}
    for questions, expected in ((present, True), (absent, False)):
        for one in questions:
            page = one.id.partition("/")[0]
            [name] = [name for name in CLASSES if f" {name} " in one.record["messages"][0]["content"]]
            assert (name in classes_of[page]) is expected
    assert yes_no_questions(material) == (present, absent)


def test_unrelated_images_are_asked_in_the_words_of_the_dataset(material, records):
    asked = {one.record["messages"][0]["content"] for one in material.unrelated}
    assert asked == {record["messages"][0]["content"] for record in records} and len(material.unrelated) == 4
    assert all(one.open().size == (one.record["width"], one.record["height"]) for one in material.unrelated)


def test_records_that_never_ask_for_boxes_are_refused(collator, records):
    turns = [{"role": "user", "content": "<image>What is this?"}, {"role": "assistant", "content": "A page."}]
    with pytest.raises(UserError, match="need records that ask for boxes"):
        run_guardrails(None, collator, SUITE, [record | {"messages": turns} for record in records], BATCH)
