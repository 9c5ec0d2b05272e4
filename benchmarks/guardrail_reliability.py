"""Do the guardrail probes tell broken models from a sound one? python -m benchmarks.guardrail_reliability [--images 16] [--write]

The embedded model, on drawn document pages, and three adapters of it that are broken on purpose:

- always empty: trained to answer every question with an empty list
- always one box: trained to answer every question with the same box
- random vision: random weights added to every linear layer of the vision tower

For each probe of the suite, the table shows the value of the sound model (its base), measured twice, and those of the broken
ones. A value in bold is worse by more than 10 points, or by 10 % of the sound model's for boxes per image. --write puts it into
docs/guardrails.md.
"""

import argparse
import dataclasses
import random
import tempfile
import time
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model

from assets.pretraining_images import HELD_OUT_STAGE, draw_scene
from assets.pretraining_objects import DOCUMENT_PARTS
from benchmarks.page_table import markdown_table, replace_table
from benchmarks.process import at_least_one
from benchmarks.results import DOCS
from boxtune.answers.conversation import SYSTEM_PROMPT, format_sentence
from boxtune.answers.grounding import Grounding
from boxtune.batching.collator import DetectionCollator
from boxtune.common.errors import command
from boxtune.data.questions import turns_for
from boxtune.data.records import Record
from boxtune.data.unrelated_images import draw_unrelated
from boxtune.inference.guardrail_suite import Suite, read_suite
from boxtune.inference.guardrails import run_base_guardrails, run_guardrails
from boxtune.metrics.guardrail_rules import DOMAINS, HIGHER, LOWER, PROBES, Probe
from boxtune.models.config import codec_for
from boxtune.models.libraries import quiet_libraries
from boxtune.models.loading import load_model
from boxtune.models.lora import lora_config, lora_targets
from boxtune.models.processors import load_processor

MODEL = "assets/tiny_qwen3_vl"
PAGE = DOCS / "guardrails.md"
CLASSES = [name for name in DOCUMENT_PARTS if name in ("title", "text", "table", "figure")]
PAGES = dataclasses.replace(HELD_OUT_STAGE, kinds=("page",))
BATCH = 16
EMPTY = "[]"
ONE_BOX = '[{"bbox_2d": [100, 100, 400, 300], "label": "text"}]'
BROKEN = ("always empty", "always one box", "random vision")
MARGIN = 0.10


def page_records(folder: Path, count: int) -> list[Record]:
    """Records of `count` drawn pages, saved in `folder`. Each lacks some of CLASSES."""
    records: list[Record] = []
    for number in range(count):
        scene = draw_scene(random.Random(f"guardrails {number}"), PAGES, (192, 224))
        kept = [i for i, name in enumerate(scene.labels) if name in CLASSES]
        path = folder / f"page_{number}.png"
        scene.image.convert("RGB").save(path)
        records.append(
            {
                "id": path.stem,
                "image": str(path),
                "width": 192,
                "height": 224,
                "objects": {
                    "bbox": [list(map(float, scene.boxes_xyxy[i])) for i in kept],
                    "category": [scene.labels[i] for i in kept],
                    "ignore": [False] * len(kept),
                },
                "messages": turns_for(CLASSES),
            }
        )
    return records


def make_collator() -> DetectionCollator:
    """Prompts of the embedded model, and a small pixel budget."""
    processor = load_processor(MODEL, min_pixels=4096, max_pixels=50176)
    base = load_model(MODEL, dtype=torch.float32)
    codec = codec_for(base.config, "boxes")
    size = processor.image_processor.size
    grounding = Grounding(
        codec=codec.name,
        system_prompt=SYSTEM_PROMPT,
        format_sentence=format_sentence(codec),
        min_pixels=size["shortest_edge"],
        max_pixels=size["longest_edge"],
        max_new_tokens=160,
        base_model=MODEL,
        classes=CLASSES,
    )
    return DetectionCollator(processor, grounding, Path())


# ---- broken models -------------------------------------------------------------------------------------------------------


def broken_model(kind: str, collator: DetectionCollator, suite: Suite, folder: Path) -> PeftModel:
    """The embedded model with an adapter that is broken in one of the ways BROKEN."""
    torch.manual_seed(0)
    base = load_model(MODEL, dtype=torch.float32)
    parts = ["vision_attention", "vision_mlp"] if kind == "random vision" else ["language_attention", "language_mlp"]
    model = get_peft_model(base, lora_config(16, 16, 0.0, lora_targets(base, parts)))
    if kind == "random vision":
        randomize(model)
    else:
        teach(model, collator, suite, folder, EMPTY if kind == "always empty" else ONE_BOX)
    return model.eval()


def randomize(model: PeftModel) -> None:
    """Random adapter weights, so large that the layers below are drowned out."""
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=1.0)


def teach(
    model: PeftModel, collator: DetectionCollator, suite: Suite, folder: Path, answer: str, steps: int = 20
) -> None:
    """Train the adapter to answer questions of every kind with the same text."""
    records, optimizer = lessons(collator, suite, folder, answer), torch.optim.AdamW(model.parameters(), lr=1e-2)
    draw = random.Random(0)
    model.train()
    for _ in range(steps):
        rows = draw.sample(records, 4)
        features, sizes = collator.process_images(rows)
        loss = model(**collator.batch_conversations(rows, features, sizes)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def lessons(collator: DetectionCollator, suite: Suite, folder: Path, answer: str) -> list[Record]:
    """Pages and unrelated images that no probe shows, with questions of every kind and the same answer."""
    sentence = collator.grounding.format_sentence
    detect = [
        f"{turns_for(names)[0]['content']} {sentence}" for names in (CLASSES, CLASSES[:1], suite.untrained_classes)
    ]
    others = [suite.caption_prompt, *(suite.yes_no_question.format(name) for name in CLASSES)]
    asked = [*detect, *(f"<image>{text}" for text in others)]
    taught: list[Record] = []
    for number in range(16):
        image = draw_scene(random.Random(f"lesson {number}"), PAGES, (192, 224)).image.convert("RGB")
        if number % 3 == 0:
            image = draw_unrelated(f"lesson/{number}").resize((192, 224))
        path = folder / f"lesson_{number}.png"
        image.save(path)
        for i, text in enumerate(asked):
            turns = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
            facts = {"id": f"{path.stem} {i}", "image": str(path), "width": 192, "height": 224, "messages": turns}
            taught.append({"objects": {"bbox": [], "category": [], "ignore": []}, **facts})
    return taught


# ---- table ---------------------------------------------------------------------------------------------------------------


def is_worse(name: str, value: float | None, sound: float | None) -> bool:
    """Whether a value is worse than that of the sound model by more than the margin."""
    if value is None or sound is None or name not in (*HIGHER, *LOWER):
        return False
    return (value - sound if name in LOWER else sound - value) > MARGIN


def measured(
    suite: Suite, images: int
) -> tuple[dict[str, Probe], dict[str, Probe], dict[str, dict[str, Probe]], dict[str, float]]:
    """(the sound model's results, the same again, those of the broken models, the seconds that each model took)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records, collator = page_records(folder, images), make_collator()
        sound: list[dict[str, Probe]] = []
        broken, seconds = {}, {}
        for kind in BROKEN:
            model, began = broken_model(kind, collator, suite, folder), time.perf_counter()
            if len(sound) < 2:
                sound.append(run_base_guardrails(model, collator, suite, records, BATCH))
                seconds["sound"] = time.perf_counter() - began
                began = time.perf_counter()
            broken[kind] = run_guardrails(model, collator, suite, records, BATCH)
            seconds[kind] = time.perf_counter() - began
        return sound[0], sound[1], broken, seconds


def shown(name: str, probe: Probe, sound: Probe) -> str:
    text = "–" if probe.value is None else f"{probe.value:.2f}"
    return f"**{text}**" if is_worse(name, probe.value, sound.value) else text


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=at_least_one, default=16, help="pages, and unrelated images")
    parser.add_argument("--write", action="store_true", help="put the table into docs/guardrails.md")
    args = parser.parse_args(argv)
    quiet_libraries()
    suite = dataclasses.replace(
        read_suite("tiny"), images=args.images, unrelated_count=args.images, questions=2 * args.images
    )
    first, second, broken, seconds = measured(suite, args.images)
    head = ["probe", "sound", "sound again", *BROKEN]
    rows = [
        [name, *(shown(name, found[name], first[name]) for found in (first, second, *broken.values()))]
        for name in (*PROBES, *DOMAINS)
    ]
    took = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    table = f"{markdown_table(head, rows)}\n\n{args.images} pages and {args.images} unrelated images; {took}."
    print(table)
    if args.write:
        replace_table(PAGE, table, "reliability")


if __name__ == "__main__":
    main()
