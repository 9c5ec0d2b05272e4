"""Do the guardrail probes tell broken models from a sound one?

    python -m benchmarks.guardrail_reliability --work DIR [--images 16] [--write]

The embedded model, on drawn document pages, and three adapters of it that are broken on purpose:

- always empty: trained to answer every question with an empty list
- always one box: trained to answer every question with the same box
- random vision: random weights added to every linear layer of the vision tower

For each probe of the suite, the table shows the value of the sound model (its base), measured twice, and those of the broken
ones. A value in bold is worse by more than 0.1. --work keeps the results of each model, so that an interrupted call goes on.
--write puts the table into docs/guardrails.md.
"""

import argparse
import dataclasses
import json
import random
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
from boxtune.common.errors import UserError, command
from boxtune.common.files import path_argument, write_whole
from boxtune.data.questions import turns_for
from boxtune.data.records import Record
from boxtune.data.unrelated_images import draw_unrelated
from boxtune.inference.guardrail_suite import Suite, read_suite
from boxtune.inference.guardrails import run_base_guardrails, run_guardrails
from boxtune.metrics.guardrail_rules import DOMAINS, HIGHER, LOWER, PROBES, Probe
from boxtune.models.config import codec_for
from boxtune.models.libraries import quiet_libraries
from boxtune.models.loading import load_model
from boxtune.models.lora import lora_config
from boxtune.models.placement import lora_targets
from boxtune.models.processors import load_processor

MODEL = "assets/tiny_qwen3_vl"
PAGE = DOCS / "guardrails.md"
CLASSES = [name for name in DOCUMENT_PARTS if name in ("title", "text", "table", "figure")]
PAGES = dataclasses.replace(HELD_OUT_STAGE, kinds=("page",))
BATCH = 16
EMPTY = "[]"
ONE_BOX = '[{"bbox_2d": [100, 100, 400, 300], "label": "text"}]'
BROKEN = ("always empty", "always one box", "random vision")
MODELS = ("sound", "sound again", *BROKEN)
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
        answer = EMPTY if kind == "always empty" else ONE_BOX
        teach(model, collator, suite, folder, answer)
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


def results_of(kind: str, suite: Suite, work: Path) -> tuple[dict[str, Probe], float]:
    """(the results of one of MODELS, the processor seconds that they took). Those that are in `work` are not measured again."""
    path = work / f"{kind.replace(' ', '_')}.json"
    if not path.is_file():
        records, collator = page_records(work, suite.images), make_collator()
        model = broken_model(kind if kind in BROKEN else "random vision", collator, suite, work)
        measure, began = run_guardrails if kind in BROKEN else run_base_guardrails, time.process_time()
        probes = measure(model, collator, suite, records, BATCH)
        result = {"seconds": time.process_time() - began, "suite": dataclasses.asdict(suite)}
        result["probes"] = {name: dataclasses.asdict(probe) for name, probe in probes.items()}
        write_whole(path, json.dumps(result))
    result = json.loads(path.read_text())
    if result["suite"] != dataclasses.asdict(suite):
        raise UserError(f"{path} is of another suite or number of images. Delete it, or use another --work.")
    return {name: Probe(**probe) for name, probe in result["probes"].items()}, result["seconds"]


def shown(name: str, probe: Probe, sound: Probe) -> str:
    text = "–" if probe.value is None else f"{probe.value:.2f}"
    return f"**{text}**" if is_worse(name, probe.value, sound.value) else text


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=at_least_one, default=16, help="pages, and unrelated images")
    parser.add_argument("--work", type=path_argument, required=True, metavar="DIR", help="folder of images and results")
    parser.add_argument("--write", action="store_true", help="put the table into docs/guardrails.md")
    args = parser.parse_args(argv)
    quiet_libraries()
    args.work.mkdir(parents=True, exist_ok=True)
    count = args.images
    suite = dataclasses.replace(read_suite("tiny"), images=count, unrelated_count=count, questions=2 * count)
    results = {kind: results_of(kind, suite, args.work) for kind in MODELS}
    sound, _ = results["sound"]
    rows = [
        [name, *(shown(name, probes[name], sound[name]) for probes, _ in results.values())]
        for name in (*PROBES, *DOMAINS)
    ]
    took = ", ".join(f"{kind} {seconds / (2 * count):.1f}" for kind, (_, seconds) in results.items())
    facts = f"{count} pages and {count} unrelated images. Processor seconds per image: {took}."
    table = f"{markdown_table(['probe', *MODELS], rows)}\n\n{facts}"
    print(table)
    if args.write:
        replace_table(PAGE, table, "reliability")


if __name__ == "__main__":
    main()
