"""evaluate.py --tune: settings are chosen on validation and stored in the checkpoint."""

import json
import shutil
from pathlib import Path

import pytest

import evaluate
from boxtune.answers.decoding import Decoding
from boxtune.answers.grounding import Grounding
from boxtune.answers.predictions import make_prediction
from boxtune.answers.selection import keep_objects
from boxtune.answers.verifier import with_verified_scores
from boxtune.data.dataset import read_records, write_dataset
from boxtune.data.questions import turns_for
from boxtune.evaluation.decode_grid import best_of, settings_to_generate, try_selections
from boxtune.inference import detector
from tests.helpers.predictions import cat_prediction, cat_record
from tests.helpers.training import train, tune

CAT = [128, 48, 256, 96]
FAST = ["--max-new-tokens", "24", "--limit", "3"]


# ---- what the grid tries -------------------------------------------------------------------------------------------------


def test_a_single_class_is_not_asked_twice_in_the_same_way():
    both, one = cat_record() | {"messages": turns_for(["cat", "dog"])}, cat_record()
    asked = settings_to_generate([one, both], ["cat", "dog"])
    assert [(s.ask, s.repetition_penalty) for s in asked] == [
        *(("all", penalty) for penalty in (1.0, 1.05, 1.1)),
        *(("each", penalty) for penalty in (1.0, 1.05, 1.1)),
    ]
    assert [s.ask for s in settings_to_generate([one], ["cat"])] == ["all"] * 3


def test_the_tiles_of_the_checkpoint_stay():
    asked = settings_to_generate([cat_record()], ["cat"], Decoding(tiles=640, teachers=2))
    assert {(settings.tiles, settings.teachers) for settings in asked} == {(640, 2)}


def test_the_verifier_is_tried_with_each_setting_only_where_that_is_asked_for():
    asked = settings_to_generate([cat_record()], ["cat"], with_verifier=True)
    assert [(s.verify, s.repetition_penalty) for s in asked] == [
        (v, p) for v in (False, True) for p in (1.0, 1.05, 1.1)
    ]
    assert not any(s.verify for s in settings_to_generate([cat_record()], ["cat"]))


def trials_of(boxes, scores, metric):
    line = cat_prediction(objects={"bbox": boxes, "category": ["cat"] * len(boxes), "score": scores})
    return list(try_selections([cat_record()], [line], ["cat"], Decoding(), metric))


def test_of_equally_good_settings_those_that_change_least_are_chosen():
    trials = trials_of([CAT], [0.95], "f1")
    assert len(trials) == 3 * 11 and {trial.f1 for trial in trials} == {1.0}
    assert best_of(trials, "f1").decoding == Decoding()


def test_f1_finds_the_threshold_that_drops_a_false_positive():
    trials = trials_of([CAT, [300, 300, 400, 400]], [0.95, 0.25], "f1")
    best = best_of(trials, "f1")
    assert best.decoding == Decoding(score_threshold=0.3) and (best.f1, best.objects) == (1.0, 1)
    assert trials[0].f1 == pytest.approx(2 / 3) and trials[0].objects == 2


def test_suppression_is_chosen_where_a_duplicate_box_costs_precision():
    """The duplicate has an IoU of 0.8 with the cat, so that 0.85 keeps it. AP needs no threshold."""
    boxes = [[128, 48, 256, 86.4], CAT]
    trials = trials_of(boxes, [0.9, 0.95], "f1")
    assert best_of(trials, "f1").decoding == Decoding(suppress_iou=0.7)
    by_ap = trials_of(boxes, [0.9, 0.95], "AP")
    assert [trial.decoding.suppress_iou for trial in by_ap] == [1.0, 0.85, 0.7]
    assert {trial.decoding.score_threshold for trial in by_ap} == {0.0}


def test_points_are_tried_by_f1_with_thresholds_only():
    click = make_prediction(cat_record(), "qwen3_vl_click", (320, 320), "<click>300,150</click> cat", 0.1)
    trials = list(try_selections([cat_record()], [click], ["cat"], Decoding(), "f1"))
    assert {(trial.AP, trial.decoding.suppress_iou) for trial in trials} == {(None, 1.0)} and trials[0].f1 == 1.0


# ---- the command ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(squares, tmp_path_factory) -> Path:
    return train(squares, tmp_path_factory.mktemp("run") / "run", "--learning_rate", "1e-3", "--lora_vision", "false")


@pytest.fixture
def data(squares, tmp_path) -> Path:
    """The squares, with a test split that cannot be read."""
    folder = shutil.copytree(squares, tmp_path / "data")
    (folder / "test.jsonl").write_text("nobody reads this\n")
    return folder


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) | {"seconds": 0} for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_the_best_settings_are_stored_and_used_and_test_is_never_read(run, data, tmp_path, capsys):
    checkpoint, out = tmp_path / "final", tmp_path / "tuning"
    shutil.copytree(run / "final", checkpoint)
    tune(checkpoint, suppress_iou=0.3, tiles=240)
    before = Grounding.load(checkpoint)
    evaluate.main(
        ["--ckpt", str(checkpoint), "--tune", "--metric", "f1", "--data", str(data), "--out", str(out), *FAST]
    )
    printed = capsys.readouterr().out
    assert "penalty" in printed and str(checkpoint / "grounding.json") in printed.replace("\n", "")

    result = json.loads((out / "tuning.json").read_text())
    assert (result["split"], result["metric"], len(result["trials"])) == ("validation", "f1", 6 * 3 * 11)
    assert result["before"]["suppress_iou"] == 0.3 and result["chosen"]["tiles"] == 240
    chosen = Decoding(**result["chosen"])
    assert max(trial["f1"] or 0 for trial in result["trials"]) == next(
        trial["f1"] or 0 for trial in result["trials"] if trial["decoding"] == result["chosen"]
    )
    after = Grounding.load(checkpoint)
    assert after.decoding == chosen and after.max_new_tokens == before.max_new_tokens
    assert {key for key in vars(after) if getattr(after, key) != getattr(before, key)} == {"decoding"}
    assert not list(out.rglob("*.partial"))

    # The predictions of the generated settings are those of an evaluation with them.
    tune(checkpoint, ask="each", repetition_penalty=1.05)
    words = ["--split", "validation", "--data", str(data), "--out", str(tmp_path / "eval")]
    evaluate.main(["--ckpt", str(checkpoint), *words, *FAST])
    assert lines_of(tmp_path / "eval") == lines_of(out / "ask_each_penalty_1.05")
    assert all("parts" in line for line in lines_of(tmp_path / "eval"))


def test_an_interrupted_call_asks_for_what_is_missing_only(run, data, tmp_path, monkeypatch):
    checkpoint, asked = shutil.copytree(run / "final", tmp_path / "final"), []
    honest = detector.generate_answers

    def interrupted(model, collator, records, batch_size):
        asked.append((collator.grounding.decoding.repetition_penalty, len(records)))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return honest(model, collator, records, batch_size)

    monkeypatch.setattr(detector, "generate_answers", interrupted)
    words = [
        "--ckpt",
        str(checkpoint),
        "--tune",
        "--data",
        str(data),
        "--limit",
        "2",
        "--out",
        str(tmp_path / "out"),
        *FAST,
    ]
    with pytest.raises(SystemExit) as stop:
        evaluate.main(words)
    assert stop.value.code == 130 and Grounding.load(checkpoint).decoding == Decoding()
    evaluate.main(words)
    assert asked == [(1.0, 3), (1.05, 3), (1.0, 0), (1.05, 3), (1.1, 3), (1.0, 3), (1.05, 3), (1.1, 3)]


def test_the_verifier_is_calibrated_on_validation_and_its_scores_are_those_of_an_evaluation(
    run, data, tmp_path, monkeypatch
):
    """With 20 boxes, half of them correct, so that a calibration can be fitted."""
    checkpoint, out = shutil.copytree(run / "final", tmp_path / "final"), tmp_path / "out"
    names = ["--data", str(data), "--out", str(out), *FAST]

    def answers(model, collator, records, batch_size):
        for record in records:
            boxes = [box for box in record["objects"]["bbox"] for _ in range(8)]
            half = [box if i % 2 else [0, 0, 5, 5] for i, box in enumerate(boxes)]
            objects = {"bbox": half, "category": [c for c in record["objects"]["category"] for _ in range(8)]}
            odds = [1.5 if i % 2 and i % 8 < 4 else -1.0 + i % 3 for i in range(len(half))]
            line = cat_prediction(record["id"], width=record["width"], height=record["height"])
            line |= {"objects": objects | {"score": [0.5] * len(half)}}
            decoding, calibration = collator.grounding.decoding, collator.grounding.verify_calibration
            yield keep_objects(with_verified_scores(line, odds, calibration) if decoding.verify else line, decoding)

    monkeypatch.setattr(detector, "generate_answers", answers)
    evaluate.main(["--ckpt", str(checkpoint), "--tune", "--verify", *names])
    result, after = json.loads((out / "tuning.json").read_text()), Grounding.load(checkpoint)
    assert len(result["trials"]) == 12 * 3 and (out / "ask_all_penalty_1_verify" / "predictions.jsonl").is_file()
    assert after.decoding.verify and after.decoding == Decoding(**result["chosen"])
    assert after.verify_calibration == result["verify_calibration"] and after.verify_calibration[0] > 0
    assert after.calibration == Grounding.load(run / "final").calibration

    evaluate.main(["--ckpt", str(checkpoint), "--split", "validation", *names])
    metrics = json.loads((out / "metrics.json").read_text())
    chosen = max(trial["AP"] for trial in result["trials"])
    assert metrics["score_source"] == "verify_calibrated" and metrics["AP"] == pytest.approx(chosen)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--predictions", "p.jsonl"], "--tune has no effect with --predictions"),
        (["--ckpt", "x", "--images", "photos"], "--tune has no effect with --images"),
        (["--compare", "a", "b"], "--tune has no effect with --compare"),
        (["--ckpt", "x", "--split", "test"], "--split has no effect with --tune"),
        (["--ckpt", "x", "--base"], "--base has no effect with --tune"),
        (["--ckpt", "no/such/model"], "no/such/model has no grounding.json to store the settings in"),
    ],
)
def test_calls_that_cannot_tune_are_refused(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main([*words, "--tune"])
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--metric", "f1"], ["--verify"]])
def test_options_of_tune_are_refused_without_it(words, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--ckpt", "x", *words])
    assert stop.value.code == 2 and f"{words[0]} has no effect with --ckpt" in capsys.readouterr().err


def test_a_dataset_without_validation_or_without_objects_is_refused(run, squares, tmp_path, capsys):
    test = read_records(squares, "test")
    empty = [record | {"objects": {"bbox": [], "category": [], "ignore": []}} for record in test]
    for name, splits, message in (
        ("test_only", {"test": test}, "has no validation images"),
        ("empty", {"validation": empty}, "contain no objects"),
    ):
        data = tmp_path / name
        classes = ["red square", "blue square"]
        write_dataset(data, name=name, source_format="test", classes=classes, splits=splits, problems=[])
        with pytest.raises(SystemExit) as stop:
            evaluate.main(["--ckpt", str(run / "final"), "--tune", "--data", str(data), "--out", str(tmp_path / "out")])
        assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_points_have_no_ap_to_tune_by(run, squares, tmp_path, capsys):
    checkpoint = shutil.copytree(run / "final", tmp_path / "final")
    text = (checkpoint / "grounding.json").read_text()
    (checkpoint / "grounding.json").write_text(text.replace('"codec": "qwen3_vl"', '"codec": "qwen3_vl_click"'))
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--ckpt", str(checkpoint), "--tune", "--data", str(squares)])
    assert stop.value.code == 2 and "Use --metric f1" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--ckpt", str(checkpoint), "--tune", "--metric", "f1", "--verify", "--data", str(squares)])
    assert stop.value.code == 2 and "--verify: this checkpoint responds with points" in capsys.readouterr().err
