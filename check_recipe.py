"""Check a recipe before training: python check_recipe.py --config recipes/NAME.yaml [--overlay …] [--key value …]

Collates real batches, decodes the supervised tokens back to boxes, compares the boxes with the dataset, and writes check.html
into the run's folder. Exits with code 1 if an example is wrong or exceeds max_length. Keys that concern only training, such as
requires_gpu and overwrite_output_dir, have no effect here.
"""

import random
import sys
from pathlib import Path

from boxtune.common.spinning import limit_spinning

if __name__ == "__main__":  # before torch is imported
    limit_spinning()

from boxtune.batching.collator import DetectionCollator
from boxtune.batching.label_check import check_batch
from boxtune.batching.label_check_page import write_check_report
from boxtune.batching.lengths import answer_budget, as_dataset, describe_overlong, overlong, overlong_remedy
from boxtune.common.errors import command
from boxtune.common.problems import list_problems
from boxtune.data.dataset import read_info, read_splits
from boxtune.models.config import family_of, load_config
from boxtune.models.libraries import quiet_libraries
from boxtune.models.processors import load_processor
from boxtune.training import setup_examples
from boxtune.training.batches import require_packing
from boxtune.training.examples import longest_with_teachers, measure_splits, open_examples
from boxtune.training.irrelevant import with_irrelevant
from boxtune.training.memory_plan import batch_of, cost_of, show
from boxtune.training.recipe import load_recipe
from data_prep.pipeline.dataset_warnings import untrained_warnings
from data_prep.prepare_once import prepare_once

# Number of training examples to check, and how many of them are collated at once.
SAMPLES, BATCH_SIZE = 32, 8


@command
def main(argv: list[str] | None = None) -> None:
    quiet_libraries()

    # ---- Recipe and data
    recipe = load_recipe(sys.argv[1:] if argv is None else argv, needs_gpu=False, purpose=__doc__)
    options, model_options = recipe.options, recipe.model
    config = load_config(model_options.model_name_or_path, model_options.model_revision)
    require_packing(recipe, family_of(config))
    data_dir = Path(options.data_dir)
    prepare_once(data_dir, options.data_format, options.data_source, options.data_args, print)
    info = read_info(data_dir)
    splits, shards = open_examples(recipe)
    if shards:
        print(f"note: of {len(shards)} training images in shards, {len(splits['train'])} are checked")
    else:
        for warning in untrained_warnings(read_splits(data_dir), info["classes"]):
            print(f"warning: {warning}", file=sys.stderr)

    # ---- Lengths of all examples
    processor = load_processor(
        model_options.model_name_or_path, model_options.model_revision, options.min_pixels, options.max_pixels
    )
    encoder = setup_examples.make_encoder(recipe, config, processor, info["classes"])
    own = splits["train"]
    splits["train"] = with_irrelevant(recipe, own, encoder)
    lengths_by_split = measure_splits(splits, encoder, options.noise_objects)
    lengths_by_split["train"] = longest_with_teachers(recipe, lengths_by_split["train"])
    lengths = [entry for entries in lengths_by_split.values() for entry in entries]
    too_long = overlong(lengths, recipe.training.max_length)

    # ---- Labels of some training examples, decoded back to boxes
    budget = answer_budget(lengths_by_split["train"])
    grounding = setup_examples.make_grounding(recipe, encoder, own, info["classes"], None, budget)
    collator = DetectionCollator(processor, grounding, data_dir)
    sample = random.Random(recipe.training.seed).sample(splits["train"], min(SAMPLES, len(splits["train"])))
    if teachers := setup_examples.make_teachers(recipe, splits["train"]):
        sample = [teachers(record) for record in sample]
    examples = []
    for start in range(0, len(sample), BATCH_SIZE):
        records = sample[start : start + BATCH_SIZE]
        batch = collator(list(as_dataset(records, data_dir)))
        examples += check_batch(batch, records, processor, encoder.codec, grounding)
    wrong = [example for example in examples if example.problems]
    boxes = sum(example.count_boxes() for example in examples)

    # ---- Page
    changed = sum(info["problems"].get(kind, 0) for kind in ("bad_box", "no_box", "other_class", "clipped"))
    objects = sum(split["objects"] for split in info["splits"].values())
    page = Path(recipe.training.output_dir) / "check.html"
    facts = {
        "model": model_options.model_name_or_path,
        "codec": encoder.codec.name,
        "data": f"{data_dir} ({objects} objects; {changed} clipped or dropped during conversion)",
        "pixel budget": f"{grounding.min_pixels} to {grounding.max_pixels}",
        "max_length": str(recipe.training.max_length),
        "boxes checked": str(boxes),
        "boxes widened to one step": str(sum(entry.widened for entry in lengths)),
    }
    write_check_report(page, recipe.name, examples, lengths, recipe.training.max_length, facts, options.noise_objects)

    # ---- Result
    for example in wrong:
        print(f"wrong: {example.record['id']}: {example.problems[0]}", file=sys.stderr)
    if too_long:
        remedy = overlong_remedy(too_long, options.noise_objects)
        print(
            f"error: {len(too_long)} of {len(lengths)} examples exceed max_length {recipe.training.max_length}; {remedy}:",
            file=sys.stderr,
        )
        print("\n".join(list_problems(describe_overlong(too_long))), file=sys.stderr)
    if boxes or wrong:
        print(
            f"{len(examples) - len(wrong)} of {len(examples)} sampled examples decode back to the boxes of the prepared dataset"
        )
    else:
        print(f"no boxes were checked: none of the {len(examples)} sampled examples contains any")
    longest = max(entry.total for entry in lengths)
    print(f"{len(too_long)} of {len(lengths)} examples exceed max_length; the longest has {longest} tokens")
    print(f"report: {page}")
    longest_response = max(entry.answer for entry in lengths)
    show(cost_of(recipe, config), batch_of(recipe, config, grounding.max_pixels, longest, longest_response), None)
    if wrong or too_long:
        sys.exit(1)


if __name__ == "__main__":
    main()
