"""Pretrain the embedded tiny model from random weights, so that it can locate things before anyone fine-tunes it.

    python assets/pretrain_tiny_model.py --work /tmp/pretrain --out assets/tiny_qwen3_vl

ImageFinder come from pretraining_pictures.py, which also says what learns for how long; text, coordinates and labels from the
project's own collator, so fine-tuning finds what it expects. First the vision tower learns alone, with a dense head on what
it gives: of each picture token the class there, and where the edges of that object lie. Then the language model learns to
answer from a tower that stands still, and at last both together. Each of the first two costs a fraction of a whole step, and
answers are learned from features that already say where things are. The head also says where the object lies that an answer
names next: a language model that has to find that out by itself, from nothing but answers, names objects at random for a
long time. The dense head is thrown away at the end.

Stopped, it goes on from --work.
"""

import argparse
import csv
import json
import os
import random
import shutil
import time
from pathlib import Path

import torch
from build_tiny_model import build_model, build_processor, build_tokenizer
from muon import Muon
from pretraining_objects import CLASSES
from pretraining_pictures import HELD_OUT_STAGE, STAGES, Scene, Stage, draw_scene
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from boxtune.answers.conversation import FORMAT_SENTENCES, SYSTEM_PROMPT
from boxtune.answers.grounding import Grounding
from boxtune.batching.collator import IGNORE_INDEX, DetectionCollator
from boxtune.common.files import write_whole
from boxtune.data.questions import question
from boxtune.data.records import in_order, raster_order
from boxtune.inference.generation import generate_answers
from boxtune.metrics.scoring import score

FAMILY = "qwen3_vl"
SIZES = {"hidden": 192, "layers": 5, "vision_layers": 7}
BACKGROUND = len(CLASSES)
EVAL_IMAGES = 64
MAX_NEW_TOKENS = 480  # fifteen boxes
# What the summed loss of an example's answer is divided by: a constant, so that a batch of short answers, each of a
# few certain tokens, weighs less than one of long answers.
TOKENS_PER_ANSWER = 64
POOL = 4  # batches drawn at a time and shared out by length, so that little is padded
HELD_OUT = "held out"
TOTAL_STEPS = sum(stage.steps for stage in STAGES)
CURVE = (
    *("step", "seconds", "stage", "loss", "class_loss", "near_loss", "place_loss", "next_loss", "next_alike_loss"),
    *("end_loss", "f1", "mean_iou_gt"),
)
# What the dense head says of each picture token: a class or none; how far off the edges of its object are, in bins of BIN
# pixels from BEHIND bins behind the token's middle on; where they lie, in bins across the picture; where those of the next
# object in raster order lie, and of the next of its class; and whether its object is the first, the first of its class, the
# last, the last of its class.
BINS, BIN, BEHIND = 50, 5, 4
DENSE_PARTS = (len(CLASSES) + 1, 4 * BINS, 4 * BINS, 4 * BINS, 4 * BINS, 4)
NONE = -1.0  # the edges of a next object that there is not


def choose_question(rng: random.Random, scene: Scene, stage: Stage) -> list[str]:
    """The class names to ask for: one that is there, all that are there with others mixed in, or one that is not."""
    present = sorted(set(scene.labels))
    absent = [name for name in CLASSES if name not in present]
    if not present or rng.random() < stage.absent:
        return [rng.choice(absent)]
    if rng.random() < 0.35:
        return [rng.choice(present)]
    asked = present + rng.sample(absent, rng.choice((0, 0, 1, 2)))
    rng.shuffle(asked)
    return asked


def choose_order(rng: random.Random, stage: Stage) -> str:
    """Mostly that of lines of print, else the largest first, else any (see boxtune.data.records.in_order)."""
    return rng.choices(("raster", "area", "random"), (stage.raster, (1 - stage.raster) / 2, (1 - stage.raster) / 2))[0]


def make_record(name: str, stage: Stage) -> dict:
    """A prepared record with its picture in memory; `scene` keeps what was not asked for too. Depends on `name` alone."""
    rng = random.Random(name)
    scene = draw_scene(rng, stage)
    asked = choose_question(rng, scene, stage)
    objects = [pair for pair in zip(scene.boxes_xyxy, scene.labels, strict=True) if pair[1] in asked]
    record = {
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
    return in_order(record, choose_order(rng, stage))


def dense_targets(scene: Scene, input_size: tuple[int, int], cell: int) -> dict[str, torch.Tensor]:
    """For the picture's T tokens in row order, of the object that covers most of each: `classes` (T,); `near` (T, 4), how
    far its left, top, right and bottom edge lie from the token's middle, outwards, in pixels of the input; `place` (T, 4),
    its box in shares of the picture; `next` and `next_alike` (T, 4), those of the object that follows it in raster order,
    of any class and of its own, or NONE; `ends` (T, 4), whether it is the first, the first of its class, the last, the last
    of its class.

    A token that no object covers by a quarter is background, except the one under an object's centre.
    """
    height, width = input_size
    rows, columns = height // cell, width // cell
    if not scene.labels:
        empty = torch.zeros(rows * columns, 4)
        classes = torch.full((rows * columns,), BACKGROUND)
        return {"classes": classes} | dict.fromkeys(("near", "place", "next", "next_alike", "ends"), empty)
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
    shares, middle = boxes_xyxy / torch.tensor([width, height] * 2), torch.cat([x, y, x, y]).T + cell / 2
    following, alike = successors(scene, same_class=False), successors(scene, same_class=True)
    with_none = torch.cat([shares, torch.full((1, 4), NONE)])  # a successor of -1 is its last row
    firsts = [[i not in chain for i in range(len(chain))] for chain in (following, alike)]
    lasts = [[i < 0 for i in chain] for chain in (following, alike)]
    return {
        "classes": torch.where(share >= 0.25, classes, BACKGROUND),
        "near": (boxes_xyxy[owner] - middle) * torch.tensor([-1, -1, 1, 1]),
        "place": shares[owner],
        "next": with_none[following][owner],
        "next_alike": with_none[alike][owner],
        "ends": torch.tensor([firsts[0], firsts[1], lasts[0], lasts[1]], dtype=torch.float32).T[owner],
    }


def successors(scene: Scene, same_class: bool) -> list[int]:
    """For each object the one that follows it in raster order, if asked only among those of its class; -1 behind the last."""
    following, last = [-1] * len(scene.labels), {}
    for i in raster_order(scene.boxes_xyxy):
        chain = scene.labels[i] if same_class else ""
        if chain in last:
            following[last[chain]] = i
        last[chain] = i
    return following


class SceneCollator(DetectionCollator):
    """The project's collator, with pictures from memory and targets for the dense head."""

    def load(self, record: dict):
        return record["scene"].image

    def collate(self, records: list[dict], asks: bool, dense: bool) -> dict:
        """ImageFinder; the conversations where the stage `asks`; the `dense` head's targets where it learns."""
        features, sizes = self.process_images(records)
        batch = self.batch_conversations(records, features, sizes) if asks else features
        if dense:
            cell = self.processor.image_processor.patch_size * self.processor.image_processor.merge_size
            targets = [dense_targets(record["scene"], size, cell) for record, size in zip(records, sizes, strict=True)]
            batch["dense"] = {key: torch.cat([target[key] for target in targets]) for key in targets[0]}
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
        max_new_tokens=MAX_NEW_TOKENS,
        base_model="",
    )
    return SceneCollator(processor, grounding, Path())


def stage_at(step: int) -> tuple[int, int]:
    """(which stage, steps done of it)."""
    for i, stage in enumerate(STAGES):
        if step < stage.steps:
            return i, step
        step -= stage.steps
    raise ValueError(f"step {step} past the last stage")


class Batches(IterableDataset):
    """The batches from `start` on; batch n is the same however often the run was interrupted."""

    def __init__(self, seed: int, start: int):
        self.seed, self.start = seed, start

    def __iter__(self):
        collator = make_collator()
        for first in range(self.start - self.start % POOL, TOTAL_STEPS, POOL):
            stage = STAGES[stage_at(first)[0]]
            for step, records in enumerate(self.pool(first, stage), first):
                if step >= self.start:
                    yield collator.collate(records, asks=stage.learns != "vision", dense=stage.learns != "language")

    def pool(self, first: int, stage: Stage) -> list[list[dict]]:
        """The records of POOL batches from step `first` on: short answers with short ones, the batches in any order."""
        records = [make_record(f"{self.seed}/{first}/{i}", stage) for i in range(POOL * stage.batch)]
        records.sort(key=lambda record: len(record["objects"]["bbox"]))
        batches = [records[i : i + stage.batch] for i in range(0, len(records), stage.batch)]
        random.Random(f"{self.seed}/{first}").shuffle(batches)
        return batches


class FlatPatchEmbed(torch.nn.Module):
    """The family's patch embedding, of the same weights, as the matrix product that it is.

    Each patch comes alone, so its convolution never slides; the backward of Conv3d takes a sixth of a CPU's whole step.
    """

    def __init__(self, proj: torch.nn.Conv3d):
        super().__init__()
        self.proj = proj

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return functional.linear(pixel_values, self.proj.weight.flatten(1), self.proj.bias)


def losses(model, dense_head: torch.nn.Linear, batch: dict) -> dict[str, torch.Tensor]:
    """Where the batch has them, the dense head's losses of classes and edges; of the answer tokens the cross entropy's sum
    over TOKENS_PER_ANSWER an example ("answer") and its mean ("loss")."""
    dense, labels, found = batch.pop("dense", None), batch.pop("labels", None), {}
    if labels is None:
        seen = model.model.visual(batch["pixel_values"], grid_thw=batch["image_grid_thw"]).pooler_output
    else:
        output = model.model(**batch, output_hidden_states=dense is not None, use_cache=False)
        if dense is not None:  # what goes into the first layer are, at the picture's tokens, the tower's own outputs
            seen = output.hidden_states[0][batch["mm_token_type_ids"] == 1]
        supervised = labels[:, 1:] != IGNORE_INDEX
        logits = model.lm_head(output.last_hidden_state[:, :-1][supervised])
        mean_loss = functional.cross_entropy(logits, labels[:, 1:][supervised])
        found = {"answer": mean_loss * supervised.sum() / (TOKENS_PER_ANSWER * len(labels)), "loss": mean_loss.detach()}
    if dense is None:
        return found
    scores, near, place, following, alike, ends = dense_head(seen).split(DENSE_PARTS, dim=1)
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


def edge_loss(scores: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Cross entropy of (N, 4 BINS) scores against a bell of one bin's width round each of (N, 4) edges, in bins."""
    distance = edges.reshape(-1, 1) - torch.arange(BINS) - 0.5
    targets = (-(distance**2) / 2).softmax(dim=1)
    return functional.cross_entropy(scores.reshape(-1, BINS), targets) if len(edges) else scores.sum()


def answer(model, collator: SceneCollator, records: list[dict]) -> list[dict]:
    """The predictions that greedy answers to `records` hold."""
    model.eval()
    answers = generate_answers(model, collator, records, batch_size=EVAL_IMAGES)
    predictions = {prediction["id"]: prediction for prediction in answers}
    model.train()
    return [predictions[record["id"]] for record in records]


def metrics_of(records: list[dict], predictions: list[dict]) -> dict:
    """metrics.json, its `matching` beside the rest."""
    metrics = score(records, predictions, list(CLASSES))
    return metrics | metrics["matching"]


def held_out(count: int, seed: int) -> list[dict]:
    return [make_record(f"{HELD_OUT} {seed}/{i}", HELD_OUT_STAGE) for i in range(count)]


def learning_rate(step: int, warmup: int) -> float:
    """The share of the peak rate: between the stage's two, linear, after a linear warm-up."""
    i, done = stage_at(step)
    begin, end = STAGES[i].rate
    return min(1.0, (done + 1) / warmup) * (begin + (end - begin) * done / STAGES[i].steps)


def make_optimizers(model, dense_head, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of both towers' layers, AdamW for the rest.

    The merger between the towers is left to AdamW: orthogonalising its wide matrix alone would cost as much as all others.
    """
    layers = [*model.model.visual.blocks.parameters(), *model.model.language_model.layers.parameters()]
    matrices = [parameter for parameter in layers if parameter.ndim == 2]
    taken = {id(parameter) for parameter in matrices}
    others = [p for p in [*model.parameters(), *dense_head.parameters()] if id(p) not in taken]
    optimizers = [
        Muon(matrices, lr=args.learning_rate, weight_decay=0.02),
        torch.optim.AdamW(others, lr=args.adam_learning_rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


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


def extend_curve(kept: Path, run: Path) -> None:
    """Put the rows of `run` behind those of `kept` from before it: a run that began at earlier weights has no others."""

    def lines(path: Path) -> list[str]:
        return path.read_bytes().decode().splitlines(keepends=True)

    def step(line: str) -> int:
        return int(line.split(",")[0])

    head, *rows = lines(run)
    before = [line for line in lines(kept)[1:] if step(line) < step(rows[0])] if kept.exists() else []
    write_whole(kept, "".join([head, *before, *rows]))


def train(args: argparse.Namespace) -> None:
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    collator = make_collator()
    model = build_model(FAMILY, collator.tokenizer, seed=args.seed, **SIZES).float().train()
    model.model.visual.patch_embed = FlatPatchEmbed(model.model.visual.patch_embed.proj)
    dense_head = torch.nn.Linear(SIZES["hidden"], sum(DENSE_PARTS))
    optimizers = make_optimizers(model, dense_head, args)
    start, spent, state_path, curve = 0, 0.0, args.work / "state.pt", args.work / "curve.csv"
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        dense_head.load_state_dict(state["dense_head"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        start, spent = state["step"], state["seconds"]
        print(f"going on from step {start}", flush=True)
    held = held_out(EVAL_IMAGES, args.seed)

    recent, began = [], time.monotonic() - spent
    for step, batch in enumerate(DataLoader(Batches(args.seed, start), batch_size=None, num_workers=1), start):
        i, _ = stage_at(step)
        visual = model.model.visual
        for part in (visual.patch_embed, visual.pos_embed, visual.blocks):  # the mergers belong to the language model
            part.requires_grad_(STAGES[i].learns != "language")
        share = learning_rate(step, args.warmup)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
        asks = "labels" in batch
        found = losses(model, dense_head, batch)
        sum(value for key, value in found.items() if key != "loss").backward()
        torch.nn.utils.clip_grad_norm_([*model.parameters(), *dense_head.parameters()], 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        recent.append({key: value.item() for key, value in found.items() if key in CURVE})
        done = step + 1
        ends = done == TOTAL_STEPS or stage_at(done)[0] != i  # the next stage has other losses
        if done % args.log_every and not ends:
            continue
        row = {
            "step": done,
            "seconds": round(time.monotonic() - began),
            "stage": i,
            **{key: round(sum(entry[key] for entry in recent) / len(recent), 4) for key in recent[0]},
        }
        recent = []
        if asks and (done % args.save_every == 0 or ends):
            found = metrics_of(held, answer(model, collator, held))
            row |= {key: round(found[key] or 0.0, 4) for key in ("f1", "mean_iou_gt")}
            save_model(model, args.work / "model")
        save_state(
            state_path,
            model=model.state_dict(),
            dense_head=dense_head.state_dict(),
            optimizers=[optimizer.state_dict() for optimizer in optimizers],
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
    records = held_out(args.report_images, args.seed + 1)
    predictions = answer(model, collator, records)
    found = metrics_of(records, predictions)
    keys = ("f1", "precision", "recall", "mean_iou_tp", "mean_iou_gt", "AP", "AP50")
    result = {"step": state["step"], "seconds": round(state["seconds"]), "images": args.report_images}
    result |= {key: round(found[key], 4) for key in keys} | {key: found[key] for key in ("empty_images", "parse")}
    result["f1_per_class"] = {name: round(found["per_class"][name]["f1"] or 0.0, 3) for name in CLASSES}
    result["f1_per_kind"] = {}
    for kind in sorted(set(HELD_OUT_STAGE.kinds)):
        pairs = [pair for pair in zip(records, predictions, strict=True) if pair[0]["scene"].kind == kind]
        result["f1_per_kind"][kind] = round(metrics_of(*zip(*pairs, strict=True))["f1"] or 0.0, 3)
    print(json.dumps(result, indent=1))
    (args.work / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    save_model(model, args.out)
    extend_curve(args.out.parent / "pretraining_curve.csv", args.work / "curve.csv")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="state, curve and checkpoints")
    parser.add_argument("--out", type=Path, help="where the finished model goes; left out: only --work")
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="Muon's")
    parser.add_argument("--adam-learning-rate", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--report-images", type=int, default=500)
    return parser.parse_args(argv)


if __name__ == "__main__":
    arguments = parse_arguments()
    train(arguments)
    if arguments.out:
        report(arguments)
