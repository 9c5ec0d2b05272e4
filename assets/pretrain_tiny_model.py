"""Pretrain the embedded tiny model from random weights, so that it can locate things before anyone fine-tunes it.

    python assets/pretrain_tiny_model.py --work /tmp/pretrain --out assets/tiny_qwen2_5_vl

Pictures come from pretraining_pictures.py; text, coordinates and labels from the project's own collator, so fine-tuning
finds what it expects. The loss is next-token cross entropy on the answer. A dense head that is thrown away at the end
helps: from a middle layer it reads, for each picture token, which class lies there and where that object's box is.
Without it the model spends most of its steps on a plateau. An interrupted run goes on from --work.
"""

import argparse
import csv
import json
import math
import os
import random
import shutil
import time
from pathlib import Path

import torch
from build_tiny_model import build_model, build_processor, build_tokenizer
from pretraining_pictures import CLASSES, STAGES, Scene, Stage, draw_scene
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from boxtune.collator import IGNORE_INDEX, GroundingCollator
from boxtune.generation import generate_answers
from boxtune.grounding import Grounding
from boxtune.predictions import make_prediction
from boxtune.prompts import FORMAT_SENTENCES, SYSTEM_PROMPT, question
from boxtune.scoring import score

FAMILY = "qwen2_5_vl"
SIZES = {"hidden": 192, "layers": 6, "vision_layers": 4}
DENSE_LAYER = 3  # of 6: the later half is left for reading the box out
DENSE_SCALE = 224  # pixels of the input that count as 1 in the dense head's coordinates
BACKGROUND = len(CLASSES)
EVAL_IMAGES = 64
HELD_OUT = "held out"
CURVE = ("step", "seconds", "stage", "loss", "dense_loss", "f1", "mean_iou_gt")


def choose_question(rng: random.Random, scene: Scene, stage: Stage) -> list[str]:
    """The class names to ask for: one that is there, all that are there with others mixed in, or one that is not."""
    present = sorted(set(scene.labels))
    absent = [name for name in CLASSES if name not in present]
    if not present or rng.random() < stage.absent:
        return [rng.choice(absent)]
    if rng.random() < 0.5:
        return [rng.choice(present)]
    asked = present + rng.sample(absent, rng.choice((0, 0, 1, 2)))
    rng.shuffle(asked)
    return asked


def make_record(name: str, stage: Stage) -> dict:
    """A prepared record with its picture in memory; `scene` keeps what was not asked for too. Depends on `name` alone."""
    rng = random.Random(name)
    scene = draw_scene(rng, stage)
    asked = choose_question(rng, scene, stage)
    objects = [pair for pair in zip(scene.boxes_xyxy, scene.labels, strict=True) if pair[1] in asked]
    objects.sort(key=lambda pair: pair[0][0] + pair[0][1])
    return {
        "id": name,
        "image": name,
        "width": scene.image.width,
        "height": scene.image.height,
        "objects": {
            "bbox": [box for box, _ in objects],
            "category": [label for _, label in objects],
            "ignore": [False] * len(objects),
        },
        "messages": [
            {"role": "user", "content": question(asked)},
            {"role": "assistant", "content": "<boxes>"},
        ],
        "scene": scene,
    }


def dense_targets(scene: Scene, input_size: tuple[int, int], cell: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(classes (T,), boxes (T, 4)) for the picture's T tokens in row order: the object that covers most of each.

    A token that no object covers by a quarter is background, except the one under an object's centre.
    """
    height, width = input_size
    rows, columns = height // cell, width // cell
    if not scene.labels:
        return torch.full((rows * columns,), BACKGROUND), torch.zeros(rows * columns, 4)
    scale = torch.tensor([width / scene.image.width, height / scene.image.height] * 2)
    boxes_xyxy = torch.tensor(scene.boxes_xyxy, dtype=torch.float32) * scale  # (N, 4), pixels of the input
    y, x = torch.meshgrid(torch.arange(rows) * cell, torch.arange(columns) * cell, indexing="ij")
    x0, y0, x1, y1 = boxes_xyxy.T[:, :, None]  # (N, 1) each
    x, y = x.reshape(1, -1), y.reshape(1, -1)
    covered = (torch.minimum(x1, x + cell) - torch.maximum(x0, x)).clamp(min=0)
    covered = covered * (torch.minimum(y1, y + cell) - torch.maximum(y0, y)).clamp(min=0) / cell**2  # (N, T)
    centre_x, centre_y = (x0 + x1) / 2, (y0 + y1) / 2
    covered += (x <= centre_x) & (centre_x < x + cell) & (y <= centre_y) & (centre_y < y + cell)
    share, owner = covered.max(0)
    classes = torch.tensor([CLASSES.index(label) for label in scene.labels])[owner]
    return torch.where(share >= 0.25, classes, BACKGROUND), boxes_xyxy[owner] / DENSE_SCALE


class SceneCollator(GroundingCollator):
    """The project's collator, with pictures from memory and targets for the dense head."""

    def load(self, record: dict):
        return record["scene"].image

    def collate(self, records: list[dict]) -> dict[str, torch.Tensor]:
        features, sizes = self.process_images(records)
        encoded = [self.encode(record, size) for record, size in zip(records, sizes, strict=True)]
        batch = self.batch([row.input_ids for row in encoded], features, side="right")
        batch["labels"] = self.pad([row.labels for row in encoded], IGNORE_INDEX, side="right")
        cell = self.processor.image_processor.patch_size * self.processor.image_processor.merge_size
        targets = [dense_targets(record["scene"], size, cell) for record, size in zip(records, sizes, strict=True)]
        batch["dense_classes"], batch["dense_boxes"] = (torch.cat(part) for part in zip(*targets, strict=True))
        return batch


def make_collator() -> SceneCollator:
    processor = build_processor(FAMILY, build_tokenizer())
    size = processor.image_processor.size
    grounding = Grounding(
        codec=FAMILY,
        system_prompt=SYSTEM_PROMPT,
        format_sentence=FORMAT_SENTENCES["json"],
        min_pixels=size["shortest_edge"],
        max_pixels=size["longest_edge"],
        max_new_tokens=96,
        base_model="",
    )
    return SceneCollator(processor, grounding, Path())


def stage_at(step: int, steps: int, ends: list[float]) -> int:
    return sum(step >= end * steps for end in ends)


class Batches(IterableDataset):
    """The batches from `start` on; batch n is the same however often the run was interrupted."""

    def __init__(self, args: argparse.Namespace, start: int):
        self.args, self.start = args, start

    def __iter__(self):
        collator = make_collator()
        for step in range(self.start, self.args.steps):
            stage = STAGES[stage_at(step, self.args.steps, self.args.stage_ends)]
            names = [f"{self.args.seed}/{step}/{i}" for i in range(self.args.batch_size)]
            yield collator.collate([make_record(name, stage) for name in names])


def losses(model, dense_head, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(cross entropy of the answer tokens, loss of the dense head)."""
    labels, classes, boxes = (batch.pop(key) for key in ("labels", "dense_classes", "dense_boxes"))
    output = model.model(**batch, output_hidden_states=True, use_cache=False)
    supervised = labels[:, 1:] != IGNORE_INDEX
    logits = model.lm_head(output.last_hidden_state[:, :-1][supervised])
    answer_loss = functional.cross_entropy(logits, labels[:, 1:][supervised])

    is_image = batch["mm_token_type_ids"] == 1
    dense = dense_head(output.hidden_states[DENSE_LAYER][is_image])  # (all picture tokens, classes + 1 + 4)
    dense_loss = functional.cross_entropy(dense[:, :-4], classes)
    inside = classes != BACKGROUND
    if inside.any():
        dense_loss = dense_loss + 4 * (dense[inside, -4:] - boxes[inside]).abs().mean()
    return answer_loss, dense_loss


def evaluate(model, collator: SceneCollator, records: list[dict]) -> dict:
    """`matching` of metrics.json for greedy answers to `records`."""
    model.eval()
    codec = collator.grounding.codec
    answers = {
        record["id"]: make_prediction(record, codec, size, text, seconds)
        for record, size, text, _, seconds in generate_answers(model, collator, records, batch_size=EVAL_IMAGES)
    }
    model.train()
    metrics = score(records, [answers[record["id"]] for record in records], list(CLASSES))
    return metrics | metrics["matching"]


def held_out(count: int, seed: int) -> list[dict]:
    return [make_record(f"{HELD_OUT} {seed}/{i}", STAGES[-1]) for i in range(count)]


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up, then a cosine down to a fiftieth."""
    warm = min(1.0, (step + 1) / args.warmup)
    return args.learning_rate * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * step / args.steps)) / 2)


def make_optimizer(model, dense_head, args: argparse.Namespace) -> torch.optim.AdamW:
    named = [*model.named_parameters(), *dense_head.named_parameters()]
    decayed = [p for _, p in named if p.ndim >= 2]
    plain = [p for _, p in named if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.98))


def save_model(model, out: Path) -> None:
    """The model in bf16 with its processor, as build_tiny_model.build writes it; swapped in as a whole."""
    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    tokenizer = build_tokenizer()
    copy = build_model(FAMILY, tokenizer, **SIZES)
    copy.load_state_dict(model.state_dict())
    copy = copy.to(torch.bfloat16)
    copy.generation_config.do_sample = False
    copy.save_pretrained(fresh)
    build_processor(FAMILY, tokenizer).save_pretrained(fresh)
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


def train(args: argparse.Namespace) -> None:
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    collator = make_collator()
    model = build_model(FAMILY, collator.tokenizer, seed=args.seed, **SIZES).float().train()
    dense_head = torch.nn.Linear(SIZES["hidden"], len(CLASSES) + 1 + 4)
    optimizer = make_optimizer(model, dense_head, args)
    start, spent, state_path, curve = 0, 0.0, args.work / "state.pt", args.work / "curve.csv"
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        dense_head.load_state_dict(state["dense_head"])
        optimizer.load_state_dict(state["optimizer"])
        start, spent = state["step"], state["seconds"]
        print(f"going on from step {start}", flush=True)
    held = held_out(EVAL_IMAGES, args.seed)

    recent, began = [], time.monotonic() - spent
    for step, batch in enumerate(DataLoader(Batches(args, start), batch_size=None, num_workers=1), start):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        answer_loss, dense_loss = losses(model, dense_head, batch)
        (answer_loss + args.dense_weight * dense_loss).backward()
        torch.nn.utils.clip_grad_norm_([*model.parameters(), *dense_head.parameters()], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent.append((answer_loss.item(), dense_loss.item()))
        done = step + 1
        if done % args.log_every and done != args.steps:
            continue
        row = {
            "step": done,
            "seconds": round(time.monotonic() - began),
            "stage": stage_at(step, args.steps, args.stage_ends),
            "loss": round(sum(a for a, _ in recent) / len(recent), 4),
            "dense_loss": round(sum(b for _, b in recent) / len(recent), 4),
        }
        recent = []
        if done % args.save_every == 0 or done == args.steps:
            found = evaluate(model, collator, held)
            row |= {key: round(found[key] or 0.0, 4) for key in ("f1", "mean_iou_gt")}
            save_model(model, args.work / "model")
        save_state(
            state_path,
            model=model.state_dict(),
            dense_head=dense_head.state_dict(),
            optimizer=optimizer.state_dict(),
            step=done,
            seconds=time.monotonic() - began,
        )
        append_row(curve, **row)
        print(json.dumps(row), flush=True)


def report(args: argparse.Namespace) -> None:
    """Score the finished model as it was saved, in bf16 weights, on pictures that training never saw; write it to --out."""
    collator = make_collator()
    state = torch.load(args.work / "state.pt", weights_only=True)
    model = build_model(FAMILY, collator.tokenizer, **SIZES)
    model.load_state_dict({name: value.bfloat16().float() for name, value in state["model"].items()})
    found = evaluate(model, collator, held_out(args.report_images, args.seed + 1))
    keys = ("f1", "precision", "recall", "mean_iou_tp", "mean_iou_gt", "AP", "AP50")
    result = {"step": state["step"], "seconds": round(state["seconds"]), "images": args.report_images}
    result |= {key: round(found[key], 4) for key in keys} | {"empty_images": found["empty_images"]}
    result["f1_per_class"] = {name: round(found["per_class"][name]["f1"] or 0.0, 3) for name in CLASSES}
    print(json.dumps(result, indent=1))
    (args.work / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    save_model(model, args.out)
    shutil.copy(args.work / "curve.csv", args.out.parent / "pretraining_curve.csv")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="state, curve and checkpoints")
    parser.add_argument("--out", type=Path, help="where the finished model goes; left out: only --work")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--stage-ends", type=float, nargs=2, default=[0.2, 0.45], help="shares of the steps")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--dense-weight", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=300)
    parser.add_argument("--report-images", type=int, default=500)
    arguments = parser.parse_args()
    train(arguments)
    if arguments.out:
        report(arguments)
