"""The benchmark's arithmetic and pages, and that every experiment's recipe loads."""

import itertools
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assets.pretraining_objects import EMOJI_FONT
from benchmarks import architectures, confidence, generation, gpu_speed, losses, placement, results, run, step_profile
from benchmarks.bootstrap import intervals
from benchmarks.folds import write_folds
from benchmarks.plan import CHOICES, DATASETS, EXPERIMENTS, LOSSES, SEEDS
from benchmarks.run import identity, missed_by_fp, summary
from boxtune.common.environment import git_revision
from boxtune.common.errors import UserError
from boxtune.data.dataset import read_info, read_records
from boxtune.metrics.matching import match_images
from boxtune.training.recipe import load_recipe
from tests.helpers.records import ROOT, make_record
from tests.helpers.sweep_results import write_run


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_a_recipe_that_loads(name):
    experiment = EXPERIMENTS[name]
    assert load_recipe(["--config", experiment.recipe, *experiment.options]).name == experiment.recipe


def test_the_identity_of_a_result_depends_on_recipe_options_and_seed():
    every = [identity(experiment, seed) for experiment in EXPERIMENTS.values() for seed in SEEDS]
    assert len(set(every)) == len(every)
    assert identity(EXPERIMENTS["nutrition"], 0) == identity(EXPERIMENTS["nutrition"], 0)


def test_the_identity_ignores_recipe_values_that_an_option_replaces(monkeypatch):
    with_option, without = (
        EXPERIMENTS["nutrition-as-is"],
        EXPERIMENTS["nutrition"],
    )  # 160 steps, and the recipe's number of steps
    before = identity(with_option, 0), identity(without, 0)
    other = run.recipe_values(without) | {"max_steps": 999}
    monkeypatch.setattr(run, "recipe_values", lambda experiment: other)
    assert identity(with_option, 0) == before[0]
    assert identity(without, 0) != before[1]


def test_folds_leave_each_image_out_once(squares, tmp_path):
    folds = write_folds(squares, tmp_path, 5)
    everything = {record["id"] for split in ("train", "validation", "test") for record in read_records(squares, split)}
    left_out = [[record["id"] for record in read_records(fold, "test")] for fold in folds]
    assert sorted(itertools.chain(*left_out)) == sorted(everything)
    assert max(map(len, left_out)) - min(map(len, left_out)) <= 1
    for fold, test in zip(folds, left_out, strict=True):
        assert {record["id"] for record in read_records(fold, "train")} == everything - set(test)
        assert read_info(fold)["classes"] == read_info(squares)["classes"]
    again = write_folds(squares, tmp_path, 5)
    assert [[record["id"] for record in read_records(fold, "test")] for fold in again] == left_out


def test_intervals_equal_the_normal_approximation():
    """400 images with one box each, hit or missed: F1 is the hit rate, and its standard error is known."""
    hit = (np.random.default_rng(1).random(400) < 0.7).astype(float).tolist()
    miss = [1 - value for value in hit]
    run = {"tp": hit, "fp": miss, "fn": miss, "iou": hit, "truth": [1] * 400}
    rate = sum(hit) / 400
    half = 1.96 * (rate * (1 - rate) / 400) ** 0.5
    for low, high in intervals([run]).values():
        assert low == pytest.approx(
            rate - half, abs=0.006
        )  # with 2,000 draws, the quantiles have an error of about 0.002
        assert high == pytest.approx(rate + half, abs=0.006)
    assert intervals([run]) == intervals([run, run])


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.2, 0.5, 0.9])), max_size=8))
def test_missed_by_fp_equals_the_best_threshold(predicted):
    """Compared with applying every threshold and matching again. The boxes do not overlap; false positives are far from hits."""
    ground_truth = [([20 * i, 0, 20 * i + 10, 10], "cat") for i in range(9)]
    record = make_record("a", "a.png", 200, 100, ground_truth)

    def matched(threshold: float):
        kept = [(i, hit, score) for i, (hit, score) in enumerate(predicted) if score >= threshold]
        bbox = [[20 * i, 0 if hit else 50, 20 * i + 10, 10 if hit else 60] for i, hit, _ in kept]
        objects = {"bbox": bbox, "category": ["cat"] * len(kept), "score": [score for *_, score in kept]}
        prediction = {"id": "a", "objects": objects, "problems": []}
        return match_images([record], [prediction])[0], prediction

    complete, prediction = matched(0.0)
    possible = [matched(threshold)[0] for threshold in (0.2, 0.5, 0.9, 1.0)]
    expected = [min(image.fn for image in possible if image.fp <= i) for i in range(complete.fp + 1)]
    assert missed_by_fp([complete], [prediction]) == expected


BASES = {name: ["new"] for name in EXPERIMENTS}


def fake_result(experiment: str, seed: int, hits: int = 1, base: str = "new") -> dict:
    records = [make_record("a", "a.png", 100, 100, [([0, 0, 50, 50], "cat"), ([60, 60, 90, 90], "dog")])]
    objects = {"bbox": [[0, 0, 50, 50], [60, 60, 90, 90]], "category": ["cat", "dog"], "score": [1.0, 1.0]}
    hit = {"id": "a", "objects": {key: column[:hits] for key, column in objects.items()}, "problems": []}
    return {
        "experiment": experiment,
        "seed": seed,
        "identity": f"{experiment}/{seed}" if base == "new" else f"{experiment}/{seed}/{base}",
        "base_sha256": [base],
        "data_sha256": ["data"],
        "tuned": summary(records, [hit], ["cat", "dog"]),
        "base": None,
        "seconds": {"training": 12, "evaluation": 3},
        "peak_mib": 512,
        "threads": 1,
        "device": "CPU",
        "versions": dict.fromkeys(("torch", "transformers", "trl", "peft", "bitsandbytes"), "1"),
    }


def test_the_page_shows_measured_results_only(tmp_path, monkeypatch):
    name = DATASETS.experiments[1].name
    measured = [fake_result(name, seed) for seed in SEEDS] + [fake_result(DATASETS.experiments[0].name, 0)]
    monkeypatch.setattr(results, "read_results", lambda: measured)
    monkeypatch.setattr(results, "DOCS", tmp_path)
    results.write_pages({f"{name}/{seed}" for seed in SEEDS}, BASES)  # the last result is of a changed recipe
    page = (tmp_path / "results.md").read_text()
    first, second = (
        next(line for line in page.splitlines() if line.startswith(f"| {experiment.title} |"))
        for experiment in DATASETS.experiments[:2]
    )
    assert set(first.removeprefix(f"| {DATASETS.experiments[0].title}")) <= {"|", " "}
    assert "| 1 | 3 |  | 0.667 ± 0.000 | 0.667 to 0.667 |  | 0.500 ± 0.000 |" in second
    assert "| cat | 1 |  | 1.000 ± 0.000 |" in page
    assert "| dog | 1 |  | 0.000 ± 0.000 |" in page


def test_the_pages_equal_the_rendered_templates(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "DOCS", tmp_path)
    run.main(["--write-only"])
    for name in ("results.md", "losses.md"):
        assert (tmp_path / name).read_text() == (ROOT / "docs" / name).read_text(), (
            "python -m benchmarks.run --write-only"
        )


def test_losses_are_compared_seed_by_seed_with_the_plain_recipe(tmp_path, monkeypatch):
    plain, *_, better = (experiment.name for experiment in LOSSES[0].experiments)
    measured = [fake_result(plain, seed) for seed in (0, 1)] + [fake_result(better, seed, hits=2) for seed in (1, 2)]
    monkeypatch.setattr(results, "read_results", lambda: measured)
    monkeypatch.setattr(results, "DOCS", tmp_path)
    results.write_pages({result["identity"] for result in measured}, BASES)
    lines = (tmp_path / "losses.md").read_text().splitlines()
    first, *_, last = (
        next(line for line in lines if line.startswith(f"| {experiment.title} |"))
        for experiment in LOSSES[0].experiments
    )
    cells = [
        "plain fine-tuning",
        "2",
        "0.667 ± 0.000",
        "",
        "0.667 ± 0.000",
        "",
        "0.500 ± 0.000",
        "",
        "0 ± 0",
        "1 ± 0",
        "",
    ]
    assert [cell.strip() for cell in first.split("|")[1:-1]] == cells
    assert "| 1.000 ± 0.000 | +0.333 (+0.333 to +0.333) |" in last and "| +0.500 (+0.500 to +0.500) |" in last
    assert last.endswith("| 0 ± 0 | 0 ± 0 | -100% (-100% to -100%) |")


def test_results_on_different_data_are_not_mixed_in_a_table(tmp_path, monkeypatch):
    names = [experiment.name for experiment in CHOICES[1].experiments[:3]]
    measured = [fake_result(name, 0) for name in names]
    measured[1]["data_sha256"] = ["other"]
    monkeypatch.setattr(results, "read_results", lambda: measured)
    monkeypatch.setattr(results, "DOCS", tmp_path)
    with pytest.raises(UserError, match=f"{names[1]} seed 0") as error:
        results.write_pages({result["identity"] for result in measured}, BASES)
    assert error.value.problems == [f"{names[1]} seed 0"]


def test_a_repeated_result_replaces_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results.jsonl")
    for name, hits in (("nutrition", 1), ("bccd_voc", 1), ("nutrition", 2)):
        run.keep(fake_result(name, 0, hits))
    kept = [(result["experiment"], result["tuned"]["f1"]) for result in results.read_results()]
    assert kept == [("bccd_voc", pytest.approx(2 / 3)), ("nutrition", 1.0)]


def test_different_runs_widen_the_interval():
    """All images are equal, so only the drawn runs vary: a quarter of the draws holds only run 0, and a quarter only run 1."""
    runs = [
        {key: [value] * 50 for key in ("tp", "iou")} | {"fp": [0] * 50, "fn": [1 - value] * 50, "truth": [1] * 50}
        for value in (0, 1)
    ]
    assert intervals(runs) == {"f1": [0.0, 1.0], "mean_iou_gt": [0.0, 1.0]}


def test_choices_are_compared_seed_by_seed_with_the_first_row(tmp_path, monkeypatch):
    as_is, better, unmeasured, *_ = CHOICES[1].experiments
    measured = [fake_result(as_is.name, 0), fake_result(as_is.name, 1), fake_result(better.name, 1, hits=2)]
    monkeypatch.setattr(results, "read_results", lambda: measured)
    monkeypatch.setattr(results, "DOCS", tmp_path)
    results.write_pages({result["identity"] for result in measured}, BASES)
    rows = [
        [cell.strip() for cell in line.split("|")[2:-1]]
        for experiment in (as_is, better, unmeasured)
        for line in (tmp_path / "results.md").read_text().splitlines()
        if line.startswith(f"| {experiment.title} |")
    ]
    assert rows[0][3] == rows[0][6] == ""
    assert rows[-2][:4] == ["1", "1.000", "1.000 to 1.000", "+0.333 (+0.333 to +0.333)"]
    assert rows[-2][6] == "+0.500 (+0.500 to +0.500)"
    assert set(rows[-1]) == {""}


def test_an_earlier_base_fills_only_unmeasured_tables_and_rows(tmp_path, monkeypatch):
    """A table of choices shows one base, because its rows are compared; the table of datasets may show another base per row."""
    plain, other = (experiment.name for experiment in LOSSES[0].experiments[:2])
    first, second = (experiment.name for experiment in DATASETS.experiments[:2])
    old = [fake_result(name, 0, base="0123456789") for name in (plain, other, first, second)]
    measured = [*old, fake_result(plain, 0, hits=2), fake_result(first, 0, hits=2)]
    monkeypatch.setattr(results, "read_results", lambda: measured)
    monkeypatch.setattr(results, "DOCS", tmp_path)

    def lines(page: str, title: str) -> str:
        text = (tmp_path / page).read_text()
        return next(line for line in text.splitlines() if line.startswith(f"| {title} |"))

    results.write_pages({result["identity"] for result in measured[-2:]}, BASES)
    assert "| 1.000 |" in lines("losses.md", LOSSES[0].experiments[0].title)
    assert "0.667" not in lines("losses.md", LOSSES[0].experiments[1].title)
    assert lines("results.md", DATASETS.experiments[0].title)
    assert lines("results.md", f"{DATASETS.experiments[1].title} (earlier weights 01234567)")
    results.write_pages(set(), BASES)
    assert "0.667" in lines("losses.md", LOSSES[0].experiments[1].title)
    assert "Measured with earlier weights of the embedded model, 01234567" in (tmp_path / "losses.md").read_text()


@pytest.mark.parametrize(
    ("name", "billions"), [("Qwen2-VL-7B", 8.291), ("Qwen2.5-VL-3B", 3.755), ("Qwen3-VL-8B", 8.767)]
)
def test_the_architectures_have_the_published_sizes(name, billions):
    model_class, config = architectures.ARCHITECTURES[name]
    with torch.device("meta"):
        model = model_class(config)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.0005)


@pytest.mark.skipif(not EMOJI_FONT.exists(), reason=f"{EMOJI_FONT} is not installed")
@pytest.mark.slow
def test_generation_is_timed_on_held_out_scenes(tmp_path, monkeypatch, capsys):
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(confidence, "SCENE_COUNT", 2)
    generation.main(["--batch-sizes", "2", "--turns", "1", "--max-new-tokens", "8"])
    assert "2 images of scenes" in capsys.readouterr().out


def test_a_revision_is_marked_if_more_than_the_results_changed(tmp_path):
    assert git_revision(tmp_path) is None

    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a")
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    git("init")
    for name in ("code.py", "results.jsonl"):
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    revision = git("rev-parse", "HEAD").strip()
    (tmp_path / "new.py").write_text("1")
    assert git_revision(tmp_path) == revision
    (tmp_path / "results.jsonl").write_text("2")
    assert git_revision(tmp_path) == f"{revision}+changes"
    assert git_revision(tmp_path, ignoring=("results.jsonl",)) == revision
    (tmp_path / "code.py").write_text("2")
    assert git_revision(tmp_path, ignoring=("results.jsonl",)) == f"{revision}+changes"


def test_an_exact_experiment_name_selects_only_that_one(capsys):
    for text, names in (("nutrition", {"nutrition"}), ("nutrition-r", {"nutrition-r8", "nutrition-r64"})):
        run.main(["--only", text, "--list"])
        assert {line.split()[-3] for line in capsys.readouterr().out.splitlines()} == names
    with pytest.raises(SystemExit) as stop:
        run.main(["--jobs", "0"])
    assert stop.value.code == 2


@pytest.mark.slow
def test_the_cost_of_every_loss_is_measured(squares, capsys):
    losses.main(["--turns", "1", "--batches", "1", "--data-dir", str(squares)])
    table = capsys.readouterr().out
    assert all(name in table for name in losses.WAYS)


@pytest.mark.slow
def test_the_gpu_run_measures_tiny_models_on_a_cpu(tmp_path, monkeypatch):
    """The day a GPU is there, only the sizes are other ones. The same command again measures nothing twice."""
    monkeypatch.chdir(ROOT)
    words = ["--toy", "--only", "Qwen3-VL", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "lines.jsonl")]
    gpu_speed.main(words)
    lines = results.read_lines(tmp_path / "lines.jsonl")
    training = ["training: NF4", "training: NF4, packed", "training: bf16"]
    assert [line["what"] for line in lines] == [
        "patch embedding",
        *training,
        "merge",
        "inference: bfloat16",
        "inference: nf4",
    ]
    for line in lines[1:4]:
        assert line["step_seconds"] > 0 and line["tokens_per_second"] > 0 and line["planned_gb"] > 0
    assert lines[-1]["images_per_second"] > 0
    cells = results.gpu_row(lines[1])
    assert cells["found"].endswith("tokens/s") and cells["planned"]
    gpu_speed.main(words)
    assert len(results.read_lines(tmp_path / "lines.jsonl")) == len(lines)


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("bitsandbytes::dequantize_4bit", "NF4: expanding weights"),
        ("aten::add_", "sums and products by element"),
        ("AccumulateGrad", step_profile.OTHERS),
    ],
)
def test_operations_have_their_kind(operation, kind):
    assert step_profile.kind_of(operation) == kind


def test_the_table_of_a_sweep_has_its_runs_and_recommendation(tmp_path, monkeypatch):
    for name, f1, passed in (("A0", 0.1, 1.0), ("A1", 0.5, 0.95), ("C3", 0.7, 0.5)):
        for seed in range(1 if name == "A0" else 2):
            trainable = 0 if name == "A0" else 10
            write_run(tmp_path / "tiny_placement", name, seed=seed, f1=f1, pass_rate=passed, trainable=trainable)
    monkeypatch.setattr(placement, "PAGE", tmp_path / "placement.md")
    (tmp_path / "placement.md").write_text("before\n<!-- tiny_placement -->\n<!-- end of tiny_placement -->\nafter\n")
    placement.main(["tiny_placement", "--runs", str(tmp_path), "--write"])
    rows = {line.split(" | ")[0].strip("| "): line for line in (tmp_path / "placement.md").read_text().splitlines()}
    assert "before" in rows and "after" in rows and "0.500 ± 0.000" in rows["A1"] and rows["C3"].endswith("| yes |")
    assert any("Recommendation of the sweep: Use A1" in line for line in rows)
