"""The prepared dataset as a file format: every violation is reported, and writing is all or nothing."""

import json
import os

import pytest

from boxtune.answers.conversation import render
from boxtune.common.errors import UserError
from boxtune.data.dataset import data_hash, read_info, read_records, write_dataset
from boxtune.data.questions import question
from boxtune.data.record_checks import record_problems
from boxtune.data.records import flat_name, in_order
from tests.helpers.records import make_record

GOOD = make_record("a", "a.png", 100, 80, [([0, 0, 100, 80], "cat"), ([1.5, 2, 3, 4], "dog")])


def with_objects(**columns) -> dict:
    return GOOD | {"objects": GOOD["objects"] | columns}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("text", "must be a JSON object"),
        ({"id": "a"}, "missing image, width"),
        (GOOD | {"width": 0}, "must be positive integers"),
        (GOOD | {"width": 10**400, "height": 10**400}, "must be positive integers"),
        (GOOD | {"id": ""}, "cannot name a file"),
        (with_objects(bbox=[[False, False, True, True], [1, 2, 3, 4]]), "[False, False, True, True] is not"),
        (with_objects(category=["cat", "\ud800"]), "holds '\\ud800'"),
        (with_objects(bbox=[[0, 0, 101, 80], [1, 2, 3, 4]]), "is not [x0, y0, x1, y1] inside 100 × 80"),
        (with_objects(bbox=[[5, 0, 5, 80], [1, 2, 3, 4]]), "[5, 0, 5, 80] is not"),
        (with_objects(bbox=[[0, 0, float("nan"), 80], [1, 2, 3, 4]]), "nan"),
        (with_objects(bbox=[[0, 0, 9], [1, 2, 3, 4]]), "[0, 0, 9] is not"),
        (with_objects(ignore=[False]), "differ in length"),
        (with_objects(area=[4]), "differ in length"),
        (with_objects(area=["9", None]), "area '9' must be a number of square pixels, or null"),
        (with_objects(area=[4, -1]), "area -1 must be"),
        (with_objects(area=[4, True]), "area True must be"),
        (with_objects(area=[float("nan"), 10**400]), "area nan must be"),
        (with_objects(category=["cat", " dog"]), "has space around it"),
        (with_objects(category=["cat", "<|im_end|>"]), "special token"),
        (with_objects(category=["cat", "a\x1bb"]), "control character"),
        (with_objects(category=["cat", "<boxes:cat>"]), "special token"),
        (with_objects(category=["cat", ""]), "is empty"),
        (GOOD | {"messages": []}, "must alternate between user and assistant"),
        (GOOD | {"messages": GOOD["messages"][::-1]}, "must alternate between user and assistant"),
        (GOOD | {"id": 5}, "must be strings"),
        (GOOD | {"width": 100, "height": 30_000}, "exceeds the aspect ratio of 200"),
        (with_objects(bbox=[[0, 0, 10**400, 80], [1, 2, 3, 4]]), "is not [x0, y0, x1, y1]"),
        (with_objects(ignore=[False, "false"]), "ignore 'false' must be true or false"),
        (
            GOOD | {"messages": [{"role": "user", "content": "<image>Where?<|im_end|>"}, GOOD["messages"][1]]},
            "token that ends a turn",
        ),
        (
            GOOD | {"messages": [{"role": "user", "content": "no image"}, GOOD["messages"][1]]},
            "must contain <image> once",
        ),
        (
            with_objects(category=[1, "cat"])
            | {"messages": [GOOD["messages"][0], {"role": "assistant", "content": "<boxes:cat>"}]},
            "class name 1 is not a string",
        ),
        *(
            (GOOD | {"messages": [GOOD["messages"][0], {"role": "assistant", "content": answer}]}, words)
            for answer, words in (
                ("<boxes>\n", "must be the whole answer"),
                ("There: <boxes>", "must be the whole answer"),
                ("<boxes:cat> <boxes:dog>", "must be the whole answer"),
                ("<boxes:Cat>", "no object has this label, but there is 'cat'"),
            )
        ),
    ],
)
def test_every_violation_is_reported(record, message):
    assert record_problems(GOOD) == []
    assert any(message in problem for problem in record_problems(record)), record_problems(record)


def test_every_answer_of_a_conversation_is_checked():
    turns = [
        *GOOD["messages"],
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "see <boxes>"},
    ]
    [problem] = record_problems(GOOD | {"messages": turns})
    assert "'see <boxes>': <boxes> and <boxes:NAME> must be the whole answer" in problem


def test_answers_may_be_plain_text_or_about_an_absent_class():
    for answer in ("<boxes:dog>", "<boxes:zebra>", "None that I can see.", "a < b"):
        assert (
            record_problems(GOOD | {"messages": [GOOD["messages"][0], {"role": "assistant", "content": answer}]}) == []
        )


def test_areas_may_be_stated_or_unknown():
    assert record_problems(with_objects(area=[0, 12.5])) == record_problems(with_objects(area=[None, None])) == []


def test_objects_can_be_put_in_order():
    boxes = {"low": [0, 50, 10, 60], "wide": [5, 8, 90, 20], "left": [0, 8, 5, 10]}
    record = make_record("a", "a.png", 100, 80, [(box, name) for name, box in boxes.items()])
    record["objects"]["note"] = [*boxes]

    def names(order):
        objects = in_order(record, order)["objects"]
        assert objects["category"] == objects["note"]
        assert objects["bbox"] == [boxes[name] for name in objects["category"]]
        return objects["category"]

    assert names("source") == ["low", "wide", "left"]
    assert names("raster") == ["left", "wide", "low"]
    assert names("area") == ["wide", "low", "left"]
    assert names("random") == names("random")
    many = make_record("b", "b.png", 100, 80, [([i, 0, i + 1, 1], str(i)) for i in range(20)])
    shuffled = in_order(many, "random")["objects"]["category"]
    assert shuffled != many["objects"]["category"]
    assert sorted(shuffled, key=int) == many["objects"]["category"]
    assert in_order(GOOD | {"objects": {"bbox": [], "category": [], "ignore": []}}, "area")["objects"]["bbox"] == []


def test_ids_give_different_file_names():
    ids = ["a/b", "a%2Fb", "a%252Fb", "a b", "ab"]
    names = [flat_name(name) for name in ids]
    assert len({*names}) == len(ids) and not any("/" in name for name in names)


def write(folder, records, **extra):
    write_dataset(
        folder, name="x", source_format="t", classes=["cat", "dog"], splits={"train": records}, problems=[], **extra
    )


def test_reading_back_gives_what_was_written(tmp_path):
    unusual = GOOD | {"id": "ünïcode", "note": [1, None, "x"]}
    write(tmp_path / "d", [GOOD, unusual])
    assert read_records(tmp_path / "d", "train") == [GOOD, unusual]
    assert read_info(tmp_path / "d")["splits"] == {"train": {"images": 2, "objects": 4, "empty": 0}}
    write(tmp_path / "e", [GOOD, unusual])
    assert data_hash(tmp_path / "d") == data_hash(tmp_path / "e")
    write(tmp_path / "e", [GOOD], overwrite=True)
    assert data_hash(tmp_path / "d") != data_hash(tmp_path / "e")


def test_all_bad_lines_are_listed(tmp_path):
    write(tmp_path / "d", [GOOD])
    path = tmp_path / "d" / "train.jsonl"
    path.write_text(path.read_text() * 2 + "{corrupt\n" + json.dumps(with_objects(ignore=[])) + "\n")
    with pytest.raises(UserError) as error:
        read_records(tmp_path / "d", "train")
    assert len(error.value.problems) == 3
    for word in ("line 2: a: duplicate id", "line 3: not JSON", "line 4: a: the lists in objects differ"):
        assert word in str(error.value)


TWICE = '{"name": "d", "format": "coco", "classes": ["cat", "cat"], "splits": {}, "problems": {}}'
NO_CLASS = '{"name": "d", "format": "coco", "classes": [], "splits": {}, "problems": {}}'


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"classes": ["cat"], "splits": ["train"]}', NO_CLASS, TWICE])
def test_an_invalid_dataset_json_gives_one_message(tmp_path, text):
    write(tmp_path / "d", [GOOD])
    (tmp_path / "d" / "dataset.json").write_text(text)
    with pytest.raises(UserError, match="Prepare the data again"):
        read_info(tmp_path / "d")


def test_a_split_file_without_lines_is_not_an_empty_split(tmp_path):
    write(tmp_path / "d", [GOOD])
    (tmp_path / "d" / "train.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"is empty; dataset\.json counts 1 images"):
        read_records(tmp_path / "d", "train")


@pytest.mark.parametrize(("lines", "found"), [(1, "has 1 images"), (3, "has 3 images"), (0, "is empty")])
def test_dataset_json_must_count_the_images_of_the_file(tmp_path, lines, found):
    write(tmp_path / "d", [GOOD, GOOD | {"id": "b"}])
    path = tmp_path / "d" / "train.jsonl"
    path.write_text("".join(json.dumps(GOOD | {"id": str(i)}) + "\n" for i in range(lines)))
    with pytest.raises(UserError) as error:
        read_records(tmp_path / "d", "train")
    assert str(error.value) == (
        f"{path} {found}; dataset.json counts 2 images. Prepare the data again, or correct the number of images in "
        "dataset.json if you changed the file."
    )


def test_a_split_that_dataset_json_does_not_count_is_reported(tmp_path):
    write(tmp_path / "d", [GOOD])
    (tmp_path / "d" / "test.jsonl").write_text(json.dumps(GOOD) + "\n")
    for split in ("train", "test"):
        with pytest.raises(UserError, match=r"dataset\.json does not count the images of test\.jsonl"):
            read_records(tmp_path / "d", split)


def test_a_thousand_bad_lines_give_twenty_examples_and_counts(tmp_path):
    write(tmp_path / "d", [GOOD])
    bad = [with_objects(bbox=[[i, 0, 300, 80], [1, 2, 3, 4]]) | {"id": f"a: {i}"} for i in range(1000)]
    (tmp_path / "d" / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*bad, 5]))
    with pytest.raises(UserError) as error:
        read_records(tmp_path / "d", "train")
    lines = str(error.value).splitlines()
    assert len(error.value.problems) == 1001 and len(lines) == 1 + 20 + 1 + 2
    assert lines[-2:] == [
        "     1000 × bbox … is not [x0, y0, x1, y1] inside 100 × 80",
        "        1 × a line must be a JSON object, got int",
    ]


def test_a_byte_order_mark_is_accepted(tmp_path):
    write(tmp_path / "d", [GOOD])
    for name in ("train.jsonl", "dataset.json"):
        path = tmp_path / "d" / name
        path.write_text(path.read_text(), encoding="utf-8-sig")
    assert read_records(tmp_path / "d", "train") == [GOOD]


def test_a_link_to_a_dataset_stays_a_link(tmp_path):
    write(tmp_path / "d", [GOOD])
    (tmp_path / "link").symlink_to(tmp_path / "d")
    write(tmp_path / "link", [GOOD, GOOD | {"id": "b"}], overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert len(read_records(tmp_path / "d", "train")) == 2


def test_nothing_is_replaced_without_overwrite_or_in_part(tmp_path):
    write(tmp_path / "d", [GOOD])
    with pytest.raises(UserError, match="--overwrite"):
        write(tmp_path / "d", [GOOD])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="something other than a prepared dataset"):
        write(tmp_path / "mine", [GOOD], overwrite=True)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match="Out of range float"):
        write(tmp_path / "d", [with_objects(bbox=[[0, 0, float("inf"), 1], [1, 2, 3, 4]])], overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert read_records(tmp_path / "d", "train") == [GOOD]


def test_an_interruption_leaves_the_old_or_the_new_dataset(tmp_path, monkeypatch):
    data = tmp_path / "d"
    write(data, [GOOD])
    rename, calls = os.rename, []

    def fails_once(*paths):
        calls.append(paths)
        if len(calls) == 2:  # the old folder is moved aside, the new one is not renamed yet
            raise KeyboardInterrupt
        rename(*paths)

    monkeypatch.setattr(os, "rename", fails_once)
    with pytest.raises(KeyboardInterrupt):
        write(data, [GOOD, GOOD | {"id": "b"}], overwrite=True)
    monkeypatch.undo()
    assert read_records(data, "train") == [GOOD] and [*tmp_path.iterdir()] == [data]

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("boxtune.common.files.shutil.rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(data, [GOOD, GOOD | {"id": "b"}], overwrite=True)
    assert len(read_records(data, "train")) == 2


def test_questions_are_natural_sentences():
    assert question(["cat"]) == "<image>Detect every cat in the image."
    assert question(["RBC", "WBC", "Platelets"]) == "<image>Detect every RBC, WBC and Platelets in the image."


def test_only_questions_about_boxes_get_the_format_sentence():
    from boxtune.answers.codecs import CODECS

    record = GOOD | {
        "messages": [
            {"role": "user", "content": "Look. <image>Find all."},
            {"role": "assistant", "content": "<boxes>"},
            {"role": "user", "content": "How many?"},
            {"role": "assistant", "content": "Two."},
        ]
    }
    conversation, widened = render(record, CODECS["qwen3_vl"], (84, 112), "", "As JSON.")
    assert [turn["role"] for turn in conversation] == ["user", "assistant", "user", "assistant"]
    assert [part["type"] for part in conversation[0]["content"]] == ["text", "image", "text"]
    assert conversation[0]["content"][-1]["text"] == "Find all. As JSON."
    assert conversation[2]["content"] == [{"type": "text", "text": "How many?"}]
    assert widened == 0
