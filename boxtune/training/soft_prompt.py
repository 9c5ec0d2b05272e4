"""The soft prompt of a run: its first values, and its values in a checkpoint that a run continues from."""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from boxtune.answers.virtual_tokens import virtual_tokens
from boxtune.common.errors import UserError
from boxtune.models.loading import uses_fsdp
from boxtune.models.soft_prompt import (
    FILE_NAME,
    SoftPrompt,
    embeddings_of,
    random_embeddings,
    read_soft_prompt,
    soft_prompt_of,
    text_rows,
)
from boxtune.training.console import say
from boxtune.training.recipe import Recipe


def require_whole_embeddings(recipe: Recipe) -> None:
    """Raises UserError for a soft prompt under FSDP, which shards the embeddings."""
    if recipe.options.num_virtual_tokens and uses_fsdp():
        raise UserError(
            "num_virtual_tokens: a soft prompt needs the whole embeddings in each process, but FSDP shards them. Launch with "
            "recipes/accelerate/ddp.yaml or zero2.yaml, or omit it."
        )


def make_soft_prompt(recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> SoftPrompt | None:
    """The soft prompt with its first values; None if the recipe has none."""
    options = recipe.options
    count, text = options.num_virtual_tokens, options.prompt_tuning_init_text
    if not count:
        return None
    weight = model.get_input_embeddings().weight
    if options.prompt_tuning_init == "text":
        rows, cut_off = text_rows(tokenizer, text, count)
        if cut_off:
            say(
                f"note: prompt_tuning_init_text has {count + cut_off} tokens; the {count} virtual tokens start from the first "
                f"{count}, and {cut_off} are left out"
            )
        embeddings = embeddings_of(weight, rows)
    else:
        embeddings = random_embeddings(weight, count, recipe.training.seed)
    return SoftPrompt(tokenizer.convert_tokens_to_ids(virtual_tokens(count)), embeddings)


def load_soft_prompt(model: PreTrainedModel, folder: Path) -> None:
    """Set the soft prompt of `model` to that of a checkpoint. Raises UserError unless both have the same number of tokens."""
    soft_prompt = soft_prompt_of(model)
    if soft_prompt:
        soft_prompt.embeddings.data.copy_(read_soft_prompt(folder, *soft_prompt.embeddings.shape))
    elif (folder / FILE_NAME).is_file():
        raise UserError(
            f"{folder} has a soft prompt ({FILE_NAME}), but num_virtual_tokens is 0; set it as in the first run."
        )
