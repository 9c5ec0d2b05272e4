"""An installed wheel works without the checkout: it holds every module and template, and needs no file next to them."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.records import ROOT

pytestmark = pytest.mark.slow

PACKAGES = ("boxtune", "data_prep")
SIZE = (100, 80)
BOXES_XYWH = [[10, 10, 30, 20], [50, 40, 30, 30]]

# Ends every program: which files of the checkout, other than its environment, were imported?
CHECK_ORIGIN = """
import sys
from pathlib import Path
root, environment, site = map(Path, sys.argv[1:4])
files = [Path(module.__file__) for module in list(sys.modules.values()) if getattr(module, "__file__", None)]
own = [file for file in files if file.is_relative_to(root) and not file.is_relative_to(environment)]
assert not own, f"imported from the checkout: {own}"
assert any(file.is_relative_to(site) for file in files), "the wheel was not imported"
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources, because setuptools writes next to them."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder, source)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """A folder with the unpacked wheel; its dependencies are those of the tests."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--target", folder, wheel)
    return folder


@pytest.fixture(scope="module")
def elsewhere(site, tmp_path_factory) -> Path:
    """A working directory with a small dataset, converted by the installed wheel."""
    folder = tmp_path_factory.mktemp("elsewhere")
    write_coco(folder / "source")
    run(site, folder, "-m", "data_prep", "coco", "source", "--out", "data", "--copy-images")
    return folder


def pip(command: str, *arguments: object) -> None:
    words = [sys.executable, "-m", "pip", command, "--no-deps", "--no-index", "--quiet", *map(str, arguments)]
    subprocess.run(words, check=True, capture_output=True, text=True, timeout=300)


def run(site: Path, folder: Path, *words: str) -> str:
    """What Python prints with `site` in front of its path and `folder` as the working directory."""
    environment = os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_program(site: Path, folder: Path, program: str, *arguments: str) -> str:
    words = [str(ROOT), sys.prefix, str(site), *arguments]
    return run(site, folder, "-c", program + CHECK_ORIGIN, *words)


def write_coco(folder: Path) -> None:
    """12 images, each with two objects, so that every split has some."""
    folder.mkdir()
    images, annotations = [], []
    for i in range(12):
        Image.new("RGB", SIZE, (20 * i, 100, 100)).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": SIZE[0], "height": SIZE[1]})
        annotations += [
            {"id": 2 * i + k, "image_id": i, "category_id": k, "bbox": box} for k, box in enumerate(BOXES_XYWH)
        ]
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    (folder / "annotations.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )


def test_the_wheel_holds_every_module_and_template_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert names == tracked
    assert {Path(name).suffix for name in names} >= {".py", ".jinja", ".js"}


def test_it_converts_and_renders_pages_and_recipes(site, elsewhere):
    info = json.loads((elsewhere / "data" / "dataset.json").read_text())
    assert info["classes"] == ["cat", "dog"]
    assert sum(counts["objects"] for counts in info["splits"].values()) == 24
    run(site, elsewhere, "-m", "data_prep", "show", "data", "--out", "data.html")
    assert "data:image/jpeg;base64," in (elsewhere / "data.html").read_text()
    run(
        site,
        elsewhere,
        "-m",
        "data_prep",
        "recipe",
        "data",
        "--model",
        "Qwen/Qwen2.5-VL-3B-Instruct",
        "--out",
        "r.yaml",
    )
    assert "Qwen/Qwen2.5-VL-3B-Instruct" in (elsewhere / "r.yaml").read_text()


def test_it_scores_predictions_and_writes_the_report(site, elsewhere):
    program = """
import json
from boxtune.answers.codecs import CODECS
from boxtune.answers.prediction_file import read_predictions
from boxtune.answers.predictions import make_prediction
from boxtune.common.json_lines import to_json_line
from boxtune.data.dataset import read_info, read_records
from boxtune.data.records import answer_objects
from boxtune.metrics.average_precision import curves
from boxtune.metrics.scoring import score
from boxtune.reports.report import write_report

records, classes = read_records("data", "train"), read_info("data")["classes"]
lines = []
for record in records:
    text = CODECS["qwen3_vl"].encode(*answer_objects(record), (80, 100), (64, 96)).text
    lines.append(to_json_line(make_prediction(record, "qwen3_vl", (64, 96), text, 0.1)))
with open("predictions.jsonl", "w", encoding="utf-8") as file:
    file.writelines(lines)
predictions, _ = read_predictions("predictions.jsonl", records, reparse=True)
metrics = score(records, predictions, classes)
write_report("report.html", records, predictions, metrics, curves(records, predictions, classes), "data", "a wheel")
print(json.dumps(metrics["matching"]))
"""
    matching = json.loads(run_program(site, elsewhere, program))
    assert (matching["fp"], matching["fn"]) == (0, 0) and matching["tp"] > 0
    page = (elsewhere / "report.html").read_text(encoding="utf-8")
    assert "<title>" in page and "data:image/jpeg;base64," in page and "<script" in page


def test_its_detector_detects(site, elsewhere, tiny_models):
    program = """
from boxtune import Detector
stated = {"family": "qwen2_5_vl", "system_prompt": "", "format_sentence": "", "max_pixels": 50_000}
detector = Detector.from_pretrained(sys.argv[4], device="cpu", max_new_tokens=8, **stated)
first, second = detector(["source/0.png", "source/1.png"], classes=["cat", "dog"])
assert first.size == second.size == (100, 80) and first.classes == ["cat", "dog"]
assert first.boxes_xyxy.shape == (len(first), 4)
"""
    run_program(site, elsewhere, "import sys\n" + program, str(tiny_models["qwen2_5_vl"]))
