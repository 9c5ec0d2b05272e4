"""Exported predictions, read by the tools that they are for or by the rules of their formats."""

import contextlib
import csv
import errno
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import evaluate
from boxtune.answers.predictions import make_prediction
from boxtune.common.errors import UserError
from boxtune.data.dataset import read_info, read_records, write_dataset
from boxtune.data.record_checks import record_problems
from boxtune.metrics.scoring import score
from boxtune.reports.exports import check_exports, export_predictions, write_yolo
from data_prep.__main__ import main as data_prep
from data_prep.tools.export_detectors import coco_annotations
from tests.helpers.records import make_record
from tests.helpers.scoring import a_prediction

CLASSES = ["cat", "dog", "owl"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """(prepared data, predictions.jsonl): 12 images with noisy boxes, scores, unknown labels and ignored ground truth."""
    folder, draw = tmp_path_factory.mktemp("scored"), np.random.default_rng(0)
    records, lines = [], []
    for i in range(12):
        objects, found = [], []
        for _ in range(i % 5 * 2):
            x, y, w, h = (int(value) for value in draw.integers((0, 0, 20, 20), (300, 200, 200, 150)))
            objects.append(([x, y, x + w + 0.25, y + h], CLASSES[draw.integers(3)]))
            noise = draw.normal(0, 8, 4).round(3)
            found.append([max(0.0, x + noise[0]), max(0.0, y + noise[1]), x + w + noise[2], y + h + noise[3]])
        # Ids that need escaping in file names, not in alphabetical order.
        name = f"{'sub/' if i % 2 else ''}image{20 - i}{'.png' if i == 4 else ''}"
        record = make_record(name, str(folder / f"{i}.png"), 640, 480, objects, classes=CLASSES)
        if len(objects) > 3:
            record["objects"]["ignore"][0] = True
        if i % 3:  # areas of masks, which decide the sizes in place of the boxes' areas
            record["objects"]["area"] = [None, *draw.uniform(0, 15_000, max(len(objects) - 1, 0)).tolist()][
                : len(objects)
            ]
        records.append(record)
        labels = [label for _, label in objects] + ["unicorn"]
        found.append([10.0, 10.0, 60.0, 70.0])
        line = make_prediction(record, "qwen3_vl", (320, 320), "[]", 0.1)
        scores = draw.random(len(found)).round(6).tolist()
        line["objects"] = {"bbox": found, "category": labels, "score": scores} if i % 4 else line["objects"]
        lines.append(line)
    write_dataset(
        folder / "data", name="d", source_format="t", classes=CLASSES, splits={"validation": records}, problems=[]
    )
    path = folder / "predictions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "data", path


def export(scored, out, kinds: str) -> dict:
    data, predictions = scored
    words = ["--predictions", predictions, "--data", data, "--split", "validation", "--out", out, "--export", kinds]
    evaluate.main(list(map(str, words)))
    return json.loads((out / "metrics.json").read_text())


def test_pycocotools_gives_the_coco_files_the_scores_of_evaluate(scored, tmp_path, capsys):
    from PIL import Image

    metrics = export(scored, tmp_path, "coco")
    for record in read_records(scored[0], "validation"):
        Image.new("RGB", (640, 480)).save(record["image"])
    data_prep(["export", str(scored[0]), "--export", "coco", "--out", str(tmp_path / "truth")])
    truth = COCO(str(tmp_path / "truth" / "annotations" / "instances_val.json"))
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "coco_results.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert 0.1 < metrics["AP"] < 0.9, "neither perfect nor hopeless"
    assert our_ap(metrics) == pytest.approx(evaluation.stats[:6].tolist(), abs=1e-9)
    assert metrics["AR100"] == pytest.approx(evaluation.stats[8], abs=1e-9)
    printed, error = capsys.readouterr()
    assert str(tmp_path / "coco_results.json") in printed + error
    assert f"{metrics['unknown_label_boxes']} boxes are left out" in error and "'unicorn'" in error


def pycocotools_ap(records: list[dict], folder: Path) -> list[float]:
    """AP, AP50, AP75 and AP by size by pycocotools, from the two exports, written as files."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = json.loads(
            json.dumps(
                {
                    "images": [{"id": number} for number in range(1, len(records) + 1)],
                    "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)],
                    "annotations": coco_annotations(records, CLASSES),
                }
            )
        )
        gt.createIndex()
        evaluation = COCOeval(gt, gt.loadRes(str(folder / "coco_results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:6].tolist()


def our_ap(metrics: dict) -> list[float]:
    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
    return [-1 if metrics[name] is None else metrics[name] for name in names]


def test_a_tie_at_an_iou_threshold_scores_the_same_in_pycocotools(tmp_path):
    """The IoU is 0.6 but for rounding: 27.24 and 148.64 − 121.4 are different floats."""
    record = make_record("a", "a.jpg", 1000, 1000, [([539.09, 121.4, 543.09, 148.64], "cat")])
    prediction = a_prediction(boxes=[[540.09, 121.4, 544.09, 148.64]])
    export_predictions(["coco"], tmp_path, [record], [prediction], CLASSES, "test", tmp_path)
    metrics = score([record], [prediction], CLASSES)
    assert metrics["AP"] == pytest.approx(0.3, abs=1e-9)
    assert our_ap(metrics) == pytest.approx(pycocotools_ap([record], tmp_path), abs=1e-9)


# A box that is moved by these fractions of its width has an IoU of 1, 0.5, 0.6, 0.75, 0.8, 0.9 or 0.95, but for rounding: it
# ties with a threshold. The sides are close to COCO's sizes of 32² and 96².
SHIFTS = st.sampled_from([0, 1 / 3, 1 / 4, 1 / 7, 1 / 9, 1 / 19, 1 / 39])
PREDICTED = st.tuples(SHIFTS, st.sampled_from([0.1, 1 / 3, 0.9]))
SIDES = st.sampled_from([4, 27.24, 32, 32.001, 95.9999, 96, 200 / 3])
PLACES = st.one_of(st.integers(0, 99_999).map(lambda i: i / 100), st.floats(0, 999))
AREAS = st.one_of(st.none(), st.sampled_from([0, 1024, 9216.5]), st.floats(0, 2e4))
OBJECTS = st.tuples(
    *(PLACES, PLACES, SIDES, SIDES, st.sampled_from(CLASSES), AREAS, st.sampled_from([False, False, True])),
    st.lists(PREDICTED, max_size=2),
)
IMAGES = st.lists(OBJECTS, min_size=1, max_size=6)


@given(images=st.lists(IMAGES, min_size=1, max_size=3), stray=st.tuples(PLACES, PLACES, SIDES, SIDES))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pycocotools_gives_the_exports_of_any_data_the_scores_of_metrics_json(tmp_path, images, stray):
    records, predictions = [], []
    for number, objects in enumerate(images):
        columns, boxes, labels, scores = {"bbox": [], "category": [], "ignore": [], "area": []}, [], [], []
        for x, y, width, height, label, area, ignored, predicted in objects:
            row = [x, y, x + width, y + height], label, ignored, area
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
            for shift, confidence in predicted:
                boxes.append([x + shift * width, y, x + shift * width + width, y + height])
                labels.append(label)
                scores.append(confidence)
        records.append(make_record(str(number), "a.jpg", 2000, 2000, []) | {"objects": columns})
        assert record_problems(records[-1]) == []
        x, y, width, height = stray
        boxes.append([x, y, x + width, y + height])
        predictions.append(a_prediction(str(number), boxes, [*labels, "cat"], [*scores, 0.5]))
    export_predictions(["coco"], tmp_path, records, predictions, CLASSES, "test", tmp_path)
    metrics = score(records, predictions, CLASSES)
    assert our_ap(metrics) == pytest.approx(pycocotools_ap(records, tmp_path), abs=1e-9)


def test_results_without_detections_are_named_because_pycocotools_cannot_load_them(tmp_path):
    record = make_record("a", "a.jpg", 100, 100, [([1, 2, 30, 40], "cat")])
    gt = COCO()
    gt.dataset = {"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": []}
    gt.createIndex()
    unknown = a_prediction(boxes=[[1, 2, 30, 40]], labels=["unicorn"])
    for prediction, is_warned in ((a_prediction(), True), (unknown, True), (a_prediction(boxes=[[1, 2, 3, 4]]), False)):
        messages = export_predictions(["coco"], tmp_path, [record], [prediction], CLASSES, "test", tmp_path)
        assert any("holds no detections" in message and "loadRes" in message for message in messages) == is_warned
        if is_warned:
            assert (tmp_path / "coco_results.json").read_text() == "[]\n"
            with pytest.raises(IndexError):
                gt.loadRes(str(tmp_path / "coco_results.json"))
    assert not any(
        "detections" in m
        for m in export_predictions(["yolo"], tmp_path, [record], [a_prediction()], CLASSES, "test", tmp_path)
    )


def test_yolo_files_and_classes_have_the_names_of_the_dataset_export(scored, tmp_path):
    from PIL import Image

    export(scored, tmp_path, "yolo")
    records = read_records(scored[0], "validation")
    for record in records:
        Image.new("RGB", (640, 480)).save(record["image"])
    data_prep(["export", str(scored[0]), "--export", "yolo", "--out", str(tmp_path / "truth")])
    names = sorted(path.name for path in (tmp_path / "yolo" / "labels" / "val").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "truth" / "labels" / "val").iterdir())
    assert (tmp_path / "yolo" / "classes.txt").read_text().split() == CLASSES
    lines = {line["id"]: line for line in map(json.loads, scored[1].read_text().splitlines())}
    empty = 0
    for record in records:
        path = tmp_path / "yolo" / "labels" / "val" / f"{record['id'].replace('/', '%2F')}.txt"
        objects = lines[record["id"]]["objects"]
        known = [i for i, label in enumerate(objects["category"]) if label in CLASSES]
        rows = [line.split() for line in path.read_text().splitlines()]
        empty += not rows
        assert [CLASSES[int(row[0])] for row in rows] == [objects["category"][i] for i in known]
        for row, i in zip(rows, known, strict=True):
            cx, cy, w, h, confidence = map(float, row[1:])
            box = [(cx - w / 2) * 640, (cy - h / 2) * 480, (cx + w / 2) * 640, (cy + h / 2) * 480]
            assert box == pytest.approx(objects["bbox"][i], abs=1e-5) and confidence == objects["score"][i]
    assert empty, "an empty prediction gives an empty file"


def test_supervision_files_have_the_arrays_of_detections_and_the_columns_of_csvsink(scored, tmp_path):
    export(scored, tmp_path, "supervision")
    images = json.loads((tmp_path / "supervision.json").read_text())["images"]
    records = read_records(scored[0], "validation")
    assert [image["id"] for image in images] == [record["id"] for record in records]
    assert any(not image["xyxy"] for image in images)
    for image in images:
        columns = [image[key] for key in ("xyxy", "confidence", "class_id", "class_name")]
        assert np.array(columns[0]).reshape(-1, 4).shape == (len(columns[1]), 4)
        assert [CLASSES[number] for number in columns[2]] == columns[3]
    with open(tmp_path / "supervision.csv", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    # The columns that CSVSink of supervision 0.31 writes, with class_name in detections.data and image in custom_data.
    head = "x_min,y_min,x_max,y_max,class_id,confidence,tracker_id,class_name,image"
    assert ",".join(reader.fieldnames) == head
    flat = [(image["id"], *box) for image in images for box in image["xyxy"]]
    assert [(row["image"], *(float(row[key]) for key in reader.fieldnames[:4])) for row in rows] == flat


def test_a_second_export_replaces_the_first_and_nothing_else(scored, tmp_path, capsys):
    export(scored, tmp_path, "yolo,coco")
    stale = tmp_path / "yolo" / "labels" / "val" / "stale.txt"
    stale.write_text("0 0.5 0.5 1 1 1\n")
    export(scored, tmp_path, "yolo")
    assert not stale.exists()
    (tmp_path / "yolo" / "data.yaml").write_text("my own dataset")
    with pytest.raises(SystemExit) as stop:
        export(scored, tmp_path, "yolo")
    assert stop.value.code == 2 and "data.yaml" in capsys.readouterr().err
    assert (tmp_path / "yolo" / "data.yaml").read_text() == "my own dataset"


def test_an_interrupted_export_keeps_the_earlier_one(scored, tmp_path, monkeypatch):
    export(scored, tmp_path, "yolo")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write, written = Path.write_text, []

    def full(path, *args, **kwargs):
        written.append(path)
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_yolo(tmp_path, read_records(scored[0], "validation"), [[]] * 12, CLASSES, "validation")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_yolo_files_without_scores_are_annotations_and_are_kept(tmp_path):
    own = tmp_path / "yolo" / "labels" / "train" / "mine.txt"
    own.parent.mkdir(parents=True)
    own.write_text("0 0.5 0.5 1 1\n")
    with pytest.raises(UserError, match=r"mine\.txt is not part of an earlier export"):
        check_exports(["yolo"], tmp_path, click=False, records=[])


def test_a_file_at_the_place_of_the_export_is_reported_before_anything_is_generated(tmp_path):
    (tmp_path / "yolo").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="is not a folder"):
        check_exports(["yolo"], tmp_path, click=False, records=[])
    check_exports(["coco"], tmp_path, click=False, records=[])


def test_ids_too_long_for_a_file_name_are_listed_before_anything_is_generated(tmp_path):
    """Folder names count too, because YOLO files are in one folder; ü has two bytes."""
    ids = ["a" * 251, "a" * 252, f"{'ü' * 60}/{'ü' * 66}", f"{'ü' * 60}/{'ü' * 64}"]
    with pytest.raises(UserError) as error:
        check_exports(["yolo"], tmp_path, click=False, records=[{"id": name} for name in ids])
    assert error.value.problems == ids[1:3]
    check_exports(["coco"], tmp_path, click=False, records=[{"id": ids[1]}])


def test_points_and_unknown_formats_are_rejected(scored, tmp_path, capsys):
    records = read_records(scored[0], "validation")
    lines = [make_prediction(record, "qwen3_vl_click", (320, 320), "None", 0.1) for record in records]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for kinds, message in (
        ("coco", "no boxes to export"),
        ("coco,xml", "choose from coco, yolo, supervision, labelstudio, fiftyone"),
    ):
        with pytest.raises(SystemExit) as stop:
            export((scored[0], tmp_path / "p.jsonl"), tmp_path / "out", kinds)
        assert stop.value.code == 2 and message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_question_about_one_class_gives_a_warning_because_other_tools_count_all_classes(scored, tmp_path, capsys):
    records = read_records(scored[0], "validation")
    records[0]["messages"][1]["content"] = "<boxes:cat>"
    write_dataset(
        tmp_path / "data", name="d", source_format="t", classes=CLASSES, splits={"validation": records}, problems=[]
    )
    export((tmp_path / "data", scored[1]), tmp_path / "out", "coco")
    assert "1 questions ask for part of the classes" in capsys.readouterr().err


def test_label_studio_starts_from_the_predictions_and_they_can_be_converted_back(scored, tmp_path):
    from PIL import Image

    export(scored, tmp_path / "out", "labelstudio")
    folder = tmp_path / "out" / "labelstudio"
    tasks = json.loads((folder / "tasks.json").read_text())
    lines = {line["id"]: line for line in map(json.loads, scored[1].read_text().splitlines())}
    assert [task["data"]["boxtune_id"] for task in tasks] == list(lines)
    root = scored[0].parents[1]  # the parent of the folder that holds the images
    assert f"DOCUMENT_ROOT={root}" in (folder / "README.txt").read_text()
    assert "unicorn" not in (folder / "label_config.xml").read_text()
    for number, task in enumerate(tasks):
        Image.new("L", (640, 480), number).save(scored[0].parent / f"{number}.png")
        assert task["annotations"] == [] and task["data"]["image"].endswith(f"{scored[0].parent.name}/{number}.png")
        task["annotations"] = [{"result": task["predictions"][0]["result"]}]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    data_prep(["labelstudio", str(tmp_path / "export.json"), "--images", str(root), "--out", str(tmp_path / "back")])
    splits = read_info(tmp_path / "back")["splits"]
    records = [record for split in splits for record in read_records(tmp_path / "back", split)]
    assert {record["id"] for record in records} == set(lines) and len(records) == 12
    back = {Path(record["image"]).stem: record["objects"] for record in records}
    for number, line in enumerate(lines.values()):
        known = [
            (label, np.clip(box, 0, [640, 480, 640, 480]))
            for label, box in zip(line["objects"]["category"], line["objects"]["bbox"], strict=True)
            if label in CLASSES
        ]
        objects = back[str(number)]
        assert objects["category"] == [label for label, _ in known]
        for box, (_, expected) in zip(objects["bbox"], known, strict=True):
            assert box == pytest.approx(expected, abs=1e-6)


def test_fiftyone_gets_predictions_and_ground_truth_in_fractions(scored, tmp_path):
    export(scored, tmp_path, "fiftyone")
    dataset = json.loads((tmp_path / "fiftyone.json").read_text())
    records = list(read_records(scored[0], "validation"))
    lines = [json.loads(line) for line in scored[1].read_text().splitlines()]
    assert dataset["default_classes"] == CLASSES and dataset["media_type"] == "image"
    detections = "fiftyone.core.fields.EmbeddedDocumentField(fiftyone.core.labels.Detections)"
    assert dataset["sample_fields"]["predictions"] == dataset["sample_fields"]["ground_truth"] == detections
    side = np.array([640, 480, 640, 480])
    for sample, record, line in zip(dataset["samples"], records, lines, strict=True):
        assert Path(sample["filepath"]) == scored[0].parent / Path(record["image"]).name
        assert (sample["record_id"], sample["tags"]) == (record["id"], ["validation"])
        truth, found = sample["ground_truth"]["detections"], sample["predictions"]["detections"]
        assert [entry["label"] for entry in truth] == record["objects"]["category"]
        assert [entry["iscrowd"] for entry in truth] == [int(ignore) for ignore in record["objects"]["ignore"]]
        known = [i for i, label in enumerate(line["objects"]["category"]) if label in CLASSES]
        assert [entry["confidence"] for entry in found] == [line["objects"]["score"][i] for i in known]
        for entry, i in zip(found, known, strict=True):
            x0, y0, x1, y1 = line["objects"]["bbox"][i]
            assert np.array(entry["bounding_box"]) * side == pytest.approx(np.array([x0, y0, x1 - x0, y1 - y0]))
            assert entry["_cls"] == "Detection"


def test_images_without_ground_truth_have_none_in_fiftyone(tmp_path):
    record = make_record("a", str(tmp_path / "a.png"), 640, 480, [], classes=CLASSES)
    export_predictions(["fiftyone"], tmp_path, [record], [a_prediction()], CLASSES, None, tmp_path)
    dataset = json.loads((tmp_path / "fiftyone.json").read_text())
    assert "ground_truth" not in dataset["sample_fields"] and "ground_truth" not in dataset["samples"][0]
