"""Memory and speed of QLoRA training for the Hub's architectures, with random weights. Nothing is downloaded.

    python -m benchmarks.gpu_memory [--only Qwen2.5] [--work DIR]

Needs a CUDA GPU, and 20 GB of disk at --work. Each architecture is written there in its published size. train_sft.py then
trains it for a few steps with the recipe nutrition_qlora, at growing batch sizes until memory runs out. Each measurement adds
a line to benchmarks/gpu_memory.jsonl, which docs/results.md shows.
"""

import argparse
import ast
import copy
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from transformers import (
    PretrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from assets.build_tiny_model import build_processor, build_tokenizer
from boxtune.common.environment import versions
from boxtune.common.errors import UserError, command
from boxtune.common.json_lines import to_json_line
from boxtune.models.loading import best_attention
from boxtune.training.run_info import device_name
from data_prep.__main__ import main as prepare

ROOT = Path(__file__).resolve().parent.parent
OUT = Path(__file__).resolve().parent / "gpu_memory.jsonl"
BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
STEPS = 20
MAX_PIXELS = 1_003_520  # 1,280 tokens of 28 × 28
# Sizes from the Hub's config.json files. The ids of special tokens come from the small tokenizer.
ARCHITECTURES = {
    "Qwen2-VL-7B": (
        Qwen2VLForConditionalGeneration,
        Qwen2VLConfig(
            text_config={
                "vocab_size": 152064,
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "max_position_embeddings": 32768,
                "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
            },
            vision_config={"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": 3584},
            tie_word_embeddings=False,
        ),
    ),
    "Qwen2.5-VL-3B": (
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": 151936,
                "hidden_size": 2048,
                "intermediate_size": 11008,
                "num_hidden_layers": 36,
                "num_attention_heads": 16,
                "num_key_value_heads": 2,
                "max_position_embeddings": 32768,
                "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
                "tie_word_embeddings": True,
            },
            vision_config={
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 2048,
                "window_size": 112,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
            tie_word_embeddings=True,
        ),
    ),
    "Qwen3-VL-8B": (
        Qwen3VLForConditionalGeneration,
        Qwen3VLConfig(
            text_config={
                "vocab_size": 151936,
                "hidden_size": 4096,
                "intermediate_size": 12288,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "max_position_embeddings": 32768,
                "rope_parameters": {
                    "rope_type": "default",
                    "mrope_section": [24, 20, 20],
                    "rope_theta": 5e6,
                    "mrope_interleaved": True,
                },
            },
            vision_config={
                "depth": 27,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_heads": 16,
                "patch_size": 16,
                "out_hidden_size": 4096,
                "num_position_embeddings": 2304,
                "deepstack_visual_indexes": [8, 16, 24],
            },
            tie_word_embeddings=False,
        ),
    ),
}


def write_model(model_class, config: PretrainedConfig, folder: Path, device: str, max_pixels: int = MAX_PIXELS) -> None:
    """Write the architecture with random bf16 weights, and a processor with the small tokenizer, in the layout of a Hub model."""
    tokenizer, config = build_tokenizer(), copy.deepcopy(config)
    for key, token in (
        *(("image_token_id", "<|image_pad|>"), ("video_token_id", "<|video_pad|>")),
        *(("vision_start_token_id", "<|vision_start|>"), ("vision_end_token_id", "<|vision_end|>")),
    ):
        setattr(config, key, tokenizer.convert_tokens_to_ids(token))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model_class(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(before)
    build_processor(config.model_type, tokenizer, max_pixels).save_pretrained(folder)


def train(folder: Path, batch: int, *options: str, steps: int = STEPS) -> dict | None:
    """The trainer's final report, or None if the GPU runs out of memory. Raises UserError on any other failure."""
    words = [
        *("train_sft.py", "--config", "nutrition_qlora", "--model_name_or_path", folder, "--max_steps", steps),
        *("--data_format", "nutrition", "--data_dir", folder / "data"),
        *("--per_device_train_batch_size", batch, "--gradient_accumulation_steps", 1, "--eval_strategy", "no"),
        *("--save_strategy", "no", "--report_to", "none", "--logging_steps", 1000, "--disable_tqdm", "true"),
        *("--skip_memory_metrics", "false", "--eval_images", "0", "--include_num_input_tokens_seen", "true"),
        *("--output_dir", folder / "run", "--overwrite_output_dir", "true", *options),
    ]
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False)
    # Every library reports a full GPU in its own words.
    if re.search("out of (GPU )?memory|ALLOC_FAILED", done.stderr):
        return None
    if done.returncode:
        raise UserError(f"{' '.join(map(str, words))} failed:", done.stderr.splitlines()[-12:])
    return next(ast.literal_eval(line) for line in done.stdout.splitlines() if "'train_runtime'" in line)


def peak_gib(report: dict) -> float:
    """Peak memory allocated by PyTorch, from the differences that transformers' TrainerMemoryTracker reports."""
    parts = (
        "before_init_mem_gpu",
        "init_mem_gpu_alloc_delta",
        "train_mem_gpu_alloc_delta",
        "train_mem_gpu_peaked_delta",
    )
    return round(sum(int(report[part]) for part in parts) / 2**30, 2)


def tokens_per_second(report: dict) -> float:
    """Mean over the whole run, including the first steps, which warm up the GPU."""
    return float(report["num_input_tokens_seen"]) / float(report["train_runtime"])


def measure(name: str, attention: str, folder: Path) -> None:
    """Train at each of BATCHES until memory runs out, and append a line per batch size to OUT."""
    for batch in BATCHES:
        report = train(folder, batch, "--attn_implementation", attention)
        if report is None:
            return
        line = {
            "model": name,
            "attention": attention,
            "batch": batch,
            "peak_gib": peak_gib(report),
            "tokens_per_second": round(tokens_per_second(report)),
            "device": device_name(),
            "versions": versions(),
        }
        print(
            f"{name} {attention} batch size {batch}: {line['peak_gib']} GiB, {line['tokens_per_second']} tokens/s",
            flush=True,
        )
        with open(OUT, "a", encoding="utf-8") as lines:
            lines.write(to_json_line(line))


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="only architectures whose name contains TEXT")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/gpu_memory"), metavar="DIR", help="folder for the models"
    )
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise UserError(
            "measuring GPU memory needs a CUDA GPU, and this machine has none. Run it on a machine with a GPU."
        )
    for name, (model_class, config) in ARCHITECTURES.items():
        if args.only not in name:
            continue
        folder = args.work / name
        write_model(model_class, config, folder, "cuda")
        torch.cuda.empty_cache()  # leave the GPU to the training process
        # Images of about a million pixels, so that they fill the pixel budget.
        prepare(["nutrition", "--out", str(folder / "data"), "--num-images", "256", "--size", "1200", "--overwrite"])
        for attention in sorted({"sdpa", best_attention(torch.bfloat16)}):
            measure(name, attention, folder)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
