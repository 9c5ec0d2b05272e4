"""Mangled predictions and records give finite numbers, or a UserError that names each bad line; nothing else."""

import copy
import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import evaluate
from boxtune.answers.codecs import CODECS
from boxtune.answers.confidence import RANKINGS
from boxtune.answers.prediction_file import read_predictions
from boxtune.answers.predictions import make_prediction, with_score
from boxtune.common.errors import UserError
from boxtune.data.dataset import read_records, write_dataset
from boxtune.data.questions import as_asked
from boxtune.metrics.scoring import score
from boxtune.reports.exports import EXPORTS, export_predictions
from tests.helpers.records import make_record

CLASSES = ["cat", "dog"]
RECORDS = [
    make_record("a", "a.png", 640, 480, [([0, 0, 100, 80], "cat"), ([300, 200, 400, 300.5], "dog")], classes=CLASSES),
    make_record("b", "b.png", 100, 80, [], classes=CLASSES),
    make_record("c", "c.png", 90, 200, [([10, 20, 30, 40], "cat"), ([0, 0, 90, 200], "cat")], classes=CLASSES),
]
RECORDS[2]["objects"]["ignore"][1] = True
MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def answer(record: dict, codec: str) -> dict:
    size = (record["height"], record["width"])
    objects = record["objects"]
    text = CODECS[codec].encode(objects["bbox"], objects["category"], size, (280, 280)).text
    line = make_prediction(record, codec, (280, 280), text, 0.1)
    line["objects"]["score_label"] = line["objects"]["score"]
    return line


ANSWERS = {codec: [answer(record, codec) for record in RECORDS] for codec in ("qwen3_vl", "qwen2_vl_click")}

numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([True, 0, 1, -0.0, 5e-324, 1e12, 2**63, -(2**63), 10**400, math.nan, math.inf, -math.inf]),
)
words = st.one_of(st.text(max_size=5), st.sampled_from(["a", "cat", " cat ", "", "\ud800", "<|im_end|>", "\0", "../x"]))
values = st.recursive(
    st.one_of(st.none(), numbers, words),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=3)),
    max_leaves=6,
)


def places(value, path=()):
    """The path of every part of a JSON value, the whole value first."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def changed(value, path: tuple, new, remove: bool):
    """`value` with the part at `path` replaced or removed."""
    if not path:
        return new
    value = copy.copy(value)
    if len(path) == 1 and remove:
        del value[path[0]]
    else:
        value[path[0]] = changed(value[path[0]], path[1:], new, remove)
    return value


@st.composite
def mangled(draw, lines: list[dict]) -> bytes:
    """The lines as a file with values replaced, keys removed, lines duplicated or removed, or bytes that are not JSON."""
    lines, damage = copy.deepcopy(lines), draw(st.sampled_from(["values", "values", "lines", "text", "bytes"]))
    if damage == "values":
        for _ in range(draw(st.integers(1, 3))):
            i = draw(st.integers(0, len(lines) - 1))
            path = draw(st.sampled_from(list(places(lines[i]))))
            new = draw(st.one_of(numbers, values))
            lines[i] = changed(lines[i], path, new, draw(st.booleans()))
    if damage == "lines":
        lines = draw(st.lists(st.sampled_from(lines), max_size=5))
    data = draw(st.sampled_from(["\n", "\r\n", "\n\n"])).join(map(json.dumps, lines)).encode()
    if damage == "text":
        old = draw(st.sampled_from([b"480", b"100", b"1", b'"cat"', b'"a"', b"[", b"}"]))
        new = draw(st.sampled_from([b"1e400", b"9" * 5000, b"9" * 400, b"[" * 980 + b"]" * 980, b"1_0", b"[" * 9999]))
        data = data.replace(old, new, draw(st.integers(1, 3)))
    if damage == "bytes":
        at = draw(st.integers(0, len(data)))
        new = draw(
            st.sampled_from([b"\0", b"\x80\xff", b"\xed\xa0\x80", b"{", b"\n", b"\r", b"\n \n\t\n", b"\xff\xfe"])
        )
        data = data[:at] + new + data[draw(st.integers(at, len(data))) :]
    return draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + data


def unless_rejected(reader):
    """The result of `reader`, or None if it raises a UserError that names a line or an id for each problem."""
    try:
        return reader()
    except UserError as error:
        assert error.problems or any(
            word in str(error) for word in ("points and others", "--score", "dataset.json counts", "UTF-16")
        )
        for problem in error.problems:
            assert problem.startswith("line ") or problem.split(":")[0] in "abc", problem
            assert len(problem) < 1000, "too long for a message"
        return None


def numbers_in(value):
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(inner)
    elif isinstance(value, int | float):
        yield value


def check_scores(records, predictions):
    metrics = score(records, predictions, CLASSES)
    json.dumps(metrics, allow_nan=False)
    assert all(-1e-9 <= v <= 1 + 1e-9 for k, v in metrics.items() if k.startswith("AP") and isinstance(v, float))
    counts = metrics["points"] or metrics["matching"]
    found = sum(len(prediction["objects"]["category"]) for prediction in predictions)
    ground_truth = sum(not ignored for record in records for ignored in record["objects"]["ignore"])
    assert counts["tp"] + counts["fn"] == ground_truth and counts["tp"] + counts["fp"] <= found
    return metrics


@pytest.mark.parametrize("codec", ANSWERS)
@given(data=st.data(), reparse=st.booleans(), allow_missing=st.booleans())
@MANY
def test_mangled_predictions_give_finite_numbers_or_a_list_of_lines(tmp_path, codec, data, reparse, allow_missing):
    path = tmp_path / "p.jsonl"
    path.write_bytes(data.draw(mangled(ANSWERS[codec])))
    read = unless_rejected(lambda: read_predictions(path, RECORDS, allow_missing=allow_missing, reparse=reparse))
    if read is None:
        return
    predictions, missing = read
    assert [prediction["id"] for prediction in predictions] == ["a", "b", "c"] and (allow_missing or not missing)
    check_scores(RECORDS, predictions)
    for scorer in RANKINGS:
        if ranked := unless_rejected(lambda scorer=scorer: with_score(predictions, scorer)):
            check_scores(RECORDS, ranked)
    if codec == "qwen3_vl":
        export_predictions([*EXPORTS], tmp_path / "out", RECORDS, predictions, CLASSES, "test", tmp_path)
        json.loads((tmp_path / "out" / "coco_results.json").read_text(), parse_constant=pytest.fail)


def test_values_that_no_metric_depends_on_may_be_anything(tmp_path, capfd):
    """Any label and any kind of problem can be printed, exported and shown in the report."""
    write_dataset(tmp_path / "d", name="d", source_format="t", classes=CLASSES, splits={"test": RECORDS}, problems=[])
    lines = copy.deepcopy(ANSWERS["qwen3_vl"])
    lines[0] |= {"seconds": None, "image": 5, "codec": ["x"], "input_size": "no", "text": "\ud800\0<script>"}
    lines[0] |= {"problems": ["weird \ud800", "\0", "clean"]}
    lines[0]["objects"] |= {"category": ["\ud800", "\0<b>"], "more": 5}
    lines[2]["objects"]["bbox"] = [[-1e11, -5, 1e11, 7e11], [0, 0, 1e-200, 1e-200]]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ["--predictions", "p.jsonl", "--data", "d", "--out", "out", "--export", ",".join(EXPORTS), "--json"]
    evaluate.main([str(tmp_path / word) if word in ("p.jsonl", "d", "out") else word for word in words])
    (metrics,) = json.loads(capfd.readouterr().out).values()
    # The box without area is a false positive, although it lies in ignored ground truth of its class.
    assert metrics["matching"]["fp"] == 4 and metrics["unknown_label_boxes"] == 2
    # The data and the script of the page, and no script from an answer.
    assert (tmp_path / "out" / "report.html").read_text().count("<script") == 2


def test_boxes_with_an_area_too_small_for_a_float_overlap_nothing():
    """Not even each other: their IoU would be 0 / 0, which metrics.json cannot hold."""
    record, prediction = copy.deepcopy(RECORDS[0]), copy.deepcopy(answer(RECORDS[0], "qwen3_vl"))
    for objects in (record["objects"], prediction["objects"]):
        objects["bbox"] = [[0, 0, 1e-200, 1e-200]] * len(objects["bbox"])
    record["objects"]["ignore"] = [False] * len(record["objects"]["bbox"])
    assert check_scores([record], [prediction])["matching"]["tp"] == 0


@given(data=st.data())
@MANY
def test_mangled_records_give_finite_numbers_or_a_list_of_lines(tmp_path, data):
    folder = tmp_path / "data"
    if not folder.exists():
        write_dataset(folder, name="d", source_format="t", classes=CLASSES, splits={"test": RECORDS}, problems=[])
    (folder / "test.jsonl").write_bytes(data.draw(mangled(RECORDS)))
    if records := unless_rejected(lambda: read_records(folder, "test")):
        records = [as_asked(record) for record in records]
        for codec in ANSWERS:
            check_scores(records, [answer(record, codec) for record in records])
