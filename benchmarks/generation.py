"""Images per second in batches and one at a time: python -m benchmarks.generation [--ckpt DIR] [--data DIR] [--images 64]

Both methods send the same questions about the same images to the same model, with greedy decoding and the same stops. One
uses boxtune's batches (boxtune/inference/generation.py), the other a plain loop over transformers' `generate`. They take
turns, so that other programs on the machine slow down both; the result is the median of the ratios. Without --ckpt: the
embedded base on held-out scenes of the kind it was pretrained on (seed 2).
"""

import argparse
import statistics
import time
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import StoppingCriteriaList

from benchmarks.confidence import EMBEDDED, EMBEDDED_FACTS, scenes
from benchmarks.process import at_least_one
from boxtune.batching.collator import DetectionCollator
from boxtune.common.errors import command
from boxtune.common.files import path_argument
from boxtune.data.dataset import read_info, read_records
from boxtune.inference.generation import LoopStop, generate_answers
from boxtune.models.checkpoint import NOTHING_STATED, load_checkpoint_model, open_checkpoint
from boxtune.models.generation_config import greedy_config
from boxtune.models.libraries import quiet_libraries

HELD_OUT_SEED = 2  # the first seed that neither the base's training nor its report used


@torch.no_grad()
def one_by_one(model, collator: DetectionCollator, records: list[dict]) -> dict[str, str]:
    """{id: text} from a loop over the images."""
    tokenizer, texts = collator.tokenizer, {}
    config = greedy_config(tokenizer, collator.grounding.max_new_tokens)
    for record in records:
        batch, _ = collator.collate_questions([record])
        length = batch["input_ids"].shape[1]
        stop = StoppingCriteriaList([LoopStop(length, 1, set(config.eos_token_id))])
        batch = {key: value.to(model.device) for key, value in batch.items()}
        ids = model.generate(**batch, generation_config=config, stopping_criteria=stop)[0, length:].tolist()
        texts[record["id"]] = tokenizer.decode(ids[:-1] if ids[-1] in config.eos_token_id else ids)
    return texts


def in_batches(model, collator: DetectionCollator, records: list[dict], size: int) -> dict[str, str]:
    """{id: text} from boxtune's generation with `size` images per batch."""
    return {answer["id"]: answer["text"] for answer in generate_answers(model, collator, records, size)}


def timed(ask) -> tuple[float, dict[str, str]]:
    """(seconds, texts). Without a GPU, the process's own CPU seconds, which other programs hardly affect."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    began = clock()
    texts = ask()
    return clock() - began, texts


def margin(model, collator: DetectionCollator, record: dict, texts: tuple[str, str]) -> float:
    """The difference in log-probability (nats) between the two tokens at which two responses diverge.

    It is the first response's token minus the second's, from one pass over the question and the common part of both.
    """
    a, b = ([*collator.tokenizer(text)["input_ids"], collator.tokenizer.eos_token_id] for text in texts)
    parting = next(i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1])
    features, (size,) = collator.process_images([record])
    row = collator.encoder.encode_question(record, size) + a[:parting]
    batch = {key: value.to(model.device) for key, value in collator.batch([row], features, side="right").items()}
    with torch.no_grad():
        log_probs = model(**batch).logits[0, -1].float().log_softmax(-1)
    return (log_probs[a[parting]] - log_probs[b[parting]]).item()


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default=EMBEDDED)
    parser.add_argument(
        "--data", type=path_argument, help="prepared dataset; default: the training dataset, or the scenes"
    )
    parser.add_argument("--split", default="validation")
    parser.add_argument(
        "--images", type=at_least_one, default=64, metavar="N", help="use the first N images of the split (default 64)"
    )
    parser.add_argument("--batch-sizes", type=at_least_one, nargs="+", default=[8, 16, 32])
    parser.add_argument("--turns", type=at_least_one, default=3)
    parser.add_argument("--max-new-tokens", type=at_least_one)
    args = parser.parse_args(argv)
    quiet_libraries()
    facts = EMBEDDED_FACTS if args.ckpt == EMBEDDED else NOTHING_STATED
    checkpoint = open_checkpoint(args.ckpt, facts, args.max_new_tokens)
    data_dir = args.data or Path(checkpoint.grounding.data_dir or scenes(HELD_OUT_SEED))
    records = read_records(data_dir, args.split)[: args.images]
    model = load_checkpoint_model(checkpoint)
    collator = DetectionCollator(checkpoint.processor, checkpoint.grounding, data_dir)
    ways = {"one at a time": partial(one_by_one, model, collator, records)}
    ways |= {f"batches of {size}": partial(in_batches, model, collator, records, size) for size in args.batch_sizes}
    one_by_one(model, collator, records[:2])  # warm-up
    seconds = {name: [] for name in ways}
    texts = {}
    for _ in range(args.turns):
        for name, ask in ways.items():
            took, texts[name] = timed(ask)
            seconds[name].append(took)
    (alone, slow), *batched = seconds.items()
    table = Table(f"{len(records)} images of {read_info(data_dir)['name']}", "images/s", "ratio", "identical responses")
    table.add_row(alone, f"{len(records) / statistics.median(slow):.2f}", "1", str(len(records)))
    margins = []
    for name, fast in batched:
        other = [record for record in records if texts[name][record["id"]] != texts[alone][record["id"]]]
        pairs = [(record, (texts[alone][record["id"]], texts[name][record["id"]])) for record in other]
        margins += [margin(model, collator, record, pair) for record, pair in pairs]
        ratio = statistics.median(a / b for a, b in zip(slow, fast, strict=True))
        speed = len(records) / statistics.median(fast)
        table.add_row(name, f"{speed:.2f}", f"{ratio:.2f}", str(len(records) - len(other)))
    Console().print(table)
    if margins:
        print(
            f"where responses diverge, the two tokens differ by at most {max(map(abs, margins)):.1e} in log-probability"
        )
    tokens = [len(collator.tokenizer(text)["input_ids"]) for text in texts[alone].values()]
    print(f"tokens per response: {statistics.mean(tokens):.0f} on average, {max(tokens)} at most")


if __name__ == "__main__":
    main()
