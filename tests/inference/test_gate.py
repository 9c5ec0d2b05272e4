"""The gate asks the model, and images that do not pass are not detected in."""

import pytest

from boxtune.inference.detector import decoded_answers
from boxtune.inference.gate import gate_probabilities


def by_id(predictions) -> dict[str, dict]:
    return {prediction["id"]: prediction | {"seconds": 0} for prediction in predictions}


@pytest.fixture(scope="module")
def probabilities(model, make, records) -> dict[str, float]:
    values = gate_probabilities(model, make(), records, 4)
    return {record["id"]: value for record, value in zip(records, values, strict=True)}


def test_only_images_below_the_threshold_are_left_out(model, make, records, probabilities):
    ordered = sorted(probabilities.values())
    assert ordered[0] < ordered[-1] and all(0 < value < 1 for value in ordered)
    middle = (ordered[2] + ordered[3]) / 2
    gated, free = (by_id(decoded_answers(model, make(gate=gate), records, 4)) for gate in (middle, 0.0))
    assert gated.keys() == free.keys() == probabilities.keys()
    refused = {name for name, prediction in gated.items() if prediction["problems"] == ["gated"]}
    assert refused == {name for name, value in probabilities.items() if value < middle} and len(refused) == 3
    for name, prediction in gated.items():
        if name in refused:
            assert prediction["objects"] == {"bbox": [], "category": [], "score": []}
            assert prediction["input_size"] == free[name]["input_size"]
        else:
            assert prediction["text"] == free[name]["text"]


def test_questions_that_are_not_about_boxes_have_no_gate(model, make, records):
    turns = [{"role": "user", "content": "<image>Describe the image."}, {"role": "assistant", "content": "A square."}]
    [prediction] = decoded_answers(model, make(gate=1.0), [records[0] | {"messages": turns}], 4)
    assert "gated" not in prediction["problems"]


def test_the_probability_does_not_depend_on_the_batch(model, make, records, probabilities):
    alone = gate_probabilities(model, make(), records, 1)
    assert alone == pytest.approx([probabilities[record["id"]] for record in records], abs=1e-4)
