"""Lists of a JSON object, element by element."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_prep.reading import json_stream
from data_prep.reading.json_stream import lists_of_object

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("stream") / "object.json"


@given(
    value=st.dictionaries(st.text(), VALUES, max_size=6),
    chunk=st.integers(1, 50),
    indent=st.sampled_from([None, 1]),
    mark=st.sampled_from(["", "\ufeff"]),
)
@example(value={"a": [0.5, 1e-07, -2], "b": 1.5}, chunk=1, indent=None, mark="")
def test_lists_are_those_of_json(file, value, chunk, indent, mark):
    """Whatever the size of the chunks: elements, and numbers in particular, may lie across them."""
    file.write_text(mark + json.dumps(value, indent=indent, ensure_ascii=True) + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK", chunk)
        found = {key: list(elements) for key, elements in lists_of_object(file)}
        assert found == {key: element for key, element in value.items() if isinstance(element, list)}
        assert [key for key, _ in lists_of_object(file)] == [*found], "lists that are not read are skipped"


@given(cut=st.integers(0, 60), chunk=st.integers(1, 50))
def test_a_text_that_is_cut_is_an_error(file, cut, chunk):
    text = json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}, 12.5], "other": {"x": "é"}, "annotations": []})
    file.write_text(text[: min(cut, len(text) - 1)], encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK", chunk)
        with pytest.raises(ValueError, match=""):
            [list(elements) for _, elements in lists_of_object(file)]


@pytest.mark.parametrize(
    "text", ["[]", "1", "", "{} {}", '{"a": [1 2]}', '{"a" [1]}', "{1: [1]}", '{"a": [1],}', "{\xff}"]
)
def test_anything_but_one_object_is_an_error(file, text):
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=""):
        [list(elements) for _, elements in lists_of_object(file)]
