"""Detector and Detections: the same results as evaluate.py, every kind of input, and messages about unusable ones."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import boxtune
import evaluate
import merge_adapter
from boxtune import Detections, Detector
from boxtune.common.errors import UserError
from boxtune.data.dataset import read_records
from boxtune.models.checkpoint import load_checkpoint_model, open_checkpoint
from tests.helpers.records import ROOT
from tests.helpers.serving import Behaviour, lora_models, serving
from tests.helpers.stated import stated
from tests.helpers.training import train, tune

CLASSES = ["red square", "blue square"]


@pytest.fixture(scope="module")
def run(squares, tmp_path_factory) -> Path:
    return train(squares, tmp_path_factory.mktemp("run") / "run", "--learning_rate", "1e-3", "--lora_vision", "false")


@pytest.fixture(scope="module")
def detector(run) -> Detector:
    return Detector.from_pretrained(run / "final", max_new_tokens=64)


@pytest.fixture(scope="module")
def image_files(squares) -> list[Path]:
    return [Path(record["image"]) for record in read_records(squares, "test")]


def predictions_of(*words: str, out: Path) -> list[dict]:
    """What evaluate.py predicts for the test split."""
    evaluate.main(["--out", str(out), "--max-new-tokens", "64", *words])
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_same(detections: list[Detections], predictions: list[dict], score_tolerance: float = 0.0) -> None:
    assert any(prediction["objects"]["bbox"] for prediction in predictions), "without boxes there is nothing to compare"
    for found, prediction in zip(detections, predictions, strict=True):
        objects = prediction["objects"]
        assert found.text == prediction["text"] and found.problems == prediction["problems"]
        assert found.boxes_xyxy.tolist() == objects["bbox"] and found.labels == objects["category"]
        assert found.scores == pytest.approx(objects["score"], abs=score_tolerance)
        assert found.size == (prediction["width"], prediction["height"])


def same(a: Detections, b: Detections) -> bool:
    return a.text == b.text and a.labels == b.labels and np.array_equal(a.boxes_xyxy, b.boxes_xyxy)


def detections_of(objects: dict, problems=()) -> Detections:
    prediction = {"width": 640, "height": 480, "text": "…", "objects": objects, "problems": list(problems)}
    return Detections.from_prediction(prediction, ["cat", "dog"])


# ---- the package ---------------------------------------------------------------------------------------------------------


def test_the_package_exports_detector_detections_and_version_without_loading_torch():
    assert dir(boxtune) == sorted(boxtune.__all__) == ["Detections", "Detector", "__version__"]
    program = (
        "import sys, boxtune; dir(boxtune), boxtune.Detections, boxtune.__version__; "
        "assert not {'torch', 'transformers'} & set(sys.modules), 'a model library was loaded'"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    with pytest.raises(AttributeError, match="no attribute 'Model'"):
        boxtune.Model  # noqa: B018


# ---- the same results as evaluate.py -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_adapter_detects_what_evaluate_predicts(run, detector, image_files, tmp_path, batch_size):
    predictions = predictions_of("--ckpt", str(run / "final"), "--batch-size", str(batch_size), out=tmp_path)
    assert_same(detector(image_files, batch_size=batch_size), predictions)


def test_with_tiles_the_detector_evaluate_and_reparse_agree(run, detector, image_files, squares, tmp_path):
    """The tiles are those of the call, or of the checkpoint."""
    checkpoint = tmp_path / "final"
    shutil.copytree(run / "final", checkpoint)
    tune(checkpoint, tiles=120)
    predictions = predictions_of("--ckpt", str(checkpoint), "--limit", "3", out=tmp_path / "eval")
    assert any(prediction["objects"]["bbox"] for prediction in predictions)
    detections = detector(image_files[:3], tiles=120)
    for found, prediction in zip(detections, predictions, strict=True):
        assert found.text == "\n".join(part["text"] for part in prediction["parts"])
        assert found.boxes_xyxy.tolist() == prediction["objects"]["bbox"]
        assert found.scores.tolist() == prediction["objects"]["score"] and found.problems == prediction["problems"]

    words = ["--predictions", str(tmp_path / "eval" / "predictions.jsonl"), "--data", str(squares), "--allow-missing"]
    evaluate.main([*words, "--reparse", "--out", str(tmp_path / "again")])
    first, again = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("eval", "again"))
    assert again["parse"]["problems"].pop("missing") == 3
    assert again["parse"]["problems"] == first["parse"]["problems"]
    assert again["matching"]["tp"] == first["matching"]["tp"] and again["matching"]["fp"] == first["matching"]["fp"]


@pytest.mark.slow
def test_a_merged_model_detects_what_evaluate_predicts(run, image_files, tmp_path):
    merged = tmp_path / "merged"
    merge_adapter.main(["--ckpt", str(run / "final"), "--out", str(merged), "--samples", "1", "--skip-nf4"])
    predictions = predictions_of("--ckpt", str(merged), out=tmp_path / "eval")
    assert_same(Detector.from_pretrained(str(merged), max_new_tokens=64)(image_files), predictions)


def test_a_served_adapter_detects_what_evaluate_predicts_and_is_checked_once(run, image_files, tmp_path):
    checkpoint = open_checkpoint(str(run / "final"))
    behaviour = Behaviour(lora_models(run))
    with serving(behaviour, (load_checkpoint_model(checkpoint), checkpoint.processor)) as url:
        words = ["--ckpt", str(run / "final"), "--server", url, "--served-model", "tuned"]
        predictions = predictions_of(*words, out=tmp_path)
        served = Detector.from_pretrained(run / "final", server=url, served_model="tuned", max_new_tokens=64)
        assert_same(served(image_files, batch_size=2), predictions, score_tolerance=1e-3)
        checked = behaviour.asked.count("base")
        assert same(served(image_files[1]), served(image_files)[1])
        assert behaviour.asked.count("base") == checked > 0


def test_the_base_of_an_adapter_detects_what_evaluate_predicts_for_it(run, detector, image_files, tmp_path):
    predictions_of("--ckpt", str(run / "final"), "--base", out=tmp_path)
    base = [json.loads(line) for line in (tmp_path / "base" / "predictions.jsonl").read_text().splitlines()]
    with detector.without_adapter() as base_detector:
        assert_same(base_detector(image_files), base)


# ---- images --------------------------------------------------------------------------------------------------------------


def test_a_path_an_image_and_an_array_give_the_same(detector, image_files):
    file = image_files[1]
    with Image.open(file) as image:
        pixels = np.asarray(image)
        inputs = [str(file), file, image, pixels, np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])]
        detections = detector(inputs)
    assert len(detections) == 5 and all(same(found, detections[0]) for found in detections)
    assert same(detector(file), detections[0]) and same(detector((file,))[0], detections[0])
    assert detector([]) == []


def test_results_are_in_the_order_of_the_images(detector, image_files):
    forward, backward = detector(image_files, batch_size=2), detector(image_files[::-1], batch_size=2)
    assert all(same(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    assert len({found.size for found in forward}) > 1


def test_boxes_belong_to_the_upright_image(detector, image_files, tmp_path):
    """A quarter turn in EXIF, on disk and in memory, gives the same detections as an image that is stored upright."""
    with Image.open(image_files[1]) as image:
        upright = image.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to view
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        assert turned.size == upright.size[::-1]
        for found in detector([tmp_path / "turned.png", turned]):
            assert found.size == upright.size and same(found, detector(upright))


def test_16_bit_gray_and_transparency_are_read_as_in_training(detector, image_files, tmp_path):
    with Image.open(image_files[1]) as image:
        gray = np.asarray(image.convert("L"))
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    assert all(same(found, detector(gray)) for found in detector([tmp_path / "deep.png", deep]))
    clear = np.zeros((80, 120, 4), np.uint8)  # black, and fully transparent
    assert same(detector(clear), detector(Image.new("RGB", (120, 80), "white")))


def test_all_unusable_images_are_listed(detector, image_files, tmp_path):
    (tmp_path / "corrupt.jpg").write_bytes(b"\xff\xd8\xff")
    whole = image_files[0].read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with Image.open(tmp_path / "cut.png") as cut:
        bad = [
            (tmp_path / "corrupt.jpg", "corrupt.jpg"),
            (tmp_path / "gone.jpg", "gone.jpg"),
            (cut, "corrupt"),
            (np.zeros((8, 8, 3)), "float64 of shape (8, 8, 3)"),
            (np.zeros((2, 8, 8, 3), np.uint8), "uint8 of shape (2, 8, 8, 3)"),
            (np.zeros((0, 8), np.uint8), "shape (0, 8)"),
            (Image.new("RGB", (1000, 2)), "aspect ratio"),
            (7, "got int"),
        ]
        with pytest.raises(UserError, match=r"8 of 9 images cannot be used") as error:
            detector([image_files[0], *(image for image, _ in bad)])
    for i, (problem, (_, words)) in enumerate(zip(error.value.problems, bad, strict=True), 1):
        assert problem.startswith(f"images[{i}]: ") and words in problem
    with pytest.raises(UserError, match=r"images\[0\]: missing: nowhere.jpg"):
        detector("nowhere.jpg")


def test_an_image_file_that_changes_while_in_use_is_refused(detector, image_files, tmp_path, monkeypatch):
    file = tmp_path / "a.png"
    file.write_bytes(image_files[0].read_bytes())
    honest = detector.answer

    def replaced_before_use(*args, **options):
        Image.new("RGB", (77, 55)).save(file)
        return honest(*args, **options)

    monkeypatch.setattr(detector, "answer", replaced_before_use)
    with pytest.raises(UserError, match="changed while it was in use"):
        detector(file)


# ---- options -------------------------------------------------------------------------------------------------------------


def test_classes_of_the_call_are_asked_for_and_keep_the_ids_of_training(detector, image_files, monkeypatch):
    assert detector.classes == CLASSES
    asked = []
    honest = detector.answer

    def watched(records, *args, **options):
        asked.extend(record["messages"][0]["content"] for record in records)
        return honest(records, *args, **options)

    monkeypatch.setattr(detector, "answer", watched)
    assert detector(image_files[0], classes=["star", "blue square", "star"]).classes == [*CLASSES, "star"]
    assert asked == ["<image>Detect every star and blue square in the image."]


def test_a_threshold_drops_objects_of_lower_score(detector, image_files):
    everything = detector(image_files)
    scores = np.concatenate([found.scores for found in everything])
    threshold = float(np.median(scores))
    kept = detector(image_files, threshold=threshold)
    assert 0 < sum(map(len, kept)) == (scores >= threshold).sum() < len(scores)
    for all_of_it, part in zip(everything, kept, strict=True):
        assert part.boxes_xyxy.tolist() == all_of_it.boxes_xyxy[all_of_it.scores >= threshold].tolist()
        assert part.text == all_of_it.text


def test_decode_settings_of_a_call_come_before_those_of_the_checkpoint(run, image_files, tmp_path):
    checkpoint = tmp_path / "final"
    shutil.copytree(run / "final", checkpoint)
    plain = Detector.from_pretrained(checkpoint, max_new_tokens=64)(image_files)
    scores = np.concatenate([found.scores for found in plain])
    threshold = float(np.median(scores))
    tune(checkpoint, ask="each", score_threshold=threshold)
    tuned = Detector.from_pretrained(checkpoint, max_new_tokens=64)
    assert [same(a, b) for a, b in zip(tuned(image_files, ask="all", threshold=0), plain, strict=True)] == [True] * 6
    kept = tuned(image_files, ask="all")
    assert sum(map(len, kept)) == (scores >= threshold).sum() < len(scores)
    assert sum(found.problems.count("low_score") for found in kept) == (scores < threshold).sum()
    by_class = tuned(image_files[1], repetition_penalty=1.0, suppress_iou=1.0)
    parts = [tuned(image_files[1], classes=[name], threshold=0) for name in CLASSES]
    assert by_class.text == "\n".join(part.text for part in parts)
    assert len(by_class) == sum((part.scores >= threshold).sum() for part in parts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": []}, "no classes to ask for"),
        ({"classes": "cat"}, "must be a list of names, got the text 'cat'"),
        ({"classes": ["a\nb"]}, "cannot be asked for"),
        ({"threshold": 2}, "threshold must be from 0 to 1, got 2"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (
            {"repetition_penalty": 3, "ask": "some"},
            r"settings cannot be used:\n.*repetition_penalty: 3 .*\n.*ask: 'some'",
        ),
    ],
)
def test_options_of_a_call_are_checked(detector, image_files, options, message):
    with pytest.raises(UserError, match=message):
        detector(image_files[0], **options)


@pytest.mark.parametrize(
    ("options", "problems"),
    [
        ({"precision": "int3"}, ["precision must be one of nf4, bfloat16, float16, float32, got 'int3'"]),
        (
            {"max_pixels": 0, "max_new_tokens": -1},
            ["max_pixels must be at least 1", "max_new_tokens must be at least 1"],
        ),
        ({"served_model": "a", "trust_server": True}, ["served_model needs server", "trust_server needs server"]),
        (
            {"server": "localhost:8000", "device": "cpu", "precision": "nf4"},
            ["device has no effect with server", "precision has no effect with server", "server must start with http"],
        ),
    ],
)
def test_options_of_a_checkpoint_are_checked_before_it_is_opened(options, problems):
    with pytest.raises(UserError) as error:
        Detector.from_pretrained("no/such/checkpoint", **options)
    for found, expected in zip(error.value.problems, problems, strict=True):
        assert found.startswith(expected)


def test_a_base_needs_an_adapter_and_a_detector_needs_weights(detector):
    with pytest.raises(ValueError, match="either a model or servers"):
        Detector(detector.checkpoint)
    with detector.without_adapter() as base, pytest.raises(UserError, match="is not an adapter"):
        base.model = base.model.get_base_model()
        with base.without_adapter():
            pass


def test_a_device_and_a_precision_can_be_chosen(run, detector, image_files):
    on_cpu = Detector.from_pretrained(run / "final", device="cpu", precision="float32", max_new_tokens=8)
    assert {str(weight.device) for weight in on_cpu.model.parameters()} == {"cpu"}
    assert on_cpu(image_files[0]).text
    for device in ("gpu", "cuda:99"):
        with pytest.raises(UserError, match=f"device {device} cannot be used"):
            Detector.from_pretrained(run / "final", device=device)


def test_a_model_that_was_not_trained_needs_classes(image_files):
    untrained = Detector.from_pretrained(ROOT / "assets" / "tiny_qwen3_vl", max_new_tokens=8, **stated())
    with pytest.raises(UserError, match="no classes to ask for"):
        untrained(image_files[0])
    assert untrained(image_files[0], classes=["star"]).classes == ["star"]


def test_a_click_checkpoint_gives_points(squares, image_files, tmp_path):
    clicks = train(squares, tmp_path / "run", "--answer", "click")
    predictions = predictions_of("--ckpt", str(clicks / "final"), out=tmp_path / "eval")
    detections = Detector.from_pretrained(clicks / "final", max_new_tokens=64)(image_files)
    assert [found.points_xy.tolist() for found in detections] == [p["objects"]["point"] for p in predictions]
    assert all(found.boxes_xyxy.shape == (0, 4) and len(found) == len(found.points_xy) for found in detections)


# ---- detections ----------------------------------------------------------------------------------------------------------

THREE = {"bbox": [[10, 20, 40, 60], [0, 0, 5.5, 5], [1, 1, 2, 3]], "category": ["dog", "bird", " cat"]}


def test_arrays_have_the_same_types_and_shapes_with_and_without_objects():
    for found, n in (
        (detections_of(THREE | {"score": [0.9, 0.8, 0.25]}), 3),
        (detections_of({"bbox": [], "category": [], "score": []}), 0),
    ):
        assert found.boxes_xyxy.shape == (n, 4) and found.points_xy.shape == (0, 2)
        assert found.scores.shape == found.class_ids.shape == (n,) and len(found) == len(found.labels) == n
        assert found.boxes_xyxy.dtype == found.points_xy.dtype == found.scores.dtype == np.float64
        assert found.class_ids.dtype == np.int64
    points = detections_of({"point": [[3, 4]], "category": ["cat"], "score": [1.0]})
    assert points.points_xy.tolist() == [[3, 4]] and points.boxes_xyxy.shape == (0, 4) and len(points) == 1


def test_coco_results_leave_out_labels_without_a_category():
    found = detections_of(THREE | {"score": [0.9, 0.8, 0.25]})
    assert found.class_ids.tolist() == [1, -1, 0] and found.labels == ["dog", "bird", " cat"]
    assert found.to_coco(image_id=7) == [
        {"image_id": 7, "category_id": 2, "bbox": [10, 20, 30, 40], "score": 0.9},
        {"image_id": 7, "category_id": 1, "bbox": [1, 1, 1, 2], "score": 0.25},
    ]
    json.dumps(found.to_coco(7))


def test_points_have_neither_coco_results_nor_supervision_detections():
    points = detections_of({"point": [[3, 4]], "category": ["cat"], "score": [1.0]})
    for convert in (lambda: points.to_coco(1), points.to_supervision):
        with pytest.raises(UserError, match="points, not boxes"):
            convert()


def test_supervision_gets_the_same_objects(monkeypatch):
    """The arguments of sv.Detections; the package itself brings scipy and matplotlib and is not among the test requirements."""
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=dict))
    found = detections_of(THREE | {"score": [0.9, 0.8, 0.25]})
    converted = found.to_supervision()
    assert converted["xyxy"] is found.boxes_xyxy and converted["class_id"].tolist() == [1, -1, 0]
    assert converted["confidence"].tolist() == [0.9, 0.8, 0.25]
    assert converted["data"]["class_name"].tolist() == ["dog", "bird", " cat"]


def test_supervision_accepts_the_objects_where_it_is_installed():
    supervision = pytest.importorskip("supervision")
    converted = detections_of(THREE | {"score": [0.9, 0.8, 0.25]}).to_supervision()
    assert isinstance(converted, supervision.Detections) and len(converted) == 3
    assert converted["class_name"].tolist() == ["dog", "bird", " cat"]
    assert len(converted[converted.confidence > 0.5]) == 2
    assert len(detections_of({"bbox": [], "category": [], "score": []}).to_supervision()) == 0


def test_a_missing_supervision_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="pip install supervision"):
        detections_of(THREE | {"score": [0.9, 0.8, 0.25]}).to_supervision()
