"""What fine-tuning changed of everything else: python -m benchmarks.language_kept RUN/final [...] [--images 60] [--write]

The embedded model was pretrained on conversations of several kinds (captions, yes/no questions, boxes after an example, images
that have nothing to do with the question). Each checkpoint and its base are asked the same held-out conversations of each kind
(seed SEED, which no other script uses):

- the share of right responses, and of responses that equal those of the base
- the perplexity of the right response, given the conversation before it

--write puts the table into docs/detection_head.md.
"""

import argparse
from collections.abc import Iterator

import torch
from peft import PeftModel

from assets.pretraining_batches import HELD_OUT, SceneCollator, held_out_record, make_collator
from assets.pretraining_questions import TALKS
from assets.pretraining_report import answer
from benchmarks.page_table import markdown_table, replace_table
from benchmarks.process import at_least_one
from benchmarks.results import DOCS
from boxtune.batching.encoder import IGNORE_INDEX
from boxtune.common.errors import command
from boxtune.inference.detector import Detector
from boxtune.models.libraries import quiet_libraries
from boxtune.models.soft_prompt import without_adapter

SEED = 5
BATCH = 16
PAGE = DOCS / "detection_head.md"


def records_of(talk: str, images: int) -> list[dict]:
    """Held-out conversations of one kind."""
    names = [f"{HELD_OUT} {SEED}/{talk} {i}" for i in range(images)]
    return [record for name in names if (record := held_out_record(name, talk))["talk"] == talk]


@torch.no_grad()
def perplexity(model: PeftModel, collator: SceneCollator, records: list[dict]) -> float:
    """Of all supervised tokens, the responses and their ends."""
    total, count = 0.0, 0
    model.eval()
    for start in range(0, len(records), BATCH):
        rows = records[start : start + BATCH]
        features, sizes = collator.process_images(rows)
        batch = collator.batch_conversations(rows, features, sizes)
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels, ignore_index=IGNORE_INDEX, reduction="sum"
        )
        total, count = total + losses.item(), count + int((labels != IGNORE_INDEX).sum())
    return float(torch.tensor(total / count).exp())


def rows_of(path: str, images: int) -> Iterator[list[str]]:
    """A table row for each kind of conversation."""
    model, collator = Detector.from_pretrained(path).model, make_collator()
    for talk in TALKS:
        records = records_of(talk, images)
        tuned = [prediction["text"] for prediction in answer(model, collator, records)]
        tuned_perplexity = perplexity(model, collator, records)
        with without_adapter(model):
            base = [prediction["text"] for prediction in answer(model, collator, records)]
            base_perplexity = perplexity(model, collator, records)
        expected = [record["messages"][-1]["content"] for record in records]
        right = [sum(a == b for a, b in zip(texts, expected, strict=True)) / len(records) for texts in (base, tuned)]
        same = sum(a == b for a, b in zip(base, tuned, strict=True)) / len(records)
        shown = ["", ""] if talk == "example" else [f"{share:.2f}" for share in right]  # its responses are boxes
        yield [talk, str(len(records)), *shown, f"{same:.2f}", f"{base_perplexity:.2f}", f"{tuned_perplexity:.2f}"]


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", metavar="RUN/final", help="adapters of the embedded model")
    parser.add_argument("--images", type=at_least_one, default=60, help="conversations of each kind")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/detection_head.md")
    args = parser.parse_args(argv)
    quiet_libraries()
    head = ["conversation", "images", "base right", "tuned right", "equal", "base perplexity", "tuned perplexity"]
    tables = [f"{path}\n\n{markdown_table(head, rows_of(path, args.images))}" for path in args.checkpoints]
    print("\n\n".join(tables))
    if args.write:
        replace_table(PAGE, "\n\n".join(tables), "language")


if __name__ == "__main__":
    main()
