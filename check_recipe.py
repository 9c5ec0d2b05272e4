"""Check a recipe before training: python check_recipe.py --config recipes/NAME.yaml [--overlay …] [--key value …]

Collates real batches, decodes the supervised tokens back to boxes, compares them with the source, and writes
check.html beside the run. Exit code 1 where an example is wrong or over max_length.
"""

import random
import sys
from pathlib import Path

from boxtune.batching.collator import DetectionCollator
from boxtune.batching.label_check import check_batch
from boxtune.batching.label_check_page import write_check_report
from boxtune.batching.lengths import as_dataset, describe_overlong, measure, overlong
from boxtune.common.errors import command
from boxtune.data.records import read_info
from boxtune.models.checkpoint import quiet_libraries
from boxtune.models.loading import load_config, load_processor
from boxtune.training.recipe import load_recipe
from train_sft import make_grounding, prepare_data, read_examples

SAMPLES, BATCH = 32, 8


@command
def main(argv: list[str] | None = None) -> None:
    quiet_libraries()
    recipe = load_recipe(sys.argv[1:] if argv is None else argv, needs_gpu=False)
    config = load_config(recipe.model.model_name_or_path, recipe.model.model_revision)
    data_dir = prepare_data(recipe)
    info = read_info(data_dir)
    splits = read_examples(data_dir, recipe.options.object_order)
    options = recipe.options
    processor = load_processor(
        recipe.model.model_name_or_path, recipe.model.model_revision, options.min_pixels, options.max_pixels
    )
    grounding = make_grounding(recipe, config, processor, splits, info["classes"])
    collator = DetectionCollator(processor, grounding, data_dir)
    codec = grounding.get_codec()

    noise = {"train": options.noise_objects}
    lengths = [
        entry for split, records in splits.items() for entry in measure(records, collator, noise.get(split, 0.0))
    ]
    too_long = overlong(lengths, recipe.training.max_length)
    drawn = random.Random(recipe.training.seed).sample(splits["train"], min(SAMPLES, len(splits["train"])))
    examples = []
    for start in range(0, len(drawn), BATCH):
        records = drawn[start : start + BATCH]
        batch = collator(list(as_dataset(records, data_dir)))
        examples += check_batch(batch, records, processor, codec, grounding)

    faulty = [example for example in examples if example.problems]
    boxes = sum(example.count_boxes() for example in examples)
    dropped = sum(info["problems"].get(kind, 0) for kind in ("bad_box", "no_box", "other_class", "clipped"))
    objects = sum(split["objects"] for split in info["splits"].values())
    path = Path(recipe.training.output_dir) / "check.html"
    facts = {
        "model": recipe.model.model_name_or_path,
        "codec": codec.name,
        "data": f"{data_dir} ({objects} objects; {dropped} clipped or dropped at conversion)",
        "pixel budget": f"{grounding.min_pixels} to {grounding.max_pixels}",
        "max_length": str(recipe.training.max_length),
        "boxes checked": str(boxes),
        "boxes widened to one step": str(sum(entry.widened for entry in lengths)),
    }
    write_check_report(path, recipe.name, examples, lengths, recipe.training.max_length, facts)
    for example in faulty:
        print(f"wrong: {example.record['id']}: {example.problems[0]}", file=sys.stderr)
    for line in describe_overlong(too_long):
        print(f"over max_length {recipe.training.max_length}: {line}", file=sys.stderr)
    longest = max(entry.total for entry in lengths)
    if boxes or faulty:
        print(f"{len(examples) - len(faulty)} of {len(examples)} sampled examples decode back to their source boxes")
    else:
        print(f"no box was checked: none of the {len(examples)} sampled examples holds one")
    print(f"{len(too_long)} of {len(lengths)} examples exceed max_length; the longest has {longest} tokens")
    print(f"look at: {path}")
    if faulty or too_long:
        sys.exit(1)


if __name__ == "__main__":
    main()
