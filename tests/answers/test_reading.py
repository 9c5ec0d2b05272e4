"""Reading an answer, case by case: the objects that a response gives, and the problems that are named."""

import pytest

from boxtune.answers.codecs import CODECS
from boxtune.answers.predictions import make_prediction
from boxtune.data.questions import asked_classes, turns_for

SIZE = (1000, 1000)
CAT, DOG = ("cat", [10, 20, 110, 120]), ("dog", [50, 60, 70, 80])
ONE = '{"bbox_2d": [10, 20, 110, 120], "label": "cat"}'
TWO = '{"bbox_2d": [50, 60, 70, 80], "label": "dog"}'


def read(text, asked=(), codec="qwen3_vl"):
    """([(label, box or point)], problems)."""
    answer = CODECS[codec].decode(text, SIZE, SIZE, asked)
    return list(zip(answer.labels, answer.points_xy or answer.boxes_xyxy, strict=True)), answer.problems


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (f'[{{"bbox_2d": [10, 20, 30, 40], "label": "cat}}, {TWO}]', ["bad_label"]),
        (f'[{{"bbox_2d": [10, 20, 30, 40], "label": "cat}},\n {TWO}]', ["bad_label"]),
        (f'[{{"bbox_2d": [10, 20, 30, 40], "label": "cat\n}}, {TWO}]', ["bad_label"]),
        (f'[{TWO}, {{"bbox_2d": [10, 20, 30, 40], "label": "cat}}]', ["bad_label"]),
        (f'```json\n[{TWO}, {{"bbox_2d": [10, 20, 30, 40], "label": "cat}}]```', ["fence", "bad_label"]),
        (f'[{{"bbox_2d": [10, 20, 30, 40], "label": "cat, {TWO}]', ["truncated"]),
        (f'[{{"label": "cat, "bbox_2d": [10, 20, 30, 40]}}, {TWO}]', ["key_order", "bad_label"]),
        (f"[{{'bbox_2d': [10, 20, 30, 40], 'label': 'cat}}, {TWO}]".replace('"', "'"), ["quotes", "bad_label"]),
    ],
)
def test_a_label_whose_quote_never_closes_is_no_other_objects_label(text, problems):
    assert read(text) == ([DOG], problems)


BOX_A, BOX_B, A, B = '"bbox_2d": [10,20,110,120]', '"bbox_2d": [50,60,70,80]', '"label": "cat"', '"label": "dog"'


@pytest.mark.parametrize("around", ["[{}]", "```json\n[{}]\n```", "Found: [{}]!"])
@pytest.mark.parametrize(
    ("keys", "objects", "problems"),
    [
        ([BOX_A, A, BOX_B, B], [CAT, DOG], []),
        ([A, BOX_A, B, BOX_B], [CAT, DOG], []),
        ([BOX_A, BOX_B, B], [DOG], ["bad_label"]),
        ([A, BOX_A, BOX_B], [CAT], ["bad_label"]),
        ([BOX_A, A, B], [CAT], ["bad_box"]),
        ([A, B, BOX_B], [DOG], ["bad_box"]),
    ],
)
def test_doubled_keys_give_each_object_its_own_label_and_place(around, keys, objects, problems):
    text = around.format("{" + ", ".join(keys) + "}")
    found, named = read(text, ["cat"])
    assert found == objects
    assert [kind for kind in named if kind not in ("fence", "prose")] == ["key_order", *problems]
    answer = CODECS["qwen3_vl"].decode(text, SIZE, SIZE)
    assert [text[slice(*place.label)] for place in answer.places] == answer.labels
    assert [[int(n) for n in text[slice(*place.numbers)].split(",")] for place in answer.places] == answer.boxes_xyxy


@pytest.mark.parametrize(
    ("codec", "objects", "empty"),
    [
        ("qwen3_vl", f"[{ONE}]", "[]"),
        ("qwen2_vl", CODECS["qwen2_vl"].encode([CAT[1]], ["cat"], SIZE, SIZE).text, "None"),
        ("qwen3_vl_click", "<click>10,20</click> cat", "None"),
    ],
)
def test_thinking_is_no_answer(codec, objects, empty):
    plain, problems = read(objects, codec=codec)
    assert (len(plain), problems) == (1, [])
    for thoughts in (
        f"<think>Perhaps {objects}? No.</think>",
        "<think></think>\n\n",
        "Hm.\n</think>",
        "<think>a</think>b</think>",
    ):
        assert read(thoughts + objects, codec=codec) == (plain, ["thinking"])
        assert read(thoughts + "\n" + empty, codec=codec) == ([], ["thinking"])
        answer = CODECS[codec].decode(thoughts + objects, SIZE, SIZE)
        assert (thoughts + objects)[slice(*answer.places[0].label)].strip() == "cat"
    for text in (f"<think>{objects}", f"{objects}<think>", f"<think>a</think>{objects}<think>b"):
        assert read(text, codec=codec) == ([], ["thinking", "truncated", "unparsable"])
    # After a prompt that ends in <think>, the answer is what follows </think>.
    for text in (objects, empty, ""):
        answer = CODECS[codec].decode(text, SIZE, SIZE, starts_in_thought=True)
        assert (answer.labels, answer.problems) == ([], ["thinking", "truncated", "unparsable"])
    answer = CODECS[codec].decode(f"{objects}</think>{objects}", SIZE, SIZE, starts_in_thought=True)
    assert (answer.labels, answer.problems) == (["cat"], ["thinking"])


@pytest.mark.parametrize(
    "text",
    [
        '[{"bbox_2d"：[10, 20, 110, 120], "label"："cat"}]',
        '[{"bbox_2d" => [10, 20, 110, 120], "label" => "cat"}]',
        '[{"bbox_2d"=[10, 20, 110, 120], "label"="cat"}]',
        "[{bbox_2d=[10, 20, 110, 120], label=cat}]",
        "[{“bbox_2d”: [10, 20, 110, 120], “label”: “cat”}]",
        "[{‘bbox_2d’: [10, 20, 110, 120], ‘label’: ‘cat’}]",
        "［｛＂bbox_2d＂：［１０，２０，１１０，１２０］，＂label＂：＂cat＂｝］",
        '[{"bbox_2d": ["10", "20", "110", " 120 "], "label": "cat"}]',
        "[{'bbox_2d': [10, 20, 110, 120], 'label': 'cat'}]",
    ],
)
def test_other_quotes_colons_and_numbers_as_strings_are_read_and_named(text):
    assert read(text) == ([CAT], ["quotes"])
    assert read(f"```json\n{text}\n```") == ([CAT], ["fence", "quotes"])


@pytest.mark.parametrize(
    ("label", "read_as", "problems"),
    [
        ('"a：b，c"', "a：b，c", []),
        ('"say “a”, b"', "say “a”, b", []),
        ('"a}, {"', "a}, {", []),
        ("traffic light", "traffic light", ["quotes"]),
        ("猫 3", "猫 3", ["quotes"]),
        ("“it’s”", "it’s", ["quotes"]),
    ],
)
def test_labels_are_read_as_written(label, read_as, problems):
    assert read(f'[{{"bbox_2d": [10, 20, 110, 120], "label": {label}}}]') == ([(read_as, CAT[1])], problems)


@pytest.mark.parametrize(
    ("text", "objects", "problems"),
    [
        ("[{10, 20, 110, 120}]", [], ["bad_box"]),
        ("{10, 20, 110, 120}", [], ["bad_box"]),
        (f"[{{10, 20, 110, 120}}, {ONE}]", [CAT], ["bad_box"]),
        (f"[{ONE}, {{10, 20}}]", [CAT], ["bad_box"]),
        (f"[{ONE}, {{}}]", [CAT], ["bad_box"]),
        (f'[{ONE}, {{"cat"}}]', [CAT], ["bad_box"]),
        (f"[{ONE}, {{cat: [1, 2, 30, 40]}}]", [CAT], ["quotes", "bad_box"]),
        (f'[{ONE}, {{"bbox_2d": [[1, 2, 30, 40]], "label": "x"}}]', [CAT], ["bad_box"]),
        (f'[{ONE}, {{"bbox_2d": [−1, 2, 30, 40], "label": "x"}}]', [CAT], ["bad_box"]),
        (f'[{ONE}, {{"bbox_2d": [1, 2, 30, 40], "label": null}}]', [CAT], ["bad_label"]),
        (f'[{ONE}, {{"bbox_2d": [1, 2, 30, 40], "label": 5}}]', [CAT], ["bad_label"]),
        (f'[{ONE}, {{"bbox_2d": [1, 2, 30, 40], "label": }}]', [CAT], ["bad_label"]),
        ("[{}]", [], ["unparsable"]),
        ("[[10, 20, 110, 120]]", [], ["unparsable"]),
        ("[10, 20, 110, 120]\n[]", [], ["unparsable"]),
        ("[", [], ["truncated", "unparsable"]),
        ("There are no cats.\n[]", [], ["prose"]),
        ("```json\n[]\n```", [], ["fence"]),
        ('{"objects": []}', [], ["prose"]),
        ("[ ]", [], ["spacing"]),
        (f'```json {{"objects":[{ONE}]}}```', [CAT], ["fence", "prose"]),
        (f'```json {{"objects":[{ONE}', [CAT], ["fence", "truncated"]),
        (f'{{"1": {ONE}, "2": {TWO}}}', [CAT, DOG], ["prose"]),
        (f"[{ONE[:-1]}, {TWO}]", [DOG], ["truncated"]),
        (f'[{ONE[:-1]}, "attributes": {{}}, "more": {{"tags": []}}}}]', [CAT], []),
        (f'[{ONE[:-1]}, "a": {{"b": {{"tags": []}}, "c": {{}}}}, "d": [{{}}, {{"e": []}}]}}]', [CAT], []),
        ('{"result": {"objects": []}}', [], ["prose"]),
        ('[{"bbox_2d": : [10, 20, 110, 120], "label": "cat"}]', [CAT], ["spacing"]),
        (f'[{ONE[:-1]}, "parts": [{TWO}, {{"x": 1}}]}}]', [CAT], []),
    ],
)
def test_what_cannot_be_read_is_named_and_is_no_clean_empty_answer(text, objects, problems):
    assert read(text) == (objects, problems)


@pytest.mark.parametrize("codec", ["qwen2_vl", "qwen3_vl_click"])
def test_tagged_answers_may_have_a_fence_or_prose_around_them(codec):
    text = CODECS[codec].encode([CAT[1], DOG[1]], ["cat", "dog"], SIZE, SIZE).text
    plain, _ = read(text, codec=codec)
    assert read(f"```\n{text}\n```", codec=codec) == (plain, ["fence"])
    assert read(f"Here:\n{text}\nThat is all.", codec=codec) == (plain, ["prose"])
    assert read("```\nNone\n```", codec=codec) == ([], ["fence"])
    assert read("There are no cats.\nNone", codec=codec) == ([], ["prose"])
    assert read("(10,20),(110,120)\nNone", codec=codec) == ([], ["unparsable"])


def test_points_in_json_are_read_as_clicks():
    text = '[{"point_2d": [10, 20], "label": "cat"}]'
    assert read(text, codec="qwen3_vl_click") == ([("cat", [10, 20])], ["spacing"])
    assert read(f"```json\n{text}\n```", codec="qwen3_vl_click") == ([("cat", [10, 20])], ["spacing", "fence"])
    assert read(text) == ([], ["unparsable"])
    assert read('[{"point_2d": [10, 20, 30, 40], "label": "cat"}]', codec="qwen3_vl_click")[0] == []


# ---- the classes that were asked for -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "asked", "read_as"),
    [
        ("Boat", ["boat", "car"], "boat"),
        ("ＢＯＡＴ", ["boat", "car"], "boat"),
        (" boat ", ["boat", "car"], "boat"),
        ("ｶﾞ", ["ガ"], "ガ"),
        ("STRASSE", ["Straße"], "Straße"),
        ("boat", ["ＢＯＡＴ"], "ＢＯＡＴ"),
    ],
)
def test_a_label_that_differs_in_form_alone_is_the_class(label, asked, read_as):
    text = f'[{{"bbox_2d": [10, 20, 110, 120], "label": "{label}"}}]'
    assert read(text, asked) == ([(read_as, CAT[1])], ["label_case"])
    assert read(text) == ([(label.strip(), CAT[1])], [])


@pytest.mark.parametrize(
    ("label", "asked"),
    [("boats", ["boat"]), ("BOAT", ["boat", "Boat"]), ("Boat", ["boat", "Boat"]), ("m²", ["m2"]), ("a  b", ["a b"])],
)
def test_any_other_label_stays_as_written(label, asked):
    assert read(f'[{{"bbox_2d": [10, 20, 110, 120], "label": "{label}"}}]', asked) == ([(label, CAT[1])], [])


@pytest.mark.parametrize(
    ("codec", "text", "problems"),
    [
        ("qwen3_vl", '[{"bbox_2d": [10, 20, 110, 120]}]', ["key_order"]),
        ("qwen2_vl", "<|box_start|>(10,20),(110,120)<|box_end|>", []),
        ("qwen3_vl_click", "<click>60,70</click>", []),
    ],
)
def test_an_object_without_a_label_takes_the_one_class_that_was_asked_for(codec, text, problems):
    ((label, _),), named = read(text, ["cat"], codec)
    assert (label, named) == ("cat", [*problems, "no_label"])
    for asked in ([], ["cat", "dog"]):
        assert read(text, asked, codec) == ([], [*problems, "bad_label"])


def test_a_broken_label_does_not_take_the_asked_class():
    for text in ('"label": null', '"label": ""', '"label": 5', '"label": ["cat"]', '"label": "ca\n', '"label":'):
        assert read(f'[{{"bbox_2d": [10, 20, 110, 120], {text}}}]', ["cat"])[0] == [], text


def test_the_asked_classes_follow_from_the_first_question():
    record = {"messages": turns_for(["cat", "dog"])}
    assert asked_classes(record, ["cat", "dog"]) == ["cat", "dog"]
    assert asked_classes(record | {"messages": turns_for(["cat", "dog"], "dog")}, ["cat", "dog"]) == ["dog"]
    plain = [{"role": "user", "content": "<image>Is there a cat?"}, {"role": "assistant", "content": "No."}]
    assert asked_classes({"messages": plain}, ["cat", "dog"]) == []


def test_a_prediction_is_read_with_the_asked_classes():
    record = {"id": "a", "image": "a.png", "width": 1000, "height": 1000}
    text = '[{"bbox_2d": [10, 20, 110, 120], "label": "Cat"}]'
    prediction = make_prediction(record, "qwen3_vl", SIZE, text, 0.0, asked=["cat"])
    assert (prediction["objects"]["category"], prediction["problems"]) == (["cat"], ["label_case"])


@pytest.mark.parametrize("text", ["无关图片", "无关图片。", " 无关图片", "[]"])
def test_the_irrelevant_answer_is_clean_and_empty_if_it_matches_exactly(text):
    record = {"id": "a", "image": "a.png", "width": 1000, "height": 1000}
    prediction = make_prediction(record, "qwen3_vl", SIZE, text, 0.0, irrelevant_answer="无关图片")
    is_irrelevant = text == "无关图片"
    assert prediction["objects"] == {"bbox": [], "category": [], "score": []}
    assert prediction["problems"] == ([] if is_irrelevant or text == "[]" else ["unparsable"])
    assert prediction.get("irrelevant", False) == is_irrelevant
