"""Pretrain the embedded tiny model from random weights, so that it can locate objects before it is fine-tuned.

    python -m assets.pretrain_tiny_model --work /tmp/pretrain --out assets/tiny_qwen3_vl

pretraining_images.py draws the images and defines the stages. The project's own collator produces text, coordinates and
labels, so fine-tuning starts from a model that knows its formats.

First the vision tower is trained alone, with a dense head on its output. For each image token, the head predicts the class
there and the edges of that object. A fine head does the same for each patch, before patches are merged into tokens. Then the
language model learns to answer, with a frozen tower. Finally both are trained together. The first two phases cost only a
fraction of a full step, and the language model starts from features that already locate objects. The dense head also predicts
where the next object of the answer is: a language model that has to learn this from answers alone names objects in random
order for a long time. Both heads are discarded at the end.

An interrupted run continues from --work, also on another machine or device. --minutes ends a run early, in the same way.
The learning rate and the batches depend on the step alone.
"""

import argparse
import csv
import itertools
import json
import math
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from assets.batched_tower import add_batched_tower
from assets.build_tiny_model import build_model
from assets.convolutional_start import start_as_convolution
from assets.dense_targets import (
    BACKGROUND,
    BEHIND,
    BIN,
    BINS,
    DENSE_PARTS,
    FINE_PARTS,
    NONE,
    edge_loss,
)
from assets.muon import Muon
from assets.pretraining_batches import SceneCollator, held_out, make_collator, make_processor, text_length
from assets.pretraining_images import STAGES, Stage, draw_size
from assets.pretraining_questions import FAMILY, make_record
from assets.pretraining_report import answer, held_out_results, metrics_of
from boxtune.batching.encoder import IGNORE_INDEX
from boxtune.models.patch_embedding import use_matrix_products

SIZES = {"hidden": 192, "layers": 5, "vision_layers": 8, "deepstack": 1, "spare_rows": 64}
EVAL_IMAGES = 64
# Divisor of the summed loss of an example's answer. It is a constant, so that a batch of short answers with a few easy tokens
# has less weight than a batch of long ones.
TOKENS_PER_ANSWER = 64
POOL = 4  # batches that are drawn together and sorted by length, to reduce padding; the steps of a stage are a multiple of it
TOTAL_STEPS = sum(stage.steps for stage in STAGES)
CURVE = (
    *("step", "seconds", "stage", "loss", "class_loss", "near_loss", "place_loss", "next_loss", "next_alike_loss"),
    *("end_loss", "fine_class_loss", "fine_near_loss", "f1", "mean_iou_gt"),
)


def stage_at(step: int) -> tuple[int, int]:
    """(index of the stage, completed steps of that stage). Raises ValueError after the last stage."""
    for i, stage in enumerate(STAGES):
        if step < stage.steps:
            return i, step
        step -= stage.steps
    raise ValueError(f"{step} steps after the end of the last stage")


class Pools(Dataset):
    """The batches of each pool. They depend on the seed and the pool's number only."""

    def __init__(self, seed: int, dtype: torch.dtype):
        self.seed = seed
        self.dtype = dtype  # of the pixels: that of the model's products, so that no more than necessary is moved
        self.collator = make_collator()

    def __getitem__(self, i: int) -> list[dict]:
        stage = STAGES[stage_at(i * POOL)[0]]
        asks, dense = stage.learns != "vision", stage.learns != "language"
        batches = [self.collator.collate(records, asks, dense) for records in self.draw(i, stage)]
        return [batch | {"pixel_values": batch["pixel_values"].to(self.dtype)} for batch in batches]

    def draw(self, i: int, stage: Stage) -> list[list[dict]]:
        """The records of POOL batches with images of one size, grouped by length; the batches are in random order."""
        first = i * POOL
        draw = random.Random(f"{self.seed}/{first}")
        size = draw_size(draw, stage)
        count = max(2, stage.pixels // (size[0] * size[1]))
        records = [make_record(f"{self.seed}/{first}/{i}", stage, size) for i in range(POOL * count)]
        if stage.learns != "vision":
            records.sort(key=text_length)
        batches = [records[i : i + count] for i in range(0, len(records), count)]
        draw.shuffle(batches)
        return batches


def batches_from(start: int, args: argparse.Namespace) -> Iterator[dict]:
    """The batches from step `start` on, in order. --workers processes draw them."""
    first = start // POOL
    pools = range(first, -(-TOTAL_STEPS // POOL))
    drawn = DataLoader(Pools(args.seed, args.dtype), batch_size=None, sampler=pools, num_workers=args.workers)
    batches = itertools.chain.from_iterable(drawn)
    return itertools.islice(batches, start - first * POOL, TOTAL_STEPS - first * POOL)


def to_device(batch: dict, device: torch.device) -> dict:
    """The batch on `device`, but for image_grid_thw, whose values the program itself reads."""
    moved = {}
    for key, value in batch.items():
        if isinstance(value, dict):
            moved[key] = to_device(value, device)
        else:
            moved[key] = value if key == "image_grid_thw" else value.to(device, non_blocking=True)
    return moved


def losses(model, heads: torch.nn.ModuleDict, batch: dict, dtype: torch.dtype, short: float) -> dict[str, torch.Tensor]:
    """The losses of a batch: those of the heads if it has their targets, and those of the answers if it has labels.

    "answer" is the summed cross-entropy of the answer tokens, divided by TOKENS_PER_ANSWER per example. `short` > 0 gives the
    tokens of shorter answers more weight (see Stage). "loss" is the mean over all answer tokens, for logging only. Layers compute
    in `dtype`, losses in float32.
    """
    with torch.autocast(batch["pixel_values"].device.type, dtype=dtype, enabled=dtype != torch.float32):
        return _losses(model, heads, batch, short)


def _losses(model, heads: torch.nn.ModuleDict, batch: dict, short: float) -> dict[str, torch.Tensor]:
    dense, fine = batch.pop("dense", None), batch.pop("fine", None)
    labels, found = batch.pop("labels", None), {}
    if labels is None:
        output = model.model.visual(batch["pixel_values"], grid_thw=batch["image_grid_thw"])
        seen = output.pooler_output
    else:
        output = model.model(**batch, output_hidden_states=dense is not None, use_cache=False)
        if dense is not None:  # the inputs of the first layer are the tower's outputs at the image tokens
            seen = output.hidden_states[0][batch["mm_token_type_ids"] == 1]
        supervised = labels[:, 1:] != IGNORE_INDEX
        logits = model.lm_head(output.last_hidden_state[:, :-1][supervised]).float()
        token_losses = functional.cross_entropy(logits, labels[:, 1:][supervised], reduction="none")
        lengths = supervised.sum(1)
        weights = (TOKENS_PER_ANSWER / lengths) ** short / (TOKENS_PER_ANSWER * len(labels))
        found = {
            "answer": (token_losses * weights.repeat_interleave(lengths)).sum(),
            "loss": token_losses.detach().mean(),
        }
    if fine is not None:
        patches = model.model.visual.merger.norm(output.last_hidden_state)
        scores, near = heads["fine"](patches).float().split(FINE_PARTS, dim=1)
        inside = fine["classes"] != BACKGROUND
        found["fine_class_loss"] = functional.cross_entropy(scores, fine["classes"])
        found["fine_near_loss"] = edge_loss(near[inside], fine["near"][inside] / BIN + BEHIND)
    if dense is None:
        return found
    scores, near, place, following, alike, ends = heads["dense"](seen).float().split(DENSE_PARTS, dim=1)
    inside = dense["classes"] != BACKGROUND
    goes_on, goes_on_alike = inside & (dense["next"][:, 0] != NONE), inside & (dense["next_alike"][:, 0] != NONE)
    return found | {
        "class_loss": functional.cross_entropy(scores, dense["classes"]),
        "near_loss": edge_loss(near[inside], dense["near"][inside] / BIN + BEHIND),
        "place_loss": edge_loss(place[inside], dense["place"][inside] * BINS),
        "next_loss": edge_loss(following[goes_on], dense["next"][goes_on] * BINS),
        "next_alike_loss": edge_loss(alike[goes_on_alike], dense["next_alike"][goes_on_alike] * BINS),
        "end_loss": functional.binary_cross_entropy_with_logits(ends[inside], dense["ends"][inside])
        if inside.any()
        else ends.sum() * 0,
    }


def learning_rate(step: int, warmup: int) -> float:
    """The learning rate as a fraction of its peak: linear between the stage's two values, after a linear warm-up."""
    i, done = stage_at(step)
    begin, end = STAGES[i].rate
    return min(1.0, (done + 1) / warmup) * (begin + (end - begin) * done / STAGES[i].steps)


def make_optimizers(model, heads, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of both towers' layers, AdamW for the rest.

    AdamW also trains the merger between the towers: orthogonalizing its wide matrix would cost as much as all others together.
    """
    layers = [*model.model.visual.blocks.parameters(), *model.model.language_model.layers.parameters()]
    matrices = [parameter for parameter in layers if parameter.ndim == 2]
    taken = {id(parameter) for parameter in matrices}
    others = [p for p in [*model.parameters(), *heads.parameters()] if id(p) not in taken]
    optimizers = [
        Muon(matrices, lr=args.learning_rate, weight_decay=0.02, dtype=args.dtype),
        torch.optim.AdamW(others, lr=args.adam_learning_rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def save_model(model, out: Path) -> None:
    """Write the model in bf16 with its processor, as build_tiny_model.build does, and replace `out` in one step."""
    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    processor = make_processor()
    copy = build_model(FAMILY, processor.tokenizer, **SIZES)
    copy.load_state_dict(model.state_dict())
    copy = copy.to(torch.bfloat16)
    copy.generation_config.do_sample = False
    copy.save_pretrained(fresh)
    processor.save_pretrained(fresh)
    for path in fresh.iterdir():
        path.chmod(0o644)
    if out.exists():
        if (out / "README.md").exists():
            shutil.copy(out / "README.md", fresh / "README.md")
        old = out.with_name(f".{out.name}.old")
        out.rename(old)
        fresh.rename(out)
        shutil.rmtree(old)
    else:
        fresh.rename(out)


def save_state(path: Path, **state) -> None:
    torch.save(state, path.with_suffix(".partial"))
    os.replace(path.with_suffix(".partial"), path)


def append_row(path: Path, **row) -> None:
    fresh = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CURVE)
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def make_model(collator: SceneCollator, seed: int) -> torch.nn.Module:
    """The model with random float32 weights, a vision tower that begins as a convolution, and fast layers; in training mode."""
    model = build_model(FAMILY, collator.tokenizer, seed=seed, **SIZES).float().train()
    start_as_convolution(model.model.visual)
    add_batched_tower(model)
    use_matrix_products(model)
    return model


def make_heads() -> torch.nn.ModuleDict:
    parts = {"dense": DENSE_PARTS, "fine": FINE_PARTS}
    return torch.nn.ModuleDict({name: torch.nn.Linear(SIZES["hidden"], sum(part)) for name, part in parts.items()})


def restore(path: Path, model, heads, optimizers: list[torch.optim.Optimizer]) -> tuple[int, float]:
    """Load the state of an interrupted run, if there is one, and return its (completed steps, seconds)."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True, map_location=model.device)
    model.load_state_dict(state["model"])
    heads.load_state_dict(state["heads"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    print(f"continuing from step {state['step']}", flush=True)
    return state["step"], state["seconds"]


def set_stage(model, stage: Stage) -> None:
    """Freeze or unfreeze the vision tower. The mergers belong to the language model."""
    visual = model.model.visual
    for part in (visual.patch_embed, visual.pos_embed, visual.blocks):
        part.requires_grad_(stage.learns != "language")


def update(
    model, heads, optimizers: list[torch.optim.Optimizer], batch: dict, rate: float, dtype: torch.dtype, short: float
) -> dict[str, torch.Tensor]:
    """One optimizer step at `rate` times the peak learning rates. Returns the losses that the curve shows.

    They stay on the model's device: reading them at each step would make a GPU wait for the program.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate
    found = losses(model, heads, batch, dtype, short)
    sum(value for key, value in found.items() if key != "loss").backward()
    torch.nn.utils.clip_grad_norm_([*model.parameters(), *heads.parameters()], 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return {key: value.detach() for key, value in found.items() if key in CURVE}


def train(args: argparse.Namespace) -> bool:
    """Train from the last saved state on. Returns whether the last stage is complete."""
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    collator = make_collator()
    model = make_model(collator, args.seed).to(args.device)
    heads = make_heads().to(args.device)
    optimizers = make_optimizers(model, heads, args)
    start, spent = restore(args.work / "state.pt", model, heads, optimizers)
    held = held_out(EVAL_IMAGES, args.seed)

    recent, began = [], time.monotonic() - spent
    limit = time.monotonic() + 60 * args.minutes
    for step, batch in enumerate(batches_from(start, args), start):
        i, _ = stage_at(step)
        set_stage(model, STAGES[i])
        asks = "labels" in batch
        batch = to_device(batch, args.device)
        rate = learning_rate(step, args.warmup)
        recent.append(update(model, heads, optimizers, batch, rate, args.dtype, STAGES[i].short))
        done = step + 1
        ends = done == TOTAL_STEPS or stage_at(done)[0] != i  # the next stage has other losses
        late = time.monotonic() > limit
        if done % args.log_every and not ends and not late:
            continue
        row = {
            "step": done,
            "seconds": round(time.monotonic() - began),
            "stage": i,
            **{key: round(sum(entry[key] for entry in recent).item() / len(recent), 4) for key in recent[0]},
        }
        recent = []
        if done % args.save_every == 0 or ends or late:
            save_model(model, args.work / "model")
            if asks:
                found = metrics_of(held, answer(model, collator, held))
                row |= {key: round(found[key] or 0.0, 4) for key in ("f1", "mean_iou_gt")}
        save_state(
            args.work / "state.pt",
            model=model.state_dict(),
            heads=heads.state_dict(),
            optimizers=[optimizer.state_dict() for optimizer in optimizers],
            step=done,
            seconds=time.monotonic() - began,
        )
        append_row(args.work / "curve.csv", **row)
        print(json.dumps(row), flush=True)
        if late and done < TOTAL_STEPS:
            return False
    return True


def report(args: argparse.Namespace) -> None:
    """Score the final model with its saved bf16 weights on held-out images, and write it to --out."""
    collator = make_collator()
    state = torch.load(args.work / "state.pt", weights_only=True, map_location="cpu")
    model = build_model(FAMILY, collator.tokenizer, **SIZES)
    model.load_state_dict({name: value.bfloat16().float() for name, value in state["model"].items()})
    result = {"step": state["step"], "seconds": round(state["seconds"])}
    result |= held_out_results(model, collator, args.seed + 1, args.report_images, args.talk_images)
    print(json.dumps(result, indent=1))
    (args.work / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    save_model(model, args.out)
    shutil.copy(args.work / "curve.csv", args.out.parent / "pretraining_curve.csv")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="state, curve and checkpoints")
    parser.add_argument("--out", type=Path, help="folder for the final model; without it, only --work is written")
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="peak learning rate of Muon")
    parser.add_argument("--adam-learning-rate", type=float, default=2e-3, help="peak learning rate of AdamW")
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--float32", action="store_true", help="for CPUs that emulate bfloat16 (without AMX or AVX-512 BF16)"
    )
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw images (a GPU keeps fifteen busy)")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="stop after this time; the same command continues"
    )
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--report-images", type=int, default=500)
    parser.add_argument("--talk-images", type=int, default=200, help="per kind of conversation other than boxes")
    args = parser.parse_args(argv)
    args.dtype = torch.float32 if args.float32 else torch.bfloat16
    return args


if __name__ == "__main__":
    arguments = parse_arguments()
    if train(arguments) and arguments.out:
        report(arguments)
