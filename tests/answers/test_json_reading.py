"""JSON answers are read as a JSON decoder reads them, and the same with anything around them."""

import json

from hypothesis import example, given, settings
from hypothesis import strategies as st

from boxtune.answers.codecs import CODECS

SIZE = (1000, 1000)
CODEC = CODECS["qwen3_vl"]
IN_FORM = {"fence", "prose", "spacing"}

labels = st.text(st.characters(exclude_categories=("Cs",)), max_size=8).filter(
    lambda label: label.strip() and "think>" not in label
) | st.sampled_from(
    [
        "a}b{c",
        "a}, {",
        '{"bbox_2d',
        ", label",
        "}]",
        "it's",
        '5" wide',
        "}\n]",
        "\\",
        "a=>b",
        "：",
        "「猫」",
        "“a”, b",
        "x = {'a",
    ]
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-5, 2000), st.floats(-5, 2000), labels)
extras = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(labels | st.sampled_from(["label", "x"]), inner, max_size=3)
        | st.just({"bbox_2d": [1, 2, 30, 40], "label": "inner"})
    ),
    max_leaves=6,
)
boxes = st.lists(st.integers(-5, 1100) | st.floats(-5, 1100), min_size=3, max_size=5) | st.tuples(
    *[st.integers(0, 400)] * 2, *[st.integers(500, 1000)] * 2
).map(list)


@st.composite
def objects(draw):
    """The (key, value) pairs of one object: a box and a label in any order, perhaps doubled, and perhaps further keys."""
    pairs = []
    for _ in range(draw(st.integers(1, 2))):
        pairs += draw(st.permutations([("bbox_2d", draw(boxes)), ("label", draw(labels))]))
    if draw(st.booleans()):
        key = draw(labels.filter(lambda name: name not in ("bbox_2d", "label")))
        pairs.insert(draw(st.integers(0, len(pairs))), (key, draw(extras)))
    return pairs


def written(pairs, colon=": ", comma=", "):
    """JSON with the keys doubled as in `pairs`."""
    one = [json.dumps(key, ensure_ascii=False) + colon + json.dumps(value, ensure_ascii=False) for key, value in pairs]
    return "{" + comma.join(one) + "}"


def expected(answers):
    """[(label, numbers)] by the rule of docs/architecture.md, from the pairs of keys and values."""
    found = []
    for pairs in answers:
        fields = [(key, value) for key, value in pairs if key in ("bbox_2d", "label")]
        groups = []
        for key, value in fields:
            if key == fields[0][0] or key in groups[-1]:
                groups.append({})
            groups[-1][key] = value
        found += [(group["label"], group["bbox_2d"]) for group in groups if len(group) == 2]
    return [(label.strip(), box) for label, box in found if is_box(box)]


def is_box(values):
    if len(values) != 4:
        return False
    x0, y0, x1, y1 = (min(max(value, 0), 1000) for value in values)
    return x0 < x1 and y0 < y1


def read(text):
    answer = CODEC.decode(text, SIZE, SIZE)
    found = list(zip(answer.labels, answer.boxes_xyxy, strict=True))
    for (label, _), place in zip(found, answer.places, strict=True):
        assert json.loads(f'"{text[slice(*place.label)]}"').strip() == label
    numbers = [json.loads(f"[{text[slice(*place.numbers)]}]") for place in answer.places]
    return found, numbers, [kind for kind in answer.problems if kind not in IN_FORM]


@given(
    answers=st.lists(objects(), max_size=4),
    separators=st.sampled_from([(": ", ", "), (":", ","), (" :\n", "\n,  ")]),
)
@settings(max_examples=400, deadline=None)
def test_well_formed_answers_are_read_as_json_and_the_same_with_anything_around_them(answers, separators):
    text = "[" + separators[1].join(written(pairs, *separators) for pairs in answers) + "]"
    found, numbers, problems = read(text)
    assert list(zip([label for label, _ in found], numbers, strict=True)) == expected(answers)
    assert "truncated" not in problems and "quotes" not in problems
    for before, after in (
        ("```json\n", "\n```"),
        ("```", "```"),
        ("Here is what I found: ", " Anything else?"),
        ("I looked at [1] and {x}.\n", "\nThat is all {really}."),
        ('{"objects": ', "}"),
        ("<think>\nMaybe [{\n</think>\n\n", ""),
    ):
        again = read(before + text + after)
        assert again[:2] == (found, numbers)
        assert [kind for kind in again[2] if kind not in ("thinking", "unparsable")] == [
            kind for kind in problems if kind != "unparsable"
        ]


@given(answers=st.lists(objects(), min_size=1, max_size=4), data=st.data())
@settings(max_examples=300, deadline=None)
@example(answers=[[("bbox_2d", [1, 2, 30, 40]), ("label", "a"), ("x", [{"y": 1}])]], data=None)
def test_objects_before_a_cut_are_kept(answers, data):
    parts = [written(pairs) for pairs in answers]
    whole, last = ", ".join(parts[:-1]), parts[-1]
    cut = data.draw(st.integers(1, len(last) - 1)) if data else len(last) - 1
    text = "[" + (whole + ", " if whole else "") + last[:cut]
    answer = CODEC.decode(text, SIZE, SIZE)
    kept = expected(answers[:-1])
    assert answer.labels[: len(kept)] == [label for label, _ in kept]
    # A label such as "}]", cut before its closing quote, looks like one that never closes.
    assert {"truncated", "bad_label", "bad_box", "unparsable"} & {*answer.problems}
