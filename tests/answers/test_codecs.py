"""Boxes ↔ text: exact wording, round trips within half a step, and parsers that survive any text."""

import gc
import json
import random
import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from boxtune.answers.codecs import CODECS
from boxtune.families import FAMILIES
from boxtune.reports.report import MEANINGS

IMAGE, INPUT = (480, 640), (476, 644)  # (height, width)
BOXES = [c for c in CODECS.values() if not c.is_click]


def encode(name: str, boxes, labels) -> str:
    return CODECS[name].encode(boxes, labels, IMAGE, INPUT).text


def test_every_family_writes_its_own_syntax():
    boxes, labels = [[0, 0, 640, 480], [64, 48, 320, 240]], ["cat", "Fußgänger"]
    assert encode("qwen2_vl", boxes, labels) == (
        "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(0,0),(1000,1000)<|box_end|>"
        "<|object_ref_start|>Fußgänger<|object_ref_end|><|box_start|>(100,100),(500,500)<|box_end|>"
    )
    assert encode("qwen2_5_vl", boxes, labels) == (
        '[{"bbox_2d": [0, 0, 643, 475], "label": "cat"}, {"bbox_2d": [64, 48, 322, 238], "label": "Fußgänger"}]'
    )
    assert encode("qwen3_vl", boxes, labels) == (
        '[{"bbox_2d": [0, 0, 1000, 1000], "label": "cat"}, {"bbox_2d": [100, 100, 500, 500], "label": "Fußgänger"}]'
    )
    assert encode("qwen3_vl_click", boxes, labels) == "<click>500,500</click> cat\n<click>300,300</click> Fußgänger"
    for name in CODECS:
        assert encode(name, [], []) == ("None" if name == "qwen2_vl" or name.endswith("_click") else "[]")
        if FAMILIES[name.removesuffix("_click").removesuffix("_captions")].coordinate_steps and not name.startswith(
            "qwen2"
        ):
            same = "qwen3_vl_click" if name.endswith("_click") else "qwen3_vl"
            assert encode(name, boxes, labels) == encode(same, boxes, labels)


sizes = st.tuples(st.integers(28, 4000), st.integers(28, 4000))


@st.composite
def scenes(draw):
    """(image size, input size, boxes_xyxy, labels), with boxes anywhere and as narrow as a thousandth of a pixel."""
    image_size, input_size = draw(sizes), draw(sizes)
    boxes, labels = [], []
    for _ in range(draw(st.integers(0, 6))):
        edges = []
        for side in (image_size[1], image_size[0]):
            low = draw(st.floats(0, side - 0.001))
            edges.append((low, min(side, low + draw(st.floats(0.001, side)))))
        boxes.append([edges[0][0], edges[1][0], edges[0][1], edges[1][1]])
        # Any valid class name: no line break, no special token, no surrounding space.
        label = draw(
            st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=12)
        ).strip()
        labels.append(label.replace("<", "(") or "x")
    return image_size, input_size, boxes, labels


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@given(scene=scenes())
@example(scene=((28, 827), (28, 28), [[808.0, 0.0, 809.0, 1.0]], ["in the last step"]))
@settings(max_examples=150, deadline=None)
def test_round_trip_errs_by_half_a_step(codec, scene):
    image_size, input_size, boxes, labels = scene
    encoded = codec.encode(boxes, labels, image_size, input_size)
    answer = codec.decode(encoded.text, image_size, input_size)
    assert answer.problems == []
    assert answer.labels == labels
    found = [encoded.text[slice(*place.label)].strip() for place in answer.places]
    assert found == (
        [json.dumps(label, ensure_ascii=False)[1:-1] for label in labels] if codec.syntax == "json_boxes" else labels
    )
    extents, sides = codec.frame.extent(input_size) * 2, (image_size[1], image_size[0]) * 2
    for place, got in zip(answer.places, answer.points_xy or answer.boxes_xyxy, strict=True):
        numbers = map(int, re.findall(r"\d+", encoded.text[slice(*place.numbers)]))
        assert [n * side / extent for n, side, extent in zip(numbers, sides, extents, strict=False)] == got
    step_x, step_y = codec.tolerance(image_size, input_size)
    height, width = image_size
    widened = 0
    for box, got in zip(boxes, answer.points_xy or answer.boxes_xyxy, strict=True):
        want = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2] if codec.is_click else box
        thin = not codec.is_click and (got[2] - got[0] <= 1.001 * step_x or got[3] - got[1] <= 1.001 * step_y)
        widened += thin and codec.encode([box], ["x"], image_size, input_size).widened
        for i, (value, original) in enumerate(zip(got, want, strict=True)):
            step, side = ((step_x, width), (step_y, height))[i % 2]
            # Both apply to a box in the last step of a pixel frame, which ends at size − 1: it is widened inwards.
            allowed = (0.5, 1.0, 2.0)[thin + (original > side - step)]
            assert abs(value - original) <= allowed * step + 1e-6 * side
    assert encoded.widened == widened


def test_a_box_that_would_collapse_is_one_step_wide_and_counted():
    codec = CODECS["qwen2_vl"]
    encoded = codec.encode([[10, 10, 10.01, 200], [639.99, 0, 640, 480]], ["a", "b"], IMAGE, INPUT)
    assert encoded.widened == 2
    assert "(15,21),(16,417)" in encoded.text
    assert "(999,0),(1000,1000)" in encoded.text


JSON_ANSWER = encode("qwen3_vl", [[64, 48, 320, 240], [0, 0, 640, 480]], ["cat", "dog"])


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (JSON_ANSWER, []),
        (f"```json\n{JSON_ANSWER}\n```", ["fence"]),
        (f"Here is what I found: {JSON_ANSWER} Anything else?", ["prose"]),
        (JSON_ANSWER.replace(", ", ","), ["spacing"]),
        (JSON_ANSWER.replace('"', "'"), ["quotes"]),
        (JSON_ANSWER.replace("100, 100", "100.2, 99.9"), ["float"]),
        (
            '[{"label": "cat", "bbox_2d": [100, 100, 500, 500]}, {"label": "dog", "bbox_2d": [0, 0, 1000, 1000]}]',
            ["key_order"],
        ),
        (JSON_ANSWER[:-1], ["truncated"]),
        (JSON_ANSWER[:-1] + ', {"bbox_2d": [12, 3', ["truncated"]),
        (JSON_ANSWER[:-1] + ', {"bbox_2d": [12, 3, 400, 500], "label": "bi', ["truncated"]),
        (JSON_ANSWER[:-1] + ', {"bbox_2d": [500, 100, 400, 500], "label": "bird"}]', ["bad_box"]),
        (JSON_ANSWER[:-1] + ', {"bbox_2d": [1, 2, 3], "label": "bird"}]', ["bad_box"]),
        (JSON_ANSWER[:-1] + ', {"bbox_2d": [1, 2, 3, "4 px"], "label": "bird"}]', ["bad_box"]),
        (JSON_ANSWER[:-1] + ', {"bbox_2d": [1, 2, 3, NaN], "label": "bird"}]', ["float", "bad_box"]),
        (JSON_ANSWER[:-1] + ', {"bbox_2d": [1, 2, 3, 4]}]', ["key_order", "bad_label"]),
        (JSON_ANSWER[:-1] + ', {"bbox": [1, 2, 3, 4], "label": "bird"}]', ["bad_box"]),
        (f'{{"objects": {JSON_ANSWER}}}', ["prose"]),
        (f"The set {{1, 2}}: {JSON_ANSWER}", ["prose"]),
        (JSON_ANSWER.replace("}, {", "}]\n[{"), ["spacing"]),
        (JSON_ANSWER[1:-1].replace("}, {", "}\n{"), ["spacing"]),
        ("```json\n" + JSON_ANSWER.replace('"cat"', '"cat", "attributes": {"x": {"y": 1}}') + "\n```", ["fence"]),
        ("```json\n" + JSON_ANSWER.replace('"cat"', '"cat", "a": ' + '{"a": ' * 50 + "1" + "}" * 50), ["fence"]),
        (JSON_ANSWER[:-1] + ', {"bbox_2d": [1, 2, 30, 40], "attributes": {"x": 1}', ["truncated"]),
        (JSON_ANSWER[:-1] + ', {"bbox_2d": [1, 2, 30, 40, "label": "bird"}]', ["bad_box"]),
        (JSON_ANSWER.replace('"label": ', "label :\u00a0"), ["quotes"]),
    ],
)
def test_json_answers_are_parsed_and_their_problems_named(text, problems):
    answer = CODECS["qwen3_vl"].decode(text, IMAGE, INPUT)
    assert answer.problems == problems
    assert answer.labels == ["cat", "dog"]
    assert [[round(v) for v in box] for box in answer.boxes_xyxy] == [[64, 48, 320, 240], [0, 0, 640, 480]]


TAGS = encode("qwen2_vl", [[64, 48, 320, 240], [0, 0, 640, 480]], ["cat", "dog"])
CLICKS = encode("qwen2_vl_click", [[64, 48, 320, 240], [0, 0, 640, 480]], ["cat", "dog"])


@pytest.mark.parametrize(
    ("name", "text", "problems"),
    [
        ("qwen2_vl", TAGS, []),
        ("qwen2_vl", "I see " + TAGS, ["prose"]),
        ("qwen2_vl", TAGS.replace(",", ", "), ["spacing"]),
        ("qwen2_vl", TAGS + "<|object_ref_start|>bird<|object_ref_end|><|box_start|>(1,2),(3", ["truncated"]),
        ("qwen2_vl", TAGS + "<|object_ref_start|>bird<|object_ref_end|><|box_start|>(1,2),(3<|box_end|>", ["bad_box"]),
        (
            "qwen2_vl",
            TAGS + "<|object_ref_start|>bird<|object_ref_end|><|box_start|>(9,2),(3,4)<|box_end|>",
            ["bad_box"],
        ),
        ("qwen2_vl_click", CLICKS, []),
        ("qwen2_vl_click", CLICKS + "\n<click>500", ["truncated"]),
        ("qwen2_vl_click", CLICKS + "\n<click>5</click> bird", ["bad_box"]),
        ("qwen2_vl_click", "Clicks:\n" + CLICKS, ["prose"]),
    ],
)
def test_tagged_answers_are_parsed_and_their_problems_named(name, text, problems):
    answer = CODECS[name].decode(text, IMAGE, INPUT)
    assert answer.problems == problems
    assert answer.labels == ["cat", "dog"]


def test_coordinates_out_of_range_are_clipped_and_text_without_objects_is_unparsable():
    codec = CODECS["qwen2_5_vl"]
    answer = codec.decode('[{"bbox_2d": [-5, 10, 9999, 200], "label": "cat"}]', IMAGE, INPUT)
    assert (answer.problems, answer.boxes_xyxy[0][0], answer.boxes_xyxy[0][2]) == (["clipped"], 0, 640)
    for name, texts in {
        "qwen2_5_vl": [
            "",
            "no objects",
            "None",
            "{}",
            "[1, 2]",
            '"[]"',
            "null",
            '[{"bbox": [1, 2, 30, 40], "label": "x"}]',
        ],
        "qwen2_vl": ["", "[]", "none", "(1,2),(3,4)"],
        "qwen2_vl_click": ["", "[]", "500,500"],
    }.items():
        for text in texts:
            assert CODECS[name].decode(text, IMAGE, INPUT).problems == ["unparsable"], (name, text)
    for name in ("qwen2_5_vl", "qwen2_vl", "qwen2_vl_click"):
        answer = CODECS[name].decode(encode(name, [], []), IMAGE, INPUT)
        assert (answer.problems, answer.labels) == ([], [])


FRAGMENTS = [
    "{", "}", "[", "]", '"', "'", "\\", ",", ":", "\n", " ", "1", "-2.5e999", "9" * 50, "NaN", "true", "bbox_2d", "label",
    '"bbox_2d": ', '"label": "x"', "[1, 2, 3, 4]", '{"bbox_2d": [1, 2, 3, 4], "label": "a"}', "```json", "None", "it's",
    "<|box_start|>", "<|box_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "(1,2),(3,4)", "<click>", "</click>",
    "\ud800", "é", "\u2028", "<|im_end|>",
]  # fmt: skip


@given(
    text=st.one_of(st.text(), st.lists(st.sampled_from(FRAGMENTS)).map("".join)),
    codec=st.sampled_from(list(CODECS.values())),
)
@settings(max_examples=600, deadline=None)
def test_parsers_never_raise_and_give_valid_boxes(text, codec):
    answer = codec.decode(text, IMAGE, INPUT)
    assert set(answer.problems) <= MEANINGS.keys()
    assert len(answer.labels) == len(answer.boxes_xyxy) + len(answer.points_xy)
    for x0, y0, x1, y1 in answer.boxes_xyxy:
        assert 0 <= x0 < x1 <= 640
        assert 0 <= y0 < y1 <= 480
    assert answer.labels or answer.problems or text in ("[]", "None")


HOSTILE = [
    "{", "[", '"', "'", '{"\\"', "{'", '" ', "<|box_start|>", "<|box_start|>(1,2", "<click>", "9", "9 ", "\\", '{"a":', "{{[",
    '{"bbox_2d": [1, 2, 3, 4], "label": "a"},', '{"bbox_2d":[', "a ", "\n",
    "]", "}{", "{}", "{{}", "{a}", "{1}", "{:{}}", "{bbox_2d:1}", "```json\n", "a:1", "[]", "{:", "I see {x} and ",
    "{a", "{1 ", "a:{}", "a:[]", "{b:[]}", "a : ", "a : {", "x é ", '"a"\n', "'a' ", '"a": ', ":{", "-", ".5", "[a,",
    "é", "\ud800", "｛", "｛“a”：", "“", "“a”", "‘a", "“ ", "=", "=>", "a=", "a=>1,", "a b ", "a b=", '"a}', '"a} ', '"a}, {"b',
    '"a{"b', '"a,"label"', '"label": "a", ', '"bbox_2d": [1, 2, 3, 4], ', '{"a": [{', '{"a": [', '"a": [{}], ', "[]\n", "None\n",
    "<think>", "</think>", "<think></think>", '{"point_2d": [1, 2], "label": "a"}, ', "猫 ", "−", "<|object_ref_start|>",
    "<|box_start|>(1,2),(3,4)<|box_end|>", "<click>1,2</click> a\n",
]  # fmt: skip
INSIDE_NUMBERS = [
    (start, piece, end)
    for start, end in (('[{"bbox_2d": [', "]}]"), ("<|box_start|>", "<|box_end|>"), ("<click>", "</click> a"))
    for piece in ("9", "1,", "1.5 ", "a:", "[", "-.")
]


def hostile_texts(length):
    """Texts of about `length` characters: one piece repeated, alone, inside a label, and inside an object that closes."""
    for piece in HOSTILE:
        for start, end in (("", ""), ('[{"label": "', ""), ('[{"bbox_2d": [1, 2, 3, 4], "label": "a", ', "}]")):
            yield start + piece * (length // len(piece)) + end
    for start, piece, end in INSIDE_NUMBERS:
        yield start + piece * (length // len(piece)) + end
    draw = random.Random(0)
    yield "".join(draw.choices("{}:", k=length))
    yield "".join(draw.choices(["{bbox_2d:", "}", "[1,2]", "a:", '"', ","], k=length // 4))
    scenes = [[draw.randrange(500), draw.randrange(300), draw.randrange(510, 640), draw.randrange(310, 480)] for _ in
              range(length // 50)]  # fmt: skip
    for name in CODECS:
        yield encode(name, scenes, ["cat"] * len(scenes))


@pytest.mark.parametrize(("length", "limit"), [(100_000, 0.2), pytest.param(300_000, 0.4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "qwen3_vl_click"])
def test_long_texts_of_anything_are_read_in_linear_time(name, length, limit):
    """A looping model generates such texts. A parser of quadratic time fails at either length.

    An idle core needs about half the limit. A busy machine gets five tries. The garbage collector is off, because its time
    depends on the objects that other tests left behind.
    """
    for text in hostile_texts(length):
        seconds = []
        gc.disable()
        while not seconds or (min(seconds) >= limit and len(seconds) < 5):
            began = time.process_time()
            CODECS[name].decode(text, IMAGE, INPUT)
            seconds.append(time.process_time() - began)
        gc.enable()
        assert min(seconds) < limit, text[:80]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen2_vl", "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2)<|box_end|>"),
        ("qwen3_vl_click", "<click>1,2,3,4</click> cat"),
    ],
)
def test_a_box_in_place_of_a_point_and_the_reverse_are_bad_boxes(name, text):
    answer = CODECS[name].decode(text, IMAGE, INPUT)
    assert (answer.problems, answer.labels) == (["bad_box"], [])


def test_an_object_is_found_in_mangled_text():
    """An object's score depends on its place, so words and stray brackets must not lead to another object's characters."""
    for text, numbers, label in (
        ('[{"bbox_2d":] [427, 97, 528, 220], "label": \'cat\'}', "427, 97, 528, 220", "cat"),
        ("{label: dog, name: {label: cat}, bbox_2d: [1,2,3,4]}", "1,2,3,4", "dog"),
        ('I see: {"note": "label: cat", "bbox_2d": [1, 2, 3, 4], "label": "dog"}', "1, 2, 3, 4", "dog"),
    ):
        [place] = CODECS["qwen3_vl"].decode(text, IMAGE, INPUT).places
        assert (text[slice(*place.numbers)], text[slice(*place.label)]) == (numbers, label)


def test_labels_with_quotes_and_braces_survive():
    labels = ['5" wide', "a}b{c", "it's", "[1, 2]", "ключ"]
    for name in ("qwen2_5_vl", "qwen3_vl"):
        text = encode(name, [[0, 0, 100, 100]] * len(labels), labels)
        assert json.loads(text)[0]["label"] == labels[0]
        assert CODECS[name].decode(text, IMAGE, INPUT).labels == labels
        assert CODECS[name].decode("Found: " + text, IMAGE, INPUT).labels == labels
