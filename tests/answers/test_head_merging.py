"""Boxes of text and head, merged by the rule that the module states."""

from boxtune.answers.head_merging import merge_decoders


def prediction(boxes, scores, labels=None, seconds=0.25) -> dict:
    objects = {"bbox": boxes, "category": labels or ["cat"] * len(boxes), "score": scores}
    return {"id": "1", "text": "…", "objects": objects, "problems": [], "seconds": seconds}


def test_pairs_keep_the_better_box_and_single_boxes_half_their_score():
    text = prediction([[0, 0, 10, 10], [50, 50, 60, 60]], [0.9, 0.4])
    head = prediction([[0, 0, 10, 9], [51, 50, 60, 60], [80, 80, 90, 90]], [0.7, 0.8, 0.6])
    merged = merge_decoders(text, head, least=0.0)
    assert merged["objects"]["bbox"] == [[0, 0, 10, 10], [51, 50, 60, 60], [80, 80, 90, 90]]
    assert merged["objects"]["score"] == [0.8, 0.6, 0.3]
    assert (merged["decoder"], merged["text"], merged["seconds"]) == ("both", "…", 0.5)
    assert merge_decoders(text, head, least=0.5)["objects"]["score"] == [0.8, 0.6]


def test_only_boxes_of_the_same_label_that_overlap_by_half_are_the_same_object():
    text = prediction([[0, 0, 10, 10], [20, 0, 30, 10]], [1.0, 1.0], ["cat", "dog"])
    head = prediction([[0, 0, 10, 10], [20, 0, 30, 4.9]], [1.0, 1.0], ["dog", "dog"])
    merged = merge_decoders(text, head, least=0.0)["objects"]
    assert merged["score"] == [0.5] * 4
    assert sorted(merged["category"]) == ["cat", "dog", "dog", "dog"]


def test_nothing_merges_with_anything():
    empty, full = prediction([], []), prediction([[0, 0, 1, 1]], [1.0])
    assert merge_decoders(empty, empty, 0.0)["objects"] == {"bbox": [], "category": [], "score": []}
    assert merge_decoders(empty, full, 0.0)["objects"] == merge_decoders(full, empty, 0.0)["objects"]


def test_captions_of_the_text_are_kept_and_completed_by_those_of_the_head():
    text = prediction([[0, 0, 10, 10], [50, 50, 60, 60]], [0.8, 0.4])
    text["objects"]["caption"] = ["of the text", None]
    head = prediction([[0, 0, 10, 9], [50, 50, 60, 60], [80, 0, 90, 9]], [0.9, 0.4, 0.3])
    head["objects"]["caption"] = ["of the head", "completed", "new"]
    assert merge_decoders(text, head, 0.0)["objects"]["caption"] == ["of the text", "completed", "new"]
    del head["objects"]["caption"]
    assert merge_decoders(text, head, 0.0)["objects"]["caption"] == ["of the text", None, None]
