"""Sweep files: every one in recipes/sweeps can be used, and others are refused with all of their problems."""

import re
from dataclasses import fields

import pytest
import torch
from transformers import AutoModelForImageTextToText
from trl import ModelConfig, SFTConfig

from boxtune.common.errors import UserError
from boxtune.models.config import load_config
from boxtune.models.placement import layers_of, lora_targets
from boxtune.sweeps.jobs import load_job_recipe, make_jobs
from boxtune.sweeps.ladder import check_ladder
from boxtune.sweeps.sweep_file import SWEEPS, Sweep, expand, read_sweep
from boxtune.training.arguments import BoxtuneArguments
from tests.helpers.architectures import ARCHITECTURES
from tests.helpers.records import ROOT

NAMES = sorted(path.stem for path in SWEEPS.glob("*.yaml"))
KNOWN = {field.name for kind in (BoxtuneArguments, SFTConfig, ModelConfig) for field in fields(kind) if field.init}
# The matrix of the placement sweep: {run: (layers of the language model, blocks of the vision tower)}
MATRIX = {
    "A1": (2, 0),
    "A2": (4, 0),
    "B1": (0, 2),
    "B2": (0, 4),
    "B3": (0, 6),
    "C1": (2, 2),
    "C2": (2, 4),
    "C3": (2, 6),
    "D1": (4, 2),
    "D2": (4, 4),
    "D3": (4, 6),
}


@pytest.mark.parametrize("name", NAMES)
def test_every_sweep_expands_to_runs_with_recipe_keys_that_can_be_used(name, tmp_path):
    sweep = read_sweep(name)
    check_ladder(sweep.ladder or {})
    runs = expand(sweep)
    assert len(runs) > 1 and {key for run in runs for key in run.keys} <= KNOWN
    assert sweep.guardrails is None or (ROOT / "recipes" / "guardrails" / f"{sweep.guardrails}.yaml").is_file()
    jobs = make_jobs(sweep, runs, 1, tmp_path)
    for job in (jobs[0], jobs[-1]):  # each takes a second
        recipe = load_job_recipe(sweep, job, tmp_path)
        assert recipe.training.output_dir == str(job.folder) and recipe.training.seed == 0
        for key, value in sweep.keys.items():
            if key in ("weight_decay", "warmup_steps", "max_steps"):
                assert getattr(recipe.training, key) == value


def test_the_placement_sweep_is_the_matrix_for_qwen3_vl_4b():
    sweep, config = read_sweep("placement"), ARCHITECTURES["Qwen3-VL-4B"]
    runs = {run.name: run for run in expand(sweep)}
    assert runs.keys() == {"A0", *MATRIX} and runs["A0"].is_base
    assert [run.name for run in expand(sweep)][:7] == ["A0", "A1", "A2", "B2", "B3", "C2", "C3"]
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    for name, (llm, vision) in MATRIX.items():
        keys = runs[name].keys
        assert (keys["lora_r"], keys["lora_alpha"], keys["lora_dropout"]) == (16, 32, 0.1)
        assert (keys["learning_rate"], keys["vision_lr"], keys["merger_lr"]) == (1e-4, 3e-4, 1e-4)
        layers = layers_of(config, [keys["lora_llm_layers"]], [keys["lora_vision_blocks"]])
        pattern = lora_targets(model, keys["lora_parts"], layers=layers)
        hit = {path for path, _ in model.named_modules() if re.fullmatch(pattern, path)}
        numbers = {
            tower: {int(found[1]) for path in hit if (found := re.search(rf"{tower}\.(\d+)\.", path))}
            for tower in ("layers", "blocks")
        }
        assert numbers == {"layers": {*range(36 - llm, 36)}, "blocks": {*range(24 - vision, 24)}}
        assert len(hit) == 7 * llm + 4 * vision


def test_the_tiny_matrix_fits_the_embedded_model_and_has_the_same_runs():
    sweep = read_sweep("tiny_placement")
    config = load_config(str(ROOT / "assets" / "tiny_qwen3_vl"))
    found = {}
    for run in expand(sweep):
        if not run.is_base:
            layers = layers_of(config, [run.keys["lora_llm_layers"]], [run.keys["lora_vision_blocks"]])
            found[run.name] = (len(layers.llm), len(layers.vision))
            assert run.keys["max_steps"] <= 160
    in_proportion = {0: 0, 2: 1, 4: 2}, {0: 0, 2: 1, 4: 2, 6: 4}
    assert found == {name: (in_proportion[0][llm], in_proportion[1][vision]) for name, (llm, vision) in MATRIX.items()}


# ---- runs --------------------------------------------------------------------------------------------------------------


def test_a_grid_multiplies_the_runs_and_overrides_their_keys():
    sweep = Sweep(
        *("s", "tiny_nutrition_qlora"),
        keys={"weight_decay": 0.1, "lora_r": 4},
        runs={"A0": {"base": True}, "A1": {"lora_llm_layers": -1}},
        grid={"lora_r": [8, 16], "lora_vision_blocks": [0, [6, 7]]},
    )
    runs = expand(sweep)
    assert [run.name for run in runs] == [
        "A0",
        "A1-lora_r=8-lora_vision_blocks=0",
        "A1-lora_r=8-lora_vision_blocks=6+7",
        "A1-lora_r=16-lora_vision_blocks=0",
        "A1-lora_r=16-lora_vision_blocks=6+7",
    ]
    assert runs[2].keys == {"weight_decay": 0.1, "lora_r": 8, "lora_llm_layers": -1, "lora_vision_blocks": [6, 7]}
    assert [run.name for run in expand(sweep, ["A1"])] == [run.name for run in runs[1:]]
    assert [run.name for run in expand(sweep, ["A1-lora_r=16-lora_vision_blocks=0", "A0"])] == [
        runs[0].name,
        runs[3].name,
    ]


def test_a_grid_alone_names_its_runs():
    runs = expand(Sweep("s", "tiny_nutrition_qlora", grid={"learning_rate": [1e-4, 2e-4]}))
    assert [run.name for run in runs] == ["learning_rate=0.0001", "learning_rate=0.0002"]


def test_an_unknown_run_is_an_error_that_names_them_all():
    with pytest.raises(UserError, match="--only: Z1 is none of the runs: r8, r16, r32"):
        expand(read_sweep("rank_ladder"), ["r8", "Z1"])


def test_the_first_seed_of_every_run_comes_before_the_second_and_the_base_has_one(tmp_path):
    sweep = Sweep("s", "tiny_nutrition_qlora", runs={"A0": {"base": True}, "A1": {"lora_r": 8}, "A2": {"lora_r": 4}})
    jobs = make_jobs(sweep, expand(sweep), 2, tmp_path)
    assert [job.name for job in jobs] == ["A0-seed0", "A1-seed0", "A2-seed0", "A1-seed1", "A2-seed1"]
    assert jobs[3].keys == {
        "lora_r": 8,
        "seed": 1,
        "output_dir": str(tmp_path / "A1-seed1"),
        "run_name": "s/A1-seed1",
    }


# ---- wrong files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("runs: {a: {}}", "recipe: name the recipe"),
        ("recipe: x\nrun: {a: {}}", "unknown key 'run'; did you mean runs?"),
        ("recipe: x", "runs: name at least one run, or a grid"),
        ("recipe: x\nruns: [a]", "runs: ['a'] must be a mapping"),
        ("recipe: x\nruns: {a: 3}", "runs: a: 3 must be a mapping of recipe keys"),
        ("recipe: x\ngrid: {lora_r: 8}", "grid: lora_r: 8 must be a list of values"),
        ("recipe: x\nruns: {a: {}}\nsplit: test", "split: a placement that is chosen on test has no test left"),
        ("recipe: x\nruns: {a: {}}\nmetric: loss", "metric: 'loss' must be one of AP, AP50, f1, mean_iou_gt"),
        ("recipe: x\nruns: {a: {}}\nguardrail: pope_yes_rate", "guardrail: 'pope_yes_rate' must be one of"),
        ("recipe: x\nruns: {a: {}}\nlauncher: srun", "launcher: 'srun' needs the word {command}"),
        ("recipe: x\nruns: {a: {}}\nseeds: 0", "seeds, parallel: must be at least 1"),
        ("recipe: x\nruns: {a: {}}\nseeds: true", "seeds: True must be a whole number"),
        ("recipe: x\nruns: {a: {base: true, lora_r: 8}}", "runs: a: a run with base: true trains nothing"),
        ("recipe: x\nruns: {'a/b': {}}", "runs: 'a/b' must be a name of a folder"),
        ("recipe: x\nruns: {a: {}}\nfirst: [b]", "first: 'b' is none of the runs"),
        ("recipe: x\nruns: {a: {}}\nsearch: {trials: 1}", "search: chooses the keys itself"),
    ],
)
def test_a_wrong_sweep_is_reported(tmp_path, text, problem):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_sweep(str(path))
    assert any(line.startswith(problem) for line in error.value.problems)


def test_an_unknown_name_lists_the_sweeps():
    with pytest.raises(UserError, match=", ".join(NAMES)):
        read_sweep("placment")
