"""Decode settings where responses are generated: none of them changes what plain greedy decoding gives, each does its own."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, StoppingCriteriaList

from boxtune.answers.confidence import DEFAULT
from boxtune.answers.predictions import make_prediction
from boxtune.common.json_lines import to_json_line
from boxtune.data.images import load_image
from boxtune.data.questions import asked_classes, question, turns_for
from boxtune.data.records import image_path
from boxtune.data.tiles import tile_grid
from boxtune.inference.client import ServerClient
from boxtune.inference.generation import (
    LoopStop,
    PenalizedProbabilities,
    generate_answers,
    largest_first,
    read_answer,
    token_spans,
)
from boxtune.models.generation_config import stop_ids
from tests.helpers.serving import Behaviour, serving

CLASSES = ["red square", "blue square"]


def by_id(predictions) -> dict[str, dict]:
    return {prediction["id"]: prediction for prediction in predictions}


def lines_of(predictions) -> list[str]:
    return [to_json_line(prediction | {"seconds": 0.0}) for prediction in predictions]


@torch.no_grad()
def plain_predictions(model, collator, records, batch_size: int):
    """Greedy decoding written out, without anything that a decode setting needs."""
    tokenizer, stops = collator.tokenizer, stop_ids(collator.tokenizer)
    digit_ids = tokenizer.convert_tokens_to_ids(list("0123456789"))
    ordered = largest_first(records, collator)
    for rows in (ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)):
        batch, sizes = collator.collate_questions(rows)
        length = batch["input_ids"].shape[1]
        config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=collator.grounding.max_new_tokens,
            eos_token_id=stops,
            pad_token_id=tokenizer.pad_token_id,
        )
        stop = LoopStop(length, len(rows), set(stops))
        options = {
            "output_logits": True,
            "return_dict_in_generate": True,
            "stopping_criteria": StoppingCriteriaList([stop]),
        }
        output = model.generate(**batch, generation_config=config, **options)
        logits = torch.stack(output.logits, 1)
        log_probs = logits.max(-1).values - logits.logsumexp(-1)
        digits = logits[..., digit_ids] - logits.logsumexp(-1, keepdim=True)
        for i, (record, size) in enumerate(zip(rows, sizes, strict=True)):
            ids = output.sequences[i, length:].tolist()
            text, tokens, ended = read_answer(tokenizer, ids, log_probs[i].numpy(), digits[i].numpy(), set(stops))
            cut = "looped" if stop.looped[i] else None if ended else "truncated"
            names = asked_classes(record, CLASSES)
            yield make_prediction(record, "qwen3_vl", size, text, 0.0, tokens, asked=names, cut=cut)


def test_the_defaults_give_the_bytes_of_plain_greedy_decoding(model, make, records):
    predictions = list(generate_answers(model, make(), records, 4))
    assert sum(len(prediction["objects"]["bbox"]) for prediction in predictions) > 3
    assert lines_of(predictions) == lines_of(plain_predictions(model, make(), records, 4))


# ---- repetition penalty --------------------------------------------------------------------------------------------------


def test_the_penalty_is_that_of_transformers_and_scores_are_probabilities_before_it(model, make, records):
    collator = make(repetition_penalty=1.2)
    penalized = by_id(generate_answers(model, collator, records, 1))
    plain = by_id(generate_answers(model, make(), records, 1))
    assert [p["text"] for p in penalized.values()] != [p["text"] for p in plain.values()]
    found = 0
    for record in records:
        prediction, (batch, (size,)) = penalized[record["id"]], collator.collate_questions([record])
        config = GenerationConfig(repetition_penalty=1.2, max_new_tokens=64, eos_token_id=stop_ids(collator.tokenizer))
        ids = model.generate(**batch, generation_config=config)[0, batch["input_ids"].shape[1] :].tolist()
        text, _ = token_spans(collator.tokenizer, [token for token in ids if token not in stop_ids(collator.tokenizer)])
        assert text.startswith(prediction["text"])  # a loop ends the response earlier

        answer = ids[: len(collator.tokenizer(prediction["text"])["input_ids"])]
        question = batch["input_ids"][0].tolist()
        features, _ = collator.process_images([record])
        with torch.no_grad():
            logits = model(**collator.batch([question + answer], features, side="right")).logits[0]
        log_probs = logits[len(question) - 1 : -1].log_softmax(-1)[range(len(answer)), answer]
        text, spans = token_spans(collator.tokenizer, answer)
        places = collator.codec.decode(text, size, size).places
        for place, score in zip(places, prediction["objects"]["score_coordinates"], strict=True):
            digits = [i for i, (start, end) in enumerate(spans) if place.numbers[0] <= start < place.numbers[1]]
            digits = [i for i in digits if text[slice(*spans[i])].isdigit()]
            assert score == pytest.approx(log_probs[digits].mean().exp().item(), abs=1e-4)
            found += 1
    assert found


def test_a_token_that_is_only_padding_is_not_penalized(make):
    tokenizer = make().tokenizer
    probabilities = PenalizedProbabilities(tokenizer, 2.0)
    scores = torch.zeros(1, len(tokenizer))
    scores[0, [5, 6, tokenizer.pad_token_id]] = torch.tensor([4.0, -4.0, 3.0])
    penalized = probabilities(torch.tensor([[tokenizer.pad_token_id, 5, 6]]), scores)
    assert penalized[0, [5, 6, tokenizer.pad_token_id]].tolist() == [2.0, -8.0, 3.0]
    [(log_probs, _)] = probabilities.rows()
    assert log_probs.tolist() == pytest.approx([scores[0].log_softmax(-1)[tokenizer.pad_token_id].item()])


# ---- tiles -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", ["all", "each"])
def test_tiles_are_asked_about_like_images_of_their_own_and_each_image_is_read_once_per_batch(
    model, make, records, ask
):
    records = records[1:3]
    collator, opened = make(tiles=100, ask=ask), Counter()

    def open_image(record):
        opened[record["id"]] += 1
        return load_image(image_path(record, Path()))

    collator.open_image = open_image
    merged = by_id(generate_answers(model, collator, records, 100))
    assert set(opened.values()) == {1} and opened.keys() == {record["id"] for record in records} == merged.keys()

    grids = {record["id"]: tile_grid(record["width"], record["height"], 100) for record in records}
    assert all(grids.values())
    collator = make()
    paths = {record["id"]: image_path(record, Path()) for record in records}
    alone = [
        record | {"id": f"{record['id']} {x0} {y0}", "width": x1 - x0, "height": y1 - y0, "messages": turns}
        for record in records
        for x0, y0, x1, y1 in grids[record["id"]]
        for turns in ([record["messages"]] if ask == "all" else [turns_for(CLASSES, CLASSES[1])])
    ]
    crops = {
        f"{name} {tile[0]} {tile[1]}": load_image(paths[name]).crop(tile)
        for name, grid in grids.items()
        for tile in grid
    }
    collator.open_image = lambda record: crops[record["id"]]
    answers = by_id(generate_answers(model, collator, alone, 100))
    found = 0
    for name, prediction in merged.items():
        parts = [part for part in prediction["parts"] if part["tile"] and part["question"] != question(CLASSES[:1])]
        assert [part["tile"] for part in parts] == grids[name]
        for part in parts:
            x, y = part["tile"][:2]
            answer = answers[f"{name} {x} {y}"]
            assert (part["text"], part["input_size"]) == (answer["text"], answer["input_size"])
            found += len(answer["objects"]["bbox"])
        boxes = prediction["objects"]["bbox"]
        assert all(
            0 <= x0 < x1 <= prediction["width"] and 0 <= y0 < y1 <= prediction["height"] for x0, y0, x1, y1 in boxes
        )
        assert (prediction["width"], prediction["height"]) != (100, 100)
    assert found > 1


def test_a_server_is_asked_about_the_same_tiles(model, make, records):
    collator = make(tiles=200, ask="each")
    collator.grounding = replace(collator.grounding, max_new_tokens=20)
    record = next(r for r in records if len(tile_grid(r["width"], r["height"], 200)) == 2)
    with serving(Behaviour([]), (model, collator.processor)) as url:
        served = ServerClient(url, {"id": "tuned"}, collator).answer(record)
    [local] = generate_answers(model, collator, [record], 1)
    assert len(served["parts"]) == 6
    assert {key: served[key] for key in ("id", "parts", "problems")} == {
        key: local[key] for key in ("id", "parts", "problems")
    }
    assert served["objects"]["bbox"] == local["objects"]["bbox"]
    assert served["objects"]["score"] == pytest.approx(local["objects"]["score"], abs=1e-3)


def test_images_no_larger_than_a_tile_give_the_bytes_of_a_run_without_tiles(model, make, records):
    with_tiles, without = (generate_answers(model, make(tiles=side), records[:3], 4) for side in (240, 0))
    assert lines_of(with_tiles) == lines_of(without)


# ---- a question for each class -------------------------------------------------------------------------------------------


def test_each_class_is_asked_by_itself_and_each_image_is_read_once_per_batch(model, make, records):
    collator = make(ask="each")
    opened = Counter()

    def open_image(record):
        opened[record["id"]] += 1
        return load_image(image_path(record, Path()))

    collator.open_image = open_image
    merged = by_id(generate_answers(model, collator, records, 4))
    assert set(opened.values()) == {1} and len(opened) == len(records)
    alone = {
        name: by_id(generate_answers(model, make(), [r | {"messages": turns_for(CLASSES, name)} for r in records], 4))
        for name in CLASSES
    }
    for name, prediction in merged.items():
        own = [alone[label][name] for label in CLASSES]
        assert [part["text"] for part in prediction["parts"]] == [answer["text"] for answer in own]
        assert [part["input_size"] for part in prediction["parts"]] == [answer["input_size"] for answer in own]
        assert sorted(prediction["objects"]["bbox"]) == sorted(
            box for answer in own for box in answer["objects"]["bbox"]
        )
        scores = prediction["objects"]["score"]
        assert scores == sorted(scores, reverse=True) == prediction["objects"][f"score_{DEFAULT}"]
        assert prediction["problems"] == [problem for answer in own for problem in answer["problems"]]
    assert any(len(prediction["objects"]["bbox"]) > 1 for prediction in merged.values())


def test_an_image_whose_questions_are_in_two_batches_gives_one_prediction(model, make, records):
    asked = [list(generate_answers(model, make(ask="each"), records[:3], size)) for size in (3, 6)]
    assert [p["id"] for p in asked[0]] == [p["id"] for p in asked[1]]
    assert [[part["text"] for part in p["parts"]] for p in asked[0]] == [
        [part["text"] for part in p["parts"]] for p in asked[1]
    ]
