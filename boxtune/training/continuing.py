"""A run that starts from the adapter of an earlier run, with a new optimizer and schedule (recipe key `continue_from`).

Resuming (`resume_from_checkpoint`) is something else: it finishes an interrupted run.
"""

from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import load_peft_weights

from boxtune.answers.grounding import FILE_NAME, Grounding
from boxtune.common.errors import UserError, reading
from boxtune.common.problems import Problem
from boxtune.models.config import family_of
from boxtune.models.head_files import has_head, load_head
from boxtune.models.language_states import below_adapter
from boxtune.training.console import say
from boxtune.training.recipe import Recipe
from boxtune.training.soft_prompt import load_soft_prompt

REMEDY = (
    "Set these keys as in the earlier run (its recipe.yaml), or merge its adapter and start from the merged model "
    "(model_name_or_path)."
)


def check_start(recipe: Recipe) -> None:
    """Raises UserError if the adapter that the recipe continues from is missing, or has another base, rank or scale."""
    start = recipe.options.continue_from
    if start is None:
        return
    folder, lora = Path(start), recipe.model
    if not (folder / "adapter_config.json").is_file() or not (folder / FILE_NAME).is_file():
        final = folder / "final"
        hint = (
            f"did you mean {final}?"
            if (final / "adapter_config.json").is_file()
            else "name a run's final or checkpoint-N."
        )
        raise UserError(
            f"continue_from: {start} is not an adapter that boxtune trained; {hint} To start from a whole model, use "
            "model_name_or_path."
        )
    with reading(f"the adapter in {start}", "Use another checkpoint of the run."):
        config = PeftConfig.from_pretrained(folder)
    earlier = {"model_name_or_path": Grounding.load(folder).base_model}
    if isinstance(config, LoraConfig):
        earlier |= {"lora_r": config.r, "lora_alpha": config.lora_alpha, "use_rslora": config.use_rslora}
    wanted = {key: getattr(lora, key) for key in earlier}
    problems = [f"{key}: {earlier[key]} there, {wanted[key]} here" for key in earlier if earlier[key] != wanted[key]]
    if problems:
        raise UserError(f"continue_from: the adapter in {start} does not match this recipe. {REMEDY}", problems)


def start_from(model: torch.nn.Module, recipe: Recipe) -> None:
    """Give an adapted model the weights that the recipe continues from: LoRA, whole modules, soft prompt and detection head.

    Raises UserError that lists the weights that only one of the two has, or that differ in shape.
    """
    folder = Path(recipe.options.continue_from)
    base = below_adapter(model)
    with reading(f"the adapter in {folder}", "Use another checkpoint of the run."):
        weights = load_peft_weights(str(folder), device="cpu", key_mapping=family_of(base.config).renamed_paths)
    _check_weights(model, weights, folder)
    set_peft_model_state_dict(model, weights)
    load_soft_prompt(model, folder)
    if recipe.options.detection_head and has_head(folder):
        load_head(base, folder)
    elif recipe.options.detection_head:
        say(f"note: the detection head starts new, because {folder} has none")
    elif has_head(folder):
        say(f"note: the detection head of {folder} is left out, because the recipe has none")
    say(f"continues from {folder}: {len(weights)} tensors, with a new optimizer and schedule")


def _check_weights(model: PeftModel, weights: dict[str, torch.Tensor], folder: Path) -> None:
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    problems = [Problem(key, "only in the recipe") for key in sorted(expected.keys() - weights.keys())]
    problems += [Problem(key, "only in the earlier adapter") for key in sorted(weights.keys() - expected.keys())]
    for key in sorted(expected.keys() & weights.keys()):
        if expected[key].shape != weights[key].shape:
            shapes = f"shape {list(weights[key].shape)} there, {list(expected[key].shape)} here"
            problems.append(Problem(key, shapes))
        elif not weights[key].isfinite().all():
            problems.append(Problem(key, "not finite"))
    if problems:
        raise UserError(
            f"continue_from: {len(problems)} weights of the adapter in {folder} do not match this recipe's placement "
            f"(lora_parts, lora_target_modules, lora_llm_layers, lora_vision_blocks, lora_modules_to_save). {REMEDY}",
            problems,
        )
