"""evaluate.py as a user runs it: adapter, base, earlier predictions, and images without ground truth."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import evaluate
from boxtune.answers.codecs import CODECS
from boxtune.answers.grounding import Grounding
from boxtune.answers.predictions import KEYS, make_prediction
from boxtune.batching.encoder import expected_input_size
from boxtune.common.errors import UserError
from boxtune.data.absent_questions import absent_questions
from boxtune.data.dataset import read_records, write_dataset
from boxtune.data.questions import as_asked, first_question, turns_for
from boxtune.models.processors import load_processor
from tests.helpers.records import ROOT, make_record
from tests.helpers.training import train


@pytest.fixture(scope="module")
def run(squares, tmp_path_factory) -> Path:
    return train(squares, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def evaluated(run) -> Path:
    evaluate.main(["--ckpt", str(run / "final"), "--base", "--max-new-tokens", "20", "--batch-size", "4"])
    return run / "eval"


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_predictions_keep_the_contract(evaluated, squares):
    records = read_records(squares, "test")
    predictions = read_lines(evaluated / "predictions.jsonl")
    assert [p["id"] for p in predictions] == [r["id"] for r in records]
    processor = load_processor(str(evaluated.parent / "final"))
    for record, prediction in zip(records, predictions, strict=True):
        assert tuple(prediction) == KEYS
        assert prediction["codec"] == "qwen3_vl"
        assert tuple(prediction["input_size"]) == expected_input_size(processor, (record["height"], record["width"]))
        assert "<|im_end|>" not in prediction["text"]
        assert "<|endoftext|>" not in prediction["text"]
    assert not list(evaluated.rglob("*.partial"))


def test_metrics_and_report_of_tuned_and_base(evaluated):
    for folder in (evaluated, evaluated / "base"):
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        assert metrics["parse"]["images"] == 6
        assert metrics["provenance"]["split"] == "test"
        assert metrics["provenance"]["base_precision"] == "nf4"
        assert metrics["provenance"]["pixel_budget"] == {"min_pixels": 4096, "max_pixels": 50176}
        assert "http" not in (folder / "report.html").read_text(encoding="utf-8").split("</head>")[1].lower()
    base = json.loads((evaluated / "base" / "metrics.json").read_text(encoding="utf-8"))
    assert base["provenance"]["checkpoint"] == "assets/tiny_qwen3_vl"


def test_the_same_answers_batched_or_alone_and_twice(run, evaluated, tmp_path):
    """Decoding is greedy, so a second evaluation with batch size 1 gives the same text. Left padding changes float32 logits by
    about 1e-5, so a tie could flip; none does on these images."""
    out = tmp_path / "alone"
    evaluate.main(["--ckpt", str(run / "final"), "--out", str(out), "--max-new-tokens", "20", "--batch-size", "1"])
    again = read_lines(out / "predictions.jsonl")
    first = read_lines(evaluated / "predictions.jsonl")
    assert [p["text"] for p in again] == [p["text"] for p in first]


def test_questions_about_absent_classes_are_counted(run, squares, tmp_path, capsys):
    """Every image with red squares lacks blue ones or the other way round, or has both, or lacks both."""
    words = ["--ckpt", str(run / "final"), "--out", str(tmp_path), "--max-new-tokens", "20", "--absent"]
    evaluate.main(words)
    records = read_records(squares, "test")
    expected = {
        (f"{record['id']}/{name}", f"<image>Detect every {name} in the image.")
        for record in records
        for name in ("red square", "blue square")
        if name not in record["objects"]["category"]
    }
    predictions = read_lines(tmp_path / "absent" / "predictions.jsonl")
    assert {prediction["id"] for prediction in predictions} == {identity for identity, _ in expected}
    with_boxes = sum(bool(prediction["objects"]["bbox"]) for prediction in predictions)
    absent = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["absent"]
    assert absent == {"asked": len(expected), "with_boxes": with_boxes, "rate": with_boxes / len(expected)}
    assert "questions about absent classes" in capsys.readouterr().out
    asked = absent_questions(records, ["red square", "blue square"], {})
    assert {(question["id"], first_question(question)) for question in asked} == expected


def test_at_most_three_absent_classes_of_an_image_are_asked_for_and_always_the_same():
    classes = ["cat", *"abcdefgh"]
    record = make_record("one", "one.png", 100, 80, [([0, 0, 9, 9], "cat")], classes=classes)
    first, again = (absent_questions([record], classes, {"a": "x"}) for _ in range(2))
    assert first == again and len({question["id"] for question in first}) == 3
    assert not any("cat" in first_question(question) for question in first)
    about_one = record | {"messages": turns_for(classes, "cat")}
    assert absent_questions([about_one], classes, {}) == []  # may contain objects of other classes


def write_predictions(path: Path, records, codec="qwen3_vl", change=None) -> list[dict]:
    """Write a perfect response to every record, or what `change` makes of it."""
    lines = []
    for record in records:
        size = (record["height"], record["width"])
        text = CODECS[codec].encode(record["objects"]["bbox"], record["objects"]["category"], size, (280, 280)).text
        lines.append(make_prediction(record, codec, (280, 280), change(record, text) if change else text, 0.1))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return lines


def test_a_question_about_one_class_is_scored_on_that_class(squares, tmp_path):
    """The blue squares are no false negatives of a perfect response to "Detect every red square"."""
    records = [record for record in read_records(squares, "test") if len(record["objects"]["bbox"]) == 2]
    asked = [
        record
        | {
            "messages": [
                {"role": "user", "content": "<image>Detect every red square in the image."},
                {"role": "assistant", "content": "<boxes:red square>"},
            ]
        }
        for record in records
    ]
    data = tmp_path / "data"
    classes = ["red square", "blue square"]
    write_dataset(data, name="x", source_format="test", classes=classes, splits={"test": asked}, problems=[])
    write_predictions(tmp_path / "p.jsonl", [as_asked(record) for record in asked])
    evaluate.main(["--predictions", str(tmp_path / "p.jsonl"), "--data", str(data)])
    matching = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["matching"]
    assert (matching["tp"], matching["fp"], matching["fn"]) == (len(records), 0, 0)


def test_scoring_again_keeps_the_evaluation_of_the_checkpoint(evaluated, squares, tmp_path, capsys):
    folder = shutil.copytree(evaluated, tmp_path / "eval")
    before = (folder / "metrics.json").read_bytes(), (folder / "report.html").read_bytes()
    words = ["--predictions", str(folder / "predictions.jsonl"), "--data", str(squares), "--reparse"]
    evaluate.main(words)
    assert ((folder / "metrics.json").read_bytes(), (folder / "report.html").read_bytes()) == before
    assert str(folder / "rescored" / "metrics.json") in capsys.readouterr().out.replace("\n", "")
    provenance = json.loads((folder / "rescored" / "metrics.json").read_text(encoding="utf-8"))["provenance"]
    assert provenance["reparse"] is True and provenance["score"] is None

    (folder / "metrics.json").write_text("{}")  # some other program's
    with pytest.raises(SystemExit) as stop:
        evaluate.main(words)
    assert stop.value.code == 2
    assert "--out DIR" in capsys.readouterr().err


def test_a_response_cut_by_the_token_limit_is_truncated_even_if_it_looks_complete(evaluated, squares, tmp_path):
    predictions = read_lines(evaluated / "predictions.jsonl")
    cut = [p for p in predictions if "truncated" in p["problems"]]
    assert cut, "twenty tokens are too few for an object and the end token"
    out = tmp_path / "again"
    paths = ["--predictions", str(evaluated / "predictions.jsonl"), "--data", str(squares), "--out", str(out)]
    evaluate.main([*paths, "--reparse"])
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["parse"]["problems"]["truncated"] == len(cut)


def test_perfect_predictions_score_one_without_torch(squares, tmp_path):
    write_predictions(tmp_path / "predictions.jsonl", read_records(squares, "test"))
    program = (
        "import sys, evaluate; evaluate.main(sys.argv[1:]); "
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules), 'scoring loaded a model library'"
    )
    command = [
        sys.executable,
        "-c",
        program,
        "--predictions",
        str(tmp_path / "predictions.jsonl"),
        "--data",
        str(squares),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["AP50"] == 1
    assert metrics["matching"]["f1"] == 1
    assert metrics["empty_images"] == {"images": 2, "with_false_positives": 0}


def test_rescoring_gives_the_same_numbers_to_the_last_digit(evaluated, squares, tmp_path):
    for extra in ([], ["--reparse"]):
        out = tmp_path / f"again{len(extra)}"
        predictions = str(evaluated / "predictions.jsonl")
        evaluate.main(["--predictions", predictions, "--data", str(squares), "--out", str(out), *extra])
        first = json.loads((evaluated / "metrics.json").read_text(encoding="utf-8"))
        again = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        assert {k: v for k, v in again.items() if k != "provenance"} == {
            k: v for k, v in first.items() if k != "provenance"
        }


def test_stdout_holds_only_json_and_another_scorer_ranks_the_same_boxes(evaluated, squares, tmp_path, capfd):
    words = ["--predictions", str(evaluated / "predictions.jsonl"), "--data", str(squares), "--out", str(tmp_path)]
    evaluate.main([*words, "--json"])
    ((name, metrics),) = json.loads(capfd.readouterr().out).items()
    assert name == "eval" and metrics == json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    evaluate.main([*words, "--json", "--score", "label"])
    other = json.loads(capfd.readouterr().out)[name]
    assert other["matching"] == metrics["matching"] and other["score_source"] == "label"


def test_a_scorer_without_a_column_in_the_predictions_is_refused(squares, tmp_path, capsys):
    write_predictions(tmp_path / "p.jsonl", read_records(squares, "test"))
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--predictions", str(tmp_path / "p.jsonl"), "--data", str(squares), "--score", "label"])
    assert stop.value.code == 2 and "have no column score_label" in capsys.readouterr().err


def test_scoring_needs_no_images(squares, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(squares, data)
    for split in ("train", "validation", "test"):
        path = data / f"{split}.jsonl"
        path.write_text(path.read_text(encoding="utf-8").replace(".png", ".gone"), encoding="utf-8")
    write_predictions(tmp_path / "p.jsonl", read_records(data, "test"))
    evaluate.main(["--predictions", str(tmp_path / "p.jsonl"), "--data", str(data), "--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))["AP50"] == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: lines[1:], "no prediction"),
        (lambda lines: [*lines, lines[0] | {"id": "stranger"}], "stranger"),
        (lambda lines: [*lines, lines[0]], "duplicate id"),
    ],
)
def test_foreign_duplicate_and_missing_ids_are_errors(squares, tmp_path, capsys, damage, message):
    lines = write_predictions(tmp_path / "p.jsonl", read_records(squares, "test"))
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in damage(lines)), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        evaluate.main(
            ["--predictions", str(tmp_path / "p.jsonl"), "--data", str(squares), "--out", str(tmp_path / "o")]
        )
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_allow_missing_counts_an_empty_response(squares, tmp_path, capsys):
    lines = write_predictions(tmp_path / "p.jsonl", read_records(squares, "test"))
    kept = [line for line in lines if line["objects"]["bbox"]][1:]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    evaluate.main(["--predictions", str(tmp_path / "p.jsonl"), "--data", str(squares), "--allow-missing"])
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["matching"]["fn"] >= 1
    assert metrics["parse"]["problems"]["missing"] == len(lines) - len(kept)
    assert "count as empty" in capsys.readouterr().err


def test_the_split_falls_back_to_validation_and_says_so(squares, tmp_path, capsys):
    records = {split: read_records(squares, split) for split in ("train", "validation")}
    data = tmp_path / "data"
    write_dataset(data, name="x", source_format="test", classes=["red square"], splits=records, problems=[])
    write_predictions(tmp_path / "p.jsonl", records["validation"])
    evaluate.main(["--predictions", str(tmp_path / "p.jsonl"), "--data", str(data)])
    assert "no test split; evaluating on validation" in capsys.readouterr().err
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["provenance"]["split"] == "validation"


def test_images_without_ground_truth(run, squares, tmp_path, capsys):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (120, 90), "white").save(folder / "a.png")
    Image.new("L", (90, 120), 7).save(folder / "sub" / "a.jpg")
    (folder / "notes.txt").write_text("not an image")
    common = ["--ckpt", str(run / "final"), "--images", str(folder), "--max-new-tokens", "20"]
    evaluate.main([*common, "--out", str(tmp_path / "out")])
    assert [p["id"] for p in read_lines(tmp_path / "out" / "predictions.jsonl")] == ["a.png", "sub/a.jpg"]
    assert (tmp_path / "out" / "pictures" / "a.png.jpg").is_file()
    assert (tmp_path / "out" / "pictures" / "sub" / "a.jpg.jpg").is_file()
    assert not (tmp_path / "out" / "metrics.json").exists()
    (folder / "corrupt.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(SystemExit) as stop:
        evaluate.main([*common, "--out", str(tmp_path / "out2")])
    assert stop.value.code == 2
    assert "corrupt.jpg" in capsys.readouterr().err


def test_a_run_saves_its_image_sizes_and_exports_its_detections(run, squares, tmp_path, capsys):
    sizes = [(record["width"], record["height"]) for record in read_records(squares, "train")]
    least, most = Grounding.load(run / "final").seen_pixels
    assert min(w * h for w, h in sizes) < least < most < max(w * h for w, h in sizes)
    Image.new("RGB", (2000, 1500), "white").save(tmp_path / "photo.png")
    common = ["--ckpt", str(run / "final"), "--max-new-tokens", "20", "--skip-bad-images", "--export", "coco,yolo"]
    evaluate.main([*common, "--images", str(tmp_path / "photo.png"), "--out", str(tmp_path / "out")])
    assert "1 of 1 images are unlike those of training" in capsys.readouterr().err
    assert (tmp_path / "out" / "yolo" / "labels" / "photo.png.txt").is_file()
    assert isinstance(json.loads((tmp_path / "out" / "coco_results.json").read_text()), list)


def test_a_question_never_trained_on_is_named(run, squares, tmp_path, capsys):
    records = read_records(squares, "test")[:1]
    records[0]["messages"][0]["content"] = "<image>Where is Waldo?"
    data = tmp_path / "data"
    write_dataset(data, name="x", source_format="test", classes=["red square"], splits={"test": records}, problems=[])
    common = ["--ckpt", str(run / "final"), "--data", str(data), "--out", str(tmp_path / "o"), "--max-new-tokens", "5"]
    evaluate.main(common)
    assert "never trained on" in capsys.readouterr().err


def test_a_click_checkpoint_answers_in_points(squares, tmp_path, capsys):
    run = train(squares, tmp_path / "run", "--answer", "click")
    evaluate.main(["--ckpt", str(run / "final"), "--max-new-tokens", "20"])
    metrics = json.loads((run / "eval" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["AP"] is None
    assert metrics["points"]["fn"] == 6
    assert all("point" in p["objects"] for p in read_lines(run / "eval" / "predictions.jsonl"))
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--ckpt", str(run / "final"), "--export", "coco", "--out", str(tmp_path / "out")])
    assert stop.value.code == 2 and "no boxes to export" in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "the error must come before anything is generated"


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("adapter_model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:1000]), "cannot be read"),
        ("adapter_model.safetensors", lambda path: path.unlink(), "no adapter weights"),
        ("adapter_config.json", lambda path: path.write_text("{"), "cannot be read"),
        ("grounding.json", lambda path: path.write_text("{"), "cannot be read"),
        ("grounding.json", lambda path: path.unlink(), "no grounding.json"),
        ("tokenizer.json", lambda path: path.write_text("{"), "processor"),
        ("tokenizer_config.json", lambda path: path.write_text("{}"), "the tokenizer has no pad_token"),
        ("chat_template.jinja", lambda path: path.write_text("{% if %}"), "chat template .* is corrupt"),
        ("chat_template.jinja", lambda path: path.write_text("Hello"), "the chat template renders .* as 'Hello'"),
    ],
)
def test_a_corrupt_checkpoint_is_one_message(run, tmp_path, capsys, name, damage, message):
    copy = tmp_path / "final"
    shutil.copytree(run / "final", copy)
    damage(copy / name)
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--ckpt", str(copy), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error), error


def test_the_message_about_a_run_folder_names_its_checkpoint(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--ckpt", str(run), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert f"Did you mean {run / 'final'}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda key, tensor: {key.replace("language_model", "model"): tensor},
            "weights of the adapter in .* are unusable",
        ),
        (lambda key, tensor: {} if "layers.1" in key else {key: tensor}, ": missing"),
        (lambda key, tensor: {key: tensor * float("nan")}, ": not finite"),
        (lambda key, tensor: {key: tensor[:-1].contiguous()}, "cannot be read: .*size mismatch"),
    ],
)
def test_an_incomplete_adapter_is_not_evaluated(run, tmp_path, capsys, change, message):
    """peft only warns about such weights, and the model responds like its base."""
    copy = tmp_path / "final"
    shutil.copytree(run / "final", copy)
    weights = load_file(copy / "adapter_model.safetensors")
    changed = [change(key, tensor) for key, tensor in weights.items()]
    save_file({key: tensor for part in changed for key, tensor in part.items()}, copy / "adapter_model.safetensors")
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--ckpt", str(copy), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err, re.DOTALL)
    assert not (tmp_path / "out").exists()


def test_every_wrong_field_of_grounding_json_is_named(run, tmp_path):
    values = json.loads((run / "final" / "grounding.json").read_text())
    values |= {"codec": "morse", "max_new_tokens": 0, "min_pixels": "few", "questions": None, "base_precision": "int3"}
    (tmp_path / "grounding.json").write_text(json.dumps(values))
    with pytest.raises(UserError) as error:
        Grounding.load(tmp_path)
    named = [problem.split(":")[0] for problem in error.value.problems]
    assert sorted(named) == ["base_precision", "codec", "max_new_tokens", "min_pixels", "questions"]


def test_the_predictions_of_a_run_are_scored_without_naming_their_dataset(evaluated, tmp_path, capsys):
    evaluate.main(["--predictions", str(evaluated), "--out", str(tmp_path), "--json"])
    again, before = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, evaluated))
    assert again["matching"] == before["matching"] and again["provenance"]["data"] == before["provenance"]["data"]
    shutil.copy(evaluated / "predictions.jsonl", tmp_path / "alone.jsonl")
    (tmp_path / "metrics.json").unlink()
    capsys.readouterr()
    for words, message in (
        ((str(tmp_path / "alone.jsonl"),), "to name their dataset; give --data DIR"),
        (
            (str(tmp_path / "nowhere"),),
            "nowhere': no such file or folder. To create predictions: evaluate.py --ckpt DIR",
        ),
        (
            (str(evaluated), "--split", "train"),
            "none of the 6 predictions belongs to this split. Check --data and --split",
        ),
    ):
        with pytest.raises(SystemExit) as stop:
            evaluate.main(["--predictions", *words])
        assert stop.value.code == 2
        assert message in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_an_interrupted_evaluation_continues(run, squares, tmp_path, monkeypatch):
    """Predictions already written are not generated again, unless an image file changed since."""
    out = tmp_path / "out"
    common = ["--ckpt", str(run / "final"), "--out", str(out), "--max-new-tokens", "10", "--batch-size", "2"]
    from boxtune.inference import detector

    honest = detector.generate_answers
    asked = []

    def watched(model, collator, records, batch_size):
        asked.append([record["id"] for record in records])
        for i, row in enumerate(honest(model, collator, records, batch_size)):
            if len(asked) == 1 and i == 3:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(detector, "generate_answers", watched)
    data = shutil.copytree(squares, tmp_path / "data")
    common += ["--data", str(data)]
    with pytest.raises(SystemExit) as stop:
        evaluate.main(common)
    assert stop.value.code == 130
    assert (out / "predictions.jsonl.partial").is_file()
    assert not (out / "predictions.jsonl").exists()
    evaluate.main(common)
    assert [len(ids) for ids in asked] == [6, 3]
    assert len(read_lines(out / "predictions.jsonl")) == 6
    asked.clear()
    with pytest.raises(SystemExit):
        evaluate.main(common)
    image_file = data / read_records(data, "test")[-1]["image"]
    os.utime(image_file, (1, 1))
    evaluate.main(common)
    assert [len(ids) for ids in asked] == [6, 6]


def test_an_interruption_in_the_adapters_responses_does_not_repeat_the_bases(run, tmp_path, monkeypatch):
    from boxtune.inference import detector

    honest, asked = detector.generate_answers, []

    def watched(model, collator, records, batch_size):
        asked.append(len(records))
        for i, row in enumerate(honest(model, collator, records, batch_size)):
            if len(asked) == 2 and i == 3:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(detector, "generate_answers", watched)
    out = tmp_path / "out"
    common = ["--base", "--out", str(out), "--max-new-tokens", "10"]
    with pytest.raises(SystemExit):
        evaluate.main(["--ckpt", str(run / "final"), "--batch-size", "2", *common])
    evaluate.main(
        ["--ckpt", f"{run / 'final'}/", "--batch-size", "3", *common]
    )  # another spelling of the path, and another batch size
    assert asked == [6, 6, 0, 3]
    assert not list(out.rglob("*.partial"))
