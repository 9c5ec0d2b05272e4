"""Training: every recipe on the tiny model, which inputs are rejected, and what a run saves."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.modeling_flash_attention_utils import FLASH_ATTN_KERNEL_FALLBACK
from transformers.utils import is_flash_attn_2_available

import evaluate
from benchmarks.losses import make_trainer
from boxtune.answers.grounding import Grounding
from boxtune.common.errors import UserError
from boxtune.data.dataset import read_records
from boxtune.data.records import image_path
from boxtune.families import FAMILIES as FAMILY_FACTS
from boxtune.models.checkpoint import load_checkpoint_model, open_checkpoint
from boxtune.models.describing import quantized_modules
from boxtune.training import setup, setup_losses
from boxtune.training.recipe import RECIPES, Recipe, load_recipe
from tests.helpers.records import FAMILIES, ROOT
from tests.helpers.training import log_history, train

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
OVERLAYS = sorted(path.stem for path in (RECIPES / "overlays").glob("*.yaml"))


def adapted_parts(recipe: Recipe) -> set[str]:
    """The parts that LoRA adapts, according to lora_parts or to lora_target_modules and lora_vision."""
    if recipe.options.lora_parts:
        return set(recipe.options.lora_parts) & set(FAMILY_FACTS["qwen3_vl"].lora_parts)
    parts = {"language_attention"}
    if "up_proj" in recipe.model.lora_target_modules:
        parts |= {"language_mlp"}
    if recipe.options.lora_vision:
        parts |= {"vision_attention", "vision_mlp"}
    return parts


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_trains_two_steps_on_the_tiny_model(name, squares, tmp_path):
    recipe = load_recipe(["--config", name, "--overlay", "tiny"])
    run = train(squares, tmp_path / "run", "--load_best_model_at_end", "false", config=name, overlay="tiny")

    losses = [entry["loss"] for entry in log_history(run) if "loss" in entry]
    assert len(losses) == 2
    most = 80 if recipe.options.detection_head else 20  # the terms of a new head are added
    assert all(0 < loss < most for loss in losses)
    adapter = load_file(run / "final" / "adapter_model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in adapter.values())
    if not recipe.options.phases:  # whose first steps may leave LoRA as it is
        # lora_B starts at zero, and two steps must change all of them.
        assert all(tensor.abs().max() > 0 for key, tensor in adapter.items() if "lora_B" in key)

    info = json.loads((run / "final" / "run.json").read_text())
    linears = {part: sum(found.values()) for part, found in info["modules"]["adapted"].items()}
    assert 2 * sum(linears.values()) == len(adapter)
    assert {part for part, count in linears.items() if count} == adapted_parts(recipe)
    quantized = info["modules"]["quantised"]
    assert quantized["vision"]["nf4"] == 0
    assert quantized["head"]["nf4"] == 0
    kinds = ("nf4", "full") if recipe.model.load_in_4bit else ("full", "nf4")
    assert [quantized["language"][kind] > 0 for kind in kinds] == [True, False]
    assert info["data"]["splits"]["train"]["images"] == 16

    resolved = yaml.safe_load((run / "final" / "recipe.yaml").read_text())
    assert resolved["model_name_or_path"] == recipe.model.model_name_or_path
    assert resolved["max_steps"] == 2
    grounding = json.loads((run / "final" / "grounding.json").read_text())
    assert grounding["codec"] == ("qwen3_vl_click" if "click" in name else "qwen3_vl")
    assert grounding["max_pixels"] == 50176
    supervised = (run / "first_batch.txt").read_text().split("--- supervised\n")[1].split("\n---")[0]
    assert supervised.strip().endswith("<|im_end|>")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_combines_with_tiny(overlay, monkeypatch):
    recipe = load_recipe(["--config", "nutrition_qlora", "--overlay", overlay, "--overlay", "tiny"])
    own = yaml.safe_load((RECIPES / "overlays" / f"{overlay}.yaml").read_text())
    tiny = yaml.safe_load((RECIPES / "overlays" / "tiny.yaml").read_text())
    for key, value in own.items():
        assert recipe.values[key] == tiny.get(key, value)


def test_the_overlay_fast_names_an_extra_that_brings_compiled_kernels():
    """transformers itself knows which kernels stand for flash_attention_2, and which version of `kernels` loads them."""
    text = (RECIPES / "overlays" / "fast.yaml").read_text()
    values = yaml.safe_load(text)
    assert FLASH_ATTN_KERNEL_FALLBACK[values["attn_implementation"]].startswith("kernels-community/")
    assert "torch_compile" not in values  # box losses work with it
    (extra,) = re.search(r'--editable "\.\[(\w+)\]"', text).groups()
    (requirement,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    name, inner = re.fullmatch(r"(\w+)\[(\w+)\]", requirement).groups()
    assert any(line.startswith("kernels") and f'"{inner}"' in line for line in importlib.metadata.requires(name))


@pytest.mark.skipif(is_flash_attn_2_available(), reason="flash-attn is installed")
def test_missing_flash_attention_is_one_message_with_the_remedy(squares, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train(squares, tmp_path / "run", "--attn_implementation", "flash_attention_2")
    message = capsys.readouterr().err
    assert stop.value.code == 2 and ".." not in message
    assert "recipes/overlays/fast.yaml explains how to install it; sdpa needs no installation." in message


def test_nutrition_qlora_has_the_published_values():
    recipe = load_recipe(["--config", "nutrition_qlora"], needs_gpu=False) if torch.cuda.is_available() else None
    values = recipe.values if recipe else yaml.safe_load((RECIPES / "nutrition_qlora.yaml").read_text())
    wanted = {
        "model_name_or_path": "Qwen/Qwen2-VL-7B-Instruct",
        "data_source": "openfoodfacts/nutrition-table-detection",
        "load_in_4bit": True,
        "use_bnb_nested_quant": True,
        "lora_r": 64,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 8,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 50,
        "num_train_epochs": 3,
        "max_length": 2048,
    }
    assert {key: values[key] for key in wanted} == wanted


@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_of_every_family_trains(family, bits, tiny_models, squares, tmp_path, capsys):
    """Every lora_B with a gradient changes, with 16-bit weights and with NF4, which quantizes only the language model."""
    run = train(
        *(squares, tmp_path / "run", "--model_name_or_path", tiny_models[family]),
        *("--lora_parts", *FAMILY_FACTS[family].lora_parts),
        *(["--dtype", "bfloat16", "--bf16", "true", "--load_in_4bit", "false"] if bits == 16 else []),
        *("--gradient_checkpointing", "true"),
    )
    modules = json.loads((run / "final" / "run.json").read_text())["modules"]
    blocks = 15 if family == "qwen2_5_vl" else 12  # 3 of 5 linears, or of 4
    mergers = 6 if family == "qwen3_vl" else 2  # the deepstack has two more mergers
    assert modules["quantised"] == {
        "vision": {"nf4": 0, "full": blocks + mergers},
        "language": {"nf4": 14, "full": 0} if bits == 4 else {"nf4": 0, "full": 14},
        "head": {"nf4": 0, "full": 1},
    }
    counts = {part: sum(found.values()) for part, found in modules["adapted"].items()}
    assert counts == dict(zip(FAMILY_FACTS[family].lora_parts, (8, 6, 6, blocks - 6, mergers), strict=True))
    adapter = load_file(run / "final" / "adapter_model.safetensors")
    assert len(adapter) == 2 * sum(counts.values())
    assert all(tensor.dtype == torch.float32 for tensor in adapter.values())
    unchanged = {key.split(".lora_B")[0] for key, tensor in adapter.items() if "lora_B" in key and not tensor.any()}
    # The second deepstack merger adds to the image tokens after the second layer. Here that is the last layer, so no text token
    # depends on it.
    merger = "base_model.model.model.visual.deepstack_merger_list.1"
    assert unchanged == ({f"{merger}.linear_fc1", f"{merger}.linear_fc2"} if family == "qwen3_vl" else set())
    printed = capsys.readouterr().out
    assert "LoRA on language_mlp: 2 down_proj, 2 gate_proj, 2 up_proj" in printed and " %)" in printed


def test_bf16_compute_trains_on_a_cpu(squares, tmp_path):
    run = train(squares, tmp_path / "run", "--dtype", "bfloat16", "--bf16", "true", "--gradient_checkpointing", "true")
    adapter = load_file(run / "final" / "adapter_model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in adapter.values())


def test_rare_recipe_options_train_and_evaluate(squares, tmp_path, capsys):
    """A quantized and adapted vision tower, bf16 adapters, another family's box format and another object order."""
    run = train(
        *(squares, tmp_path / "run", "--quantize_vision", "true", "--lora_vision", "true"),
        *("--adapter_dtype", "bfloat16", "--codec", "qwen2_5_vl", "--object_order", "area"),
    )
    modules = json.loads((run / "run.json").read_text())["modules"]
    assert modules["quantised"]["vision"] == {"nf4": 36, "full": 0}  # 8 blocks of 4 linears, 2 mergers of 2
    assert modules["quantised"]["head"]["nf4"] == 0
    assert modules["adapted"]["vision_attention"] == {"proj": 8, "qkv": 8}
    assert modules["adapted"]["vision_mlp"] == {"linear_fc1": 8, "linear_fc2": 8}
    assert modules["adapted"]["merger"] == {}
    assert {tensor.dtype for tensor in load_file(run / "final" / "adapter_model.safetensors").values()} == {
        torch.bfloat16
    }
    grounding = Grounding.load(run / "final")
    assert (grounding.codec, grounding.quantized_vision) == ("qwen2_5_vl", True)
    evaluate.main(["--ckpt", str(run / "final"), "--limit", "1", "--max-new-tokens", "8"])
    assert json.loads((run / "eval" / "predictions.jsonl").read_text())["codec"] == "qwen2_5_vl"
    model = load_checkpoint_model(open_checkpoint(str(run / "final")))
    assert quantized_modules(model)["vision"]["nf4"] == 36


def test_full_fine_tuning_saves_a_whole_model_with_greedy_generation(squares, tmp_path, tiny_models, capsys):
    base = shutil.copytree(tiny_models["qwen2_5_vl"], tmp_path / "base")
    (base / "generation_config.json").write_text('{"do_sample": true, "repetition_penalty": 1.05}')
    options = ("--model_name_or_path", base, "--load_in_4bit", "false", "--use_peft", "false")
    run = train(squares, tmp_path / "run", *options)
    assert "these keys have no effect: lora_r" in capsys.readouterr().out
    assert (run / "final" / "model.safetensors").is_file()
    assert not (run / "final" / "adapter_config.json").exists()
    generation = json.loads((run / "final" / "generation_config.json").read_text())
    assert not generation.get("do_sample") and generation.get("repetition_penalty", 1.0) == 1.0


def test_hub_token_is_not_saved(squares, tmp_path):
    token = "hf_" + "secret" * 5
    run = train(squares, tmp_path / "run", "--hub_token", token, "--save_steps", 1)
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {"recipe.yaml", "training_args.bin"} <= {path.name for path in files}
    assert not [path for path in files if token.encode() in path.read_bytes()]


def test_missing_image_is_reported_before_training(squares, tmp_path, capsys):
    data = shutil.copytree(squares, tmp_path / "data")
    record = read_records(data, "train")[-1]
    missing = f"{image_path(record, data)}.moved"
    lines = (data / "train.jsonl").read_text()
    (data / "train.jsonl").write_text(lines.replace(record["image"], missing))
    with pytest.raises(SystemExit) as stop:
        train(data, tmp_path / "run", "--dataloader_num_workers", 2)
    assert stop.value.code == 2
    assert "1 of" in (message := capsys.readouterr().err) and missing in message
    assert not (tmp_path / "run").exists()


def test_corrupt_image_in_a_worker_is_one_message_without_traceback(squares, tmp_path, capsys):
    data = shutil.copytree(squares, tmp_path / "data")
    lines = (data / "train.jsonl").read_text()
    for record in read_records(data, "train"):
        corrupt = tmp_path / f"{record['id']}.png"
        corrupt.write_bytes(image_path(record, data).read_bytes()[:300])
        lines = lines.replace(json.dumps(record["image"]), json.dumps(str(corrupt)))
    (data / "train.jsonl").write_text(lines)
    with pytest.raises(SystemExit) as stop:
        train(data, tmp_path / "run", "--dataloader_num_workers", 1)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert re.search(r"^error: \S+: cannot read \S+ \(.*\)\. Prepare the data again\.$", error, re.MULTILINE), error
    assert "Traceback" not in error


def test_quantized_base_model_is_rejected(squares, tmp_path, tiny_models, capsys):
    base = shutil.copytree(tiny_models["qwen2_vl"], tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit) as stop:
        train(squares, tmp_path / "run", "--model_name_or_path", base)
    assert stop.value.code == 2 and "is already quantized" in capsys.readouterr().err


def test_unusable_attention_and_storage_values_are_rejected(squares, tmp_path, capsys):
    for key, value, words in (
        ("attn_implementation", "flash_attn_2", "must be one of eager, "),
        ("bnb_4bit_quant_storage", "bf16", "bnb_4bit_quant_storage bf16"),
    ):
        with pytest.raises(SystemExit) as stop:
            train(squares, tmp_path / "run", f"--{key}", value)
        assert stop.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_vision_tower_runs_once_per_step(family, tiny_models, squares, tmp_path):
    """With gradient checkpointing, layers that need gradients run twice."""
    options = ["--model_name_or_path", str(tiny_models[family]), "--gradient_checkpointing", "true"]
    options += ["--lora_vision", "false", "--per_device_train_batch_size", "1", "--max_steps", "1"]
    options += ["--output_dir", str(tmp_path), "--eval_strategy", "no", "--save_strategy", "no"]
    trainer = make_trainer(str(squares), tuple(options))
    model = trainer._base().base_model
    runs = {"visual": [], "language_model": []}
    for part, layers in (("visual", model.visual.blocks), ("language_model", model.language_model.layers)):
        for layer in layers:
            layer.mlp.register_forward_pre_hook(lambda *_, part=part: runs[part].append(1))
    trainer.train()
    assert len(runs["visual"]) == len(model.visual.blocks)
    assert len(runs["language_model"]) == 2 * len(model.language_model.layers)


def test_losses_that_need_the_whole_lm_head_are_rejected_under_fsdp(monkeypatch):
    recipe = load_recipe(["--config", "tiny_nutrition_qlora", "--iou_loss_weight", "1"])
    assert any(setup_losses.choose_losses(recipe))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="need the whole LM head"):
        setup_losses.choose_losses(recipe)


def test_overlays_set_lora_r_and_lora_alpha_together():
    for name in OVERLAYS:
        values = yaml.safe_load((RECIPES / "overlays" / f"{name}.yaml").read_text())
        assert ("lora_r" in values) == ("lora_alpha" in values), name


def test_overlong_examples_abort_the_run_or_are_dropped(squares, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train(squares, tmp_path / "run", "--max_length", "120")
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "exceed max_length 120" in message and "noise_objects" not in message
    listed = message.count("tokens (image")
    assert 1 <= listed < 16
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit):
        train(squares, tmp_path / "run", "--max_length", "120", "--noise_objects", "2")
    assert "lower max_pixels or noise_objects (2.0), or set" in capsys.readouterr().err
    train(squares, tmp_path / "run", "--max_length", "120", "--overlong", "drop")
    printed = capsys.readouterr().out
    assert f"dropped from train, because they exceed max_length 120: {listed} of 16 examples" in printed
    in_validation = int(re.search(r"dropped from validation.*: (\d+) of 6 examples", printed).group(1))
    assert printed.count("tokens (image") == listed + in_validation
    assert int(re.search(r"longest example (\d+) of max_length 120", printed).group(1)) <= 120


def write_recipe(path: Path, **changes) -> Path:
    """Write tiny_nutrition_qlora with changed values; a value of None omits its key."""
    values = yaml.safe_load((RECIPES / "tiny_nutrition_qlora.yaml").read_text()) | changes
    values["model_name_or_path"] = str(ROOT / values["model_name_or_path"])
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return path


def test_unknown_tracker_is_rejected(squares, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        train(squares, tmp_path / "run", "--report_to", "wandbb")
    assert error.value.code == 2
    assert "wandbb must be one of" in capsys.readouterr().err


def write_tracked_recipe(folder: Path, squares: Path) -> Path:
    """A recipe with three trackers, for a copy of `squares` that contains a label outside its classes."""
    data = shutil.copytree(squares, folder / "data")
    info = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(info | {"classes": ["red square"]}))
    return write_recipe(
        folder / "tracked.yaml",
        report_to=["wandb", "mlflow", "tensorboard"],
        data_dir=str(data),
        output_dir=str(folder / "run"),
        max_steps=2,
        per_device_train_batch_size=1,
        eval_steps=2,
        logging_steps=1,
    )


def test_absent_or_logged_out_trackers_do_not_stop_a_run(squares, tmp_path):
    """A label that dataset.json does not list does not stop it either."""
    recipe = write_tracked_recipe(tmp_path, squares)
    logged_out = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    logged_out |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    command = [sys.executable, str(ROOT / "train_sft.py"), "--config", str(recipe)]
    result = subprocess.run(command, cwd=tmp_path, env=logged_out, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2/2 [" in result.stderr, "the progress bar is missing"
    assert "kernels" not in result.stderr, "bitsandbytes recommends its kernels on a CPU with AVX512-BF16"
    assert "wandb is not logged in" in result.stdout
    assert "mlflow is not installed" in result.stdout

    (wandb_run,) = (tmp_path / "wandb").glob("offline-run-*")
    images = list(wandb_run.glob("files/media/images/eval/pictures_*.png"))
    assert len(images) == len(read_records(squares, "validation"))
    overlays = [json.loads(path.read_text()) for path in wandb_run.glob("files/media/metadata/boxes2D/eval/*.json")]
    drawn = [box for overlay in overlays for box in overlay["box_data"]]
    gt_boxes = [box for record in read_records(squares, "validation") for box in record["objects"]["bbox"]]
    assert len(drawn) >= len(gt_boxes) > 0
    assert all(0 <= box["position"][key] <= 1 for box in drawn for key in ("minX", "minY", "maxX", "maxY"))

    (events,) = (tmp_path / "run").rglob("events.out.tfevents*")
    logged = EventAccumulator(str(events), size_guidance={"images": 0}).Reload().Tags()
    assert {"eval/AP50", "eval/f1", "eval/mean_iou", "train/loss"} <= set(logged["scalars"])
    assert sorted(logged["images"])[0] == "eval/pictures/0"


def write_aabb_source(folder: Path) -> Path:
    """Twelve images with one box each, in aabb format. Returns the annotation file."""
    folder.mkdir()
    items = []
    for i in range(12):
        Image.new("RGB", (100, 80), (i, i, 200)).save(folder / f"{i}.png")
        item_object = {"class": ("box", "cup")[i % 2], "bbox_aabb": [0.1, 0.1, 0.5, 0.6]}
        items.append({"image": f"{i}.png", "objects": [item_object]})
    annotations = folder / "list.json"
    annotations.write_text(json.dumps(items))
    return annotations


def test_data_is_prepared_only_once(tmp_path, capsys):
    """A recipe with data_format prepares its data if data_dir is absent. Later runs use it, even if data_args have changed."""
    annotations = write_aabb_source(tmp_path / "source")
    data = tmp_path / "prepared"
    recipe = write_recipe(
        tmp_path / "own.yaml",
        data_format="aabb",
        data_source=str(annotations),
        data_args=["--questions", "most-common"],
    )
    run = train(data, tmp_path / "run", config=recipe)
    assert "preparing the data: python -m data_prep aabb" in capsys.readouterr().out
    questions = [f"<image>Detect every {name} in the image." for name in ("box", "cup")]
    assert Grounding.load(run / "final").questions == questions

    stamp = (data / "dataset.json").stat().st_mtime_ns
    train(data, tmp_path / "run2", config=recipe)
    printed = capsys.readouterr().out
    assert "preparing the data" not in printed and "it is used as it is" not in printed
    assert (data / "dataset.json").stat().st_mtime_ns == stamp

    recipe.write_text(recipe.read_text().replace("most-common", "all"))
    train(data, tmp_path / "run3", config=recipe)
    printed = capsys.readouterr().out
    assert "--questions most-common`, not `aabb" in printed and "it is used as it is" in printed
    assert (data / "dataset.json").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_two_processes_train_like_one_process(squares, tmp_path):
    """Two CPU processes (gloo) take the same steps as one process with the same recipe, and log means of both."""
    options = ("--load_in_4bit", "false", "--fp_loss_weight", 0.5, "--fn_loss_weight", 2.0, "--save_steps", 1)
    options += ("--vision_lr", 5e-4, "--vision_warmup_steps", 2)
    sampled = ("--grounding_mode", "both", "--grounding_every", 2, "--grounding_samples", 2)
    varied = ("--augment", "resize", "color", "--prompt_variety", "true", "--noise_objects", 0.5)
    one = train(squares, tmp_path / "one", *options, *varied, "--gradient_accumulation_steps", 2)

    two = tmp_path / "two"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517"]
    words = ["--config", "tiny_nutrition_qlora", "--data_dir", squares, "--output_dir", two, "--max_steps", 2]
    words += [
        "--per_device_train_batch_size",
        1,
        "--gradient_accumulation_steps",
        2,
        "--eval_strategy",
        "no",
        "--logging_steps",
        1,
        "--eval_images",
        4,
    ]
    command = [*launcher, "train_sft.py", *map(str, [*words, *options, *sampled, *varied])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("trained: ") == 1
    assert (two / "final" / "adapter_model.safetensors").is_file()

    log_of_one, log_of_two = log_history(one), log_history(two)
    assert log_of_two[0]["num_tokens"] == log_of_one[0]["num_tokens"]
    for key in ("lm_loss", "fp_loss", "fn_loss", "weight_norm/vision", "learning_rate/vision"):
        assert log_of_two[0][key] == pytest.approx(log_of_one[0][key], rel=1e-3), key
    for row in log_of_two[:2]:
        shares = [value for key, value in row.items() if key.startswith("grad_share/")]
        assert sum(shares) == pytest.approx(1 if "policy_loss" in row else 0)
        total = row["lm_loss"] + 0.5 * row["fp_loss"] + 2 * row["fn_loss"] + row.get("policy_loss", 0)
        assert row["loss"] == pytest.approx(total, abs=1e-3)


def test_a_vision_cache_trains_the_same_model(squares, tmp_path):
    """With noise, packed batches and box losses. The second run reads what the first one kept. Evaluation is part of it."""
    options = ("--lora_vision", "false", "--noise_objects", 0.5, "--iou_loss_weight", 1, "--max_steps", 4)
    options += (
        "--per_device_train_batch_size",
        2,
        "--eval_strategy",
        "steps",
        "--eval_steps",
        2,
        "--collator",
        "packed",
    )
    cache = ("--vision_cache", tmp_path / "cache")
    plain = train(squares, tmp_path / "plain", *options)
    runs = [train(squares, tmp_path / f"cached{number}", *options, *cache) for number in range(2)]
    files = list((tmp_path / "cache").glob("*/*.safetensors"))
    assert len(files) > 4
    losses = [[row["loss"] for row in log_history(run, 4) if "loss" in row] for run in (plain, *runs)]
    assert losses[1] == losses[2] == pytest.approx(losses[0], rel=1e-4)
    weights = [load_file(run / "final" / "adapter_model.safetensors") for run in runs]
    assert weights[0].keys() == weights[1].keys() == load_file(plain / "final" / "adapter_model.safetensors").keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_vision_cache_is_refused_where_the_output_changes_or_is_shared(squares, tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        train(squares, tmp_path / "run", "--vision_cache", tmp_path / "cache")
    assert "the vision tower or its merger is trained" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train(squares, tmp_path / "run", "--vision_cache", tmp_path / "cache", "--augment", "crop")
    assert "vision_cache: augment changes the images" in capsys.readouterr().err
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    recipe = load_recipe(["--config", "tiny_nutrition_qlora", "--vision_cache", "cache"])
    with pytest.raises(UserError, match="vision_cache: cannot be used under FSDP"):
        setup.vision_cache_of(recipe.options)
