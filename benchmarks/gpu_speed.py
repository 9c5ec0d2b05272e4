"""Memory and speed on a GPU: training, merging and inference of the Hub's architectures with random weights.

    python -m benchmarks.gpu_speed [--only Qwen2.5] [--minutes 9] [--work DIR] [--toy]

Each architecture is written to --work in its published size (up to 18 GB, deleted afterwards) and trained for a few steps with
the recipe nutrition_qlora: in NF4 and bf16, padded and packed, and with FlashAttention if it is installed. The last adapter is
merged, and the merged model answers 32 images of about a million pixels in bf16 and in NF4. Random weights end no response, so
each has 64 tokens. The patch embedding is timed as convolution and as matrix product.

Each result is a line of benchmarks/gpu_speed.jsonl, which docs/results.md shows. Results that are there already are not measured
again, so that several calls of --minutes complete them. --toy uses tiny models, and runs on a CPU.
"""

import argparse
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, TrainerCallback

from assets.build_tiny_model import build
from benchmarks.architectures import ARCHITECTURES, MAX_PIXELS, write_model
from benchmarks.losses import make_trainer
from benchmarks.process import at_least_one
from benchmarks.results import GPU_SPEED, read_lines
from boxtune.common.environment import versions
from boxtune.common.errors import UserError, command
from boxtune.common.json_lines import to_json_line
from boxtune.data.dataset import read_records
from boxtune.data.images import load_image
from boxtune.data.records import image_path
from boxtune.families import FAMILIES
from boxtune.inference.detector import Detector
from boxtune.models.checkpoint import open_checkpoint
from boxtune.models.libraries import quiet_libraries
from boxtune.models.loading import best_attention
from boxtune.models.merging import merge_shards
from boxtune.models.patch_embedding import use_matrix_products
from boxtune.training.memory_plan import batch_of, cost_of, plan
from boxtune.training.recipe import load_recipe
from boxtune.training.run_info import device_name
from data_prep.command import prepare_from_words

RECIPE = "nutrition_qlora"
STEPS, BATCH_SIZE = 8, 4
IMAGES, RESPONSE_TOKENS = 32, 64
PRECISIONS = ("bfloat16", "nf4")
TRAINING = {
    "NF4": (),
    "NF4, packed": ("--collator", "packed"),
    "NF4, FlashAttention": ("--attn_implementation", "flash_attention_2"),
    "NF4, packed, FlashAttention": ("--collator", "packed", "--attn_implementation", "flash_attention_2"),
    "bf16": ("--load_in_4bit", "false"),
}
TOY = (
    *("--requires_gpu", "false", "--dtype", "float32", "--bf16", "false", "--max_pixels", "50176"),
    *("--dataloader_num_workers", "0"),
)


class StepTimes(TrainerCallback):
    """Seconds at the end of each step, with the GPU idle, and the tokens until then."""

    def __init__(self):
        self.ends: list[tuple[float, int]] = []

    def on_step_end(self, args, state, control, **kwargs):
        _wait()
        self.ends.append((time.perf_counter(), state.num_input_tokens_seen))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_gb() -> float | None:
    """The most memory that PyTorch held since the last call, in GB; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_reserved() / 1e9
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return round(peak, 2)


# ---- What is measured ----------------------------------------------------------------------------------------------------


def train(folder: Path, data: Path, options: tuple[str, ...], final: Path) -> dict:
    """Seconds and tokens of a step, peak memory, and what the memory plan expects. Saves the adapter to `final`."""
    words = [
        *("--model_name_or_path", folder, "--max_steps", STEPS, "--output_dir", final.parent, "--disable_tqdm", "true"),
        *("--per_device_train_batch_size", BATCH_SIZE, "--gradient_accumulation_steps", 1, "--eval_strategy", "no"),
        *("--save_strategy", "no", "--report_to", "none", "--include_num_input_tokens_seen", "true", *options),
    ]
    words = tuple(map(str, words))
    trainer = make_trainer(str(data), words, RECIPE)
    trainer.add_callback(times := StepTimes())
    trainer.train()
    trainer.save_model(str(final))
    seconds = [end - before for (before, _), (end, _) in zip(times.ends, times.ends[1:], strict=False)]
    (_, first), (_, last) = times.ends[0], times.ends[-1]
    recipe = load_recipe(["--config", RECIPE, "--data_dir", str(data), *words], needs_gpu=False)
    batch = batch_of(recipe, trainer.model.config, trainer.grounding.max_pixels)
    return {
        "step_seconds": round(statistics.median(seconds), 3),
        "tokens_per_second": round((last - first) / sum(seconds)),
        "planned_gb": round(sum(plan(cost_of(recipe, trainer.model.config), batch).values()) / 1e9, 2),
    }


def merge(final: Path, merged: Path) -> dict:
    merged.mkdir(parents=True)
    began = time.perf_counter()
    merge_shards(open_checkpoint(str(final)), merged)
    return {"seconds": round(time.perf_counter() - began, 1)}


def answer(folder: Path, images: list[Image.Image], precision: str) -> dict:
    """Seconds for one image alone, and images per second in batches of eight."""
    detector = Detector.from_pretrained(folder, precision=precision, max_new_tokens=RESPONSE_TOKENS)
    detector(images[0])
    began = time.perf_counter()
    detector(images[1])
    alone = time.perf_counter() - began
    began = time.perf_counter()
    detector(images, batch_size=8)
    return {"latency": round(alone, 2), "images_per_second": round(len(images) / (time.perf_counter() - began), 2)}


def embed_patches(folder: Path) -> dict:
    """Milliseconds for the patches of an image of a million pixels, as convolution and as matrix product, in bf16."""
    model = open_vision(folder)
    projection = model.patch_embed.proj
    patches = torch.randn(MAX_PIXELS // projection.kernel_size[-1] ** 2, *projection.weight.shape[1:]).to(
        projection.weight
    )
    found = {"convolution_ms": _milliseconds(model.patch_embed.proj, patches)}
    use_matrix_products(model)
    return found | {"product_ms": _milliseconds(model.patch_embed.proj, patches)}


def open_vision(folder: Path) -> torch.nn.Module:
    """The vision tower with a convolution, in bf16."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        return AutoModel.from_config(AutoConfig.from_pretrained(folder).vision_config, dtype=torch.bfloat16)


def _milliseconds(module: torch.nn.Module, patches: torch.Tensor) -> float:
    with torch.no_grad():
        module(patches)
        _wait()
        began = time.perf_counter()
        for _ in range(3):
            module(patches)
        _wait()
    return round((time.perf_counter() - began) / 3 * 1000, 2)


# ---- The run -------------------------------------------------------------------------------------------------------------


def ways(family: str) -> dict[str, tuple[str, ...]]:
    """The training ways that this architecture and machine can take."""
    has_flash = best_attention(torch.bfloat16) != "sdpa"
    return {
        way: options
        for way, options in TRAINING.items()
        if ("Flash" not in way or has_flash) and ("packed" not in way or not FAMILIES[family].has_linear_attention)
    }


def parts(name: str) -> list[str]:
    """All that is measured for an architecture."""
    training = [f"training: {way}" for way in ways(ARCHITECTURES[name][1].model_type)]
    return ["patch embedding", *training, "merge", *(f"inference: {precision}" for precision in PRECISIONS)]


def measurements(name: str, work: Path, toy: bool) -> Iterator[tuple[str, Callable[[], dict]]]:
    """(what is measured, a function that measures it) for one architecture, which is written first."""
    model_class, config = ARCHITECTURES[name]
    folder, data = work / name, work / "data"
    if toy:
        build(config.model_type, folder, hidden=64, layers=4, vision_layers=3)
    else:
        write_model(model_class, config, folder, "cuda")
        torch.cuda.empty_cache()
    if not data.is_dir():
        size = ["--size", "224" if toy else "1200"]
        prepare_from_words(["nutrition", "--out", str(data), "--num-images", str(2 * IMAGES), *size])
    images = [load_image(image_path(record, data)) for record in read_records(data, "train")[:IMAGES]]
    final, merged = work / f"{name}-run" / "final", work / f"{name}-merged"
    yield "patch embedding", lambda: embed_patches(folder)
    for way, options in ways(config.model_type).items():
        yield f"training: {way}", lambda options=options: train(folder, data, (*options, *(TOY if toy else ())), final)
    if not final.is_dir():  # all trainings were measured by an earlier call
        train(folder, data, TOY if toy else (), final)
    yield "merge", lambda: merge(final, merged)
    for precision in PRECISIONS:
        yield f"inference: {precision}", lambda precision=precision: answer(merged, images, precision)
    for path in (folder, final.parent, merged):
        shutil.rmtree(path, ignore_errors=True)


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="only architectures whose name contains TEXT")
    parser.add_argument(
        "--minutes", type=at_least_one, default=9, help="begin nothing after so many (default %(default)s)"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/gpu_speed"), metavar="DIR", help="folder for the models"
    )
    parser.add_argument("--out", type=Path, default=GPU_SPEED, metavar="FILE", help="file of the results")
    parser.add_argument("--toy", action="store_true", help="tiny models; also on a CPU")
    args = parser.parse_args(argv)
    quiet_libraries()
    if not args.toy and not torch.cuda.is_available():
        raise UserError("this needs a CUDA GPU, and this machine has none. Run it on one, or add --toy.")
    end = time.monotonic() + 60 * args.minutes
    done = {(line["model"], line["what"], line["device"]) for line in read_lines(args.out)}
    for name in ARCHITECTURES:
        if args.only not in name or all((name, what, device_name()) in done for what in parts(name)):
            continue
        for what, measure in measurements(name, args.work, args.toy):
            if (name, what, device_name()) in done:
                continue
            if time.monotonic() > end:
                print("the time is over; the same command measures the rest")
                return
            _peak_gb()
            try:
                found = measure()
            except torch.OutOfMemoryError:
                found = {"out_of_memory": True}
            line = {"model": name, "what": what, **found, "peak_gb": _peak_gb(), "device": device_name()}
            print(f"{name}, {what}: {found}, peak {line['peak_gb']} GB", flush=True)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            with open(args.out, "a", encoding="utf-8") as lines:
                lines.write(to_json_line(line | {"versions": versions()}))


if __name__ == "__main__":
    main()
