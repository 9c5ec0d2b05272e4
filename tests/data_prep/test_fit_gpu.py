"""What `data_prep recipe` suggests for a model and a GPU: LoRA parts, precision and batch size."""

import subprocess
import sys

import pytest
import yaml

import check_recipe
from benchmarks.architectures import ARCHITECTURES as OLDER
from boxtune.common.errors import UserError
from boxtune.families import FAMILIES
from boxtune.training.recipe import load_recipe
from data_prep.__main__ import main
from data_prep.tools.fit_gpu import fit_gpu, language_parts
from data_prep.tools.model_size import estimate_memory, size_from_config, size_from_name, size_of
from tests.helpers.architectures import ARCHITECTURES as NEWER
from tests.helpers.records import ROOT

CONFIGS = {name: config for name, (_, config) in OLDER.items()} | NEWER


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict:
    """{name: folder with the config.json of a published model, and nothing else}."""
    folder = tmp_path_factory.mktemp("models")
    for name, config in CONFIGS.items():
        config.save_pretrained(folder / name)
    return {name: folder / name for name in CONFIGS}


def family_of(name: str):
    return FAMILIES[CONFIGS[name].model_type]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_recipe_of_every_family_passes_check_recipe(squares, tiny_models, tmp_path, capsys, family):
    out = tmp_path / "recipe.yaml"
    main(["recipe", str(squares), "--model", str(tiny_models[family]), "--out", str(out)])
    values = yaml.safe_load(out.read_text())
    assert values["lora_parts"] == language_parts(FAMILIES[family]) and values["load_in_4bit"] is False
    check_recipe.main(
        ["--config", str(out), "--output_dir", str(tmp_path / "run"), "--requires_gpu", "false", "--bf16", "false"]
    )
    assert "16 of 16 sampled examples decode back" in capsys.readouterr().out


def test_linear_attention_is_adapted_where_a_family_has_it():
    assert language_parts(FAMILIES["qwen3_5"]) == ["language_attention", "language_linear_attention", "language_mlp"]
    assert language_parts(FAMILIES["qwen3_vl_moe"]) == ["language_attention"]


@pytest.mark.parametrize(
    ("name", "gpu_gb", "in_4_bits", "batch_size"),
    [
        ("Qwen2.5-VL-3B", 16, False, 4),
        ("Qwen2-VL-7B", 24, False, 2),
        ("Qwen2-VL-7B", 16, True, 2),
        ("Qwen3-VL-8B", 80, False, 8),
        ("Qwen3.5-4B", 24, False, 8),
        ("Qwen3.5-9B", 40, False, 8),
        ("Qwen3-VL-30B-A3B", 80, False, 4),
    ],
)
def test_16_bits_where_they_fit_and_then_the_largest_batch(folders, name, gpu_gb, in_4_bits, batch_size):
    fit = fit_gpu(str(folders[name]), family_of(name), gpu_gb, max_length=2048, examples_per_step=16)
    assert (fit.in_4_bits, fit.batch_size) == (in_4_bits, batch_size)
    assert (
        fit.memory.total < 0.9e9 * gpu_gb < estimate_memory(fit.size, in_4_bits, 32, 2 * fit.tokens).total
        or batch_size == 8
    )


@pytest.mark.parametrize(
    ("name", "gpu_gb", "reason"),
    [
        ("Qwen3.5-9B", 24, "NF4 (load_in_4bit: true, about 12 GB) is not suggested"),
        ("Qwen3.5-35B-A3B", 48, "mixture of experts is not quantized to 4 bits"),
        ("Qwen3-VL-8B", 8, "NF4 would take about 11 GB, too"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_the_reason(folders, squares, tmp_path, capsys, name, gpu_gb, reason):
    out = tmp_path / "r.yaml"
    with pytest.raises(UserError) as error:
        fit_gpu(str(folders[name]), family_of(name), gpu_gb, max_length=2048, examples_per_step=16)
    assert reason in str(error.value) and f"a GPU of {gpu_gb} GB" in str(error.value)
    with pytest.raises(SystemExit) as stop:
        main(["recipe", str(squares), "--model", str(folders[name]), "--gpu-gb", "6", "--out", str(out)])
    assert stop.value.code == 2 and "GPU_GB=N" in capsys.readouterr().err and not out.exists()


def test_the_estimate_equals_earlier_ones_of_two_recipes(folders):
    """Micro-batches of 2 × 2,048 tokens: the overlay `quality` with Qwen2-VL-7B 16 GB, grounding_qwen3vl 11 GB."""
    for name, parts, lora_r, expected in (
        ("Qwen2-VL-7B", ["language_attention", "language_mlp"], 128, 16),
        ("Qwen3-VL-8B", ["language_mlp"], 16, 11),
    ):
        size = size_of(str(folders[name]), family_of(name), parts)
        assert estimate_memory(size, in_4_bits=True, lora_r=lora_r, tokens=4096).total / 1e9 == pytest.approx(
            expected, abs=0.5
        )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_size_from_the_name_is_close_to_that_of_the_config(folders, name):
    family = family_of(name)
    exact = size_from_config(folders[name] / "config.json", family, language_parts(family))
    guessed = size_from_name(f"Qwen/{name}-Instruct")
    ours, theirs = (estimate_memory(size, in_4_bits=False, lora_r=32, tokens=2048).total for size in (exact, guessed))
    assert theirs == pytest.approx(ours, rel=0.1)


def test_a_model_of_unknown_size_gets_a_recipe_without_an_estimate(squares, tmp_path, capsys):
    out = tmp_path / "recipe.yaml"
    main(["recipe", str(squares), "--model", "me/my-qwen2_5-vl", "--out", str(out)])
    text = out.read_text()
    assert "The memory is unknown" in text and yaml.safe_load(text)["load_in_4bit"] is True
    assert "family qwen2_5_vl, size unknown; LoRA in NF4, batch size 1\n" in capsys.readouterr().out
    main(["recipe", str(squares), "--model", "me/my-qwen3.5", "--out", str(out), "--overwrite"])
    assert yaml.safe_load(out.read_text())["load_in_4bit"] is False


def test_the_header_names_the_parts_of_the_estimate_and_the_steps_stay(squares, folders, tmp_path, capsys):
    out = tmp_path / "recipe.yaml"
    main(["recipe", str(squares), "--model", str(folders["Qwen2-VL-7B"]), "--gpu-gb", "16", "--out", str(out)])
    text = out.read_text()
    assert "# Hardware: one GPU of 16 GB with bf16. Estimated memory: " in text and "6.9 for weights in NF4" in text
    assert "8.3 billion parameters), not measured" in text
    assert "family qwen2_vl, 8.3 billion parameters; LoRA in NF4, batch size 2, about " in capsys.readouterr().out
    values = yaml.safe_load(text)
    assert values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] == 2  # of 16 images
    assert load_recipe(["--config", str(out), "--requires_gpu", "false", "--bf16", "false"]).training.bf16 is False


def test_the_embedded_model_is_for_a_cpu(squares, tmp_path, capsys):
    out = tmp_path / "recipe.yaml"
    main(["recipe", str(squares), "--model", "assets/tiny_qwen3_vl", "--gpu-gb", "1", "--out", str(out)])
    assert "# Hardware: a CPU. Score: not measured.\n" in out.read_text()
    assert "LoRA in float32, batch size 1\n" in capsys.readouterr().out
    assert yaml.safe_load(out.read_text())["load_in_4bit"] is False


def test_a_model_known_by_name_needs_no_torch():
    program = (
        "import sys\n"
        "from data_prep.tools.fit_gpu import fit_gpu\n"
        "from boxtune.families import FAMILIES\n"
        "fit_gpu('Qwen/Qwen3-VL-4B-Instruct', FAMILIES['qwen3_vl'], 24, 2048, 16)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)
