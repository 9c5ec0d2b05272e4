"""The run of a sweep in which nothing is trained: python -m boxtune.sweeps.base_run --config recipes/NAME.yaml [--overlay …]

Writes OUTPUT_DIR/final with links to the weights of the base, and the prompt, classes, pixel budget, precision and limits that
a trained run of the recipe would have, so that evaluate.py asks the base exactly as it asks the others.
"""

import json
import sys
from pathlib import Path

import yaml

from boxtune.batching.lengths import answer_budget
from boxtune.common.errors import command
from boxtune.common.files import write_whole
from boxtune.data.dataset import read_info
from boxtune.models.config import load_config
from boxtune.models.libraries import quiet_libraries
from boxtune.models.merging import base_folder
from boxtune.models.processors import load_processor
from boxtune.training import setup_examples
from boxtune.training.examples import measure_splits, open_examples
from boxtune.training.recipe import Recipe, load_recipe

# Files of a model that its processor and grounding.json do not replace.
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json")


@command
def main(argv: list[str] | None = None) -> None:
    quiet_libraries()
    write_base(load_recipe(sys.argv[1:] if argv is None else argv, needs_gpu=False, purpose=__doc__))


def write_base(recipe: Recipe) -> None:
    options, model = recipe.options, recipe.model
    folder = Path(recipe.training.output_dir)

    # ---- How it is asked
    info = read_info(Path(options.data_dir))
    config = load_config(model.model_name_or_path, model.model_revision)
    processor = load_processor(model.model_name_or_path, model.model_revision, options.min_pixels, options.max_pixels)
    encoder = setup_examples.make_encoder(recipe, config, processor, info["classes"])
    splits, _ = open_examples(recipe)
    budget = answer_budget(measure_splits(splits, encoder, options.noise_objects)["train"])
    descriptions = info.get("descriptions", {})
    grounding = setup_examples.make_grounding(
        recipe, encoder, splits["train"], info["classes"], None, budget, descriptions
    )

    # ---- Links and files; grounding.json is written last, because with it the folder is complete
    final = folder / "final"
    final.mkdir(parents=True, exist_ok=True)
    source = base_folder(model.model_name_or_path, model.model_revision)
    for path in sorted(path for pattern in WEIGHT_FILES for path in source.glob(pattern)):
        link = final / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
    processor.save_pretrained(final)
    nothing = {"parameters": {"trainable": 0}, "modules": {"adapted": {}, "layers": {}, "whole": []}}
    for place in (folder, final):  # as trained runs have them
        write_whole(place / "recipe.yaml", yaml.safe_dump(recipe.values, allow_unicode=True))
    # Not in final/, because that would mean a model that this run trained, and evaluate.py would write its card.
    write_whole(folder / "run.json", json.dumps({"recipe": recipe.name, **nothing}, indent=2) + "\n")
    grounding.of_base().save(final)


if __name__ == "__main__":
    main()
