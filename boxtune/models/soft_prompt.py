"""The soft prompt: trained embeddings of virtual tokens, which begin the system prompt.

A virtual token is an added token of the tokenizer whose id is a spare row of the embedding matrix: the models pad their
vocabulary. The model is given ids as usual, so image positions keep their m-RoPE, which PEFT's own prompt tuning loses. The
embedding matrix stays as it is, so a head that is tied to it does too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from boxtune.answers.virtual_tokens import virtual_tokens
from boxtune.common.errors import UserError, reading
from boxtune.models.language_states import below_adapter

FILE_NAME = "prompt_embeddings.safetensors"
KEY = "prompt_embeddings"
REMEDY = "Use another checkpoint of the run."


class SoftPrompt(nn.Module):
    """Replaces the embeddings of `token_ids` (n) by the rows of `embeddings` (n, H), unless it is turned off."""

    def __init__(self, token_ids: list[int], embeddings: Tensor):
        super().__init__()
        self.embeddings = nn.Parameter(embeddings.detach().clone())
        self.register_buffer("token_ids", torch.tensor(token_ids), persistent=False)
        self.is_on = True

    def forward(self, input_ids: Tensor, embedded: Tensor) -> Tensor:
        """input_ids (N, T) and their embeddings (N, T, H) → (N, T, H)."""
        if not self.is_on:
            return embedded
        matches = input_ids[..., None] == self.token_ids
        rows = embedding(matches.int().argmax(-1), self.embeddings).to(embedded.dtype)
        return torch.where(matches.any(-1, keepdim=True), rows, embedded)


# ---- its tokens --------------------------------------------------------------------------------------------------------


def add_virtual_tokens(tokenizer: PreTrainedTokenizerBase, count: int, vocab_size: int) -> list[str]:
    """Add `count` virtual tokens to the tokenizer and return them; those that it has are used again.

    vocab_size: number of rows of the embedding matrix. Raises UserError if it has too few rows without a token.
    """
    tokens = virtual_tokens(count)
    new = [token for token in tokens if token not in tokenizer.get_vocab()]
    spare = vocab_size - 1 - max(tokenizer.get_vocab().values())
    if len(new) > spare:
        raise UserError(
            f"num_virtual_tokens: {count} virtual tokens need {len(new)} rows of the embedding matrix without a token, but this "
            f"model has {spare} ({vocab_size} rows). Lower num_virtual_tokens to {count - len(new) + spare}, or use a model with "
            "a larger vocabulary."
        )
    tokenizer.add_tokens(new, special_tokens=True)
    return tokens


def virtual_token_ids(tokenizer: PreTrainedTokenizerBase, tokens: list[str], source: str) -> list[int]:
    """Raises UserError if the tokenizer of `source` lacks virtual tokens of its prompt."""
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in tokens if token not in vocabulary]:
        raise UserError(
            f"the tokenizer of {source} lacks {len(missing)} of the {len(tokens)} virtual tokens of its soft prompt, such as "
            f"{missing[0]}. Take its files from another checkpoint of the run."
        )
    return [vocabulary[token] for token in tokens]


# ---- its first values ----------------------------------------------------------------------------------------------------


def text_rows(tokenizer: PreTrainedTokenizerBase, text: str, count: int) -> tuple[list[int], int]:
    """(ids of `count` tokens: those of the text, cut or repeated; the number of tokens that were cut off)."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [ids[i % len(ids)] for i in range(count)], max(0, len(ids) - count)


def embeddings_of(weight: Tensor, token_ids: list[int]) -> Tensor:
    """(n, H) float32 copies of rows of the embedding matrix `weight` (V, H)."""
    return weight.detach()[token_ids].float()


def random_embeddings(weight: Tensor, count: int, seed: int) -> Tensor:
    """(count, H) normal numbers with the standard deviation of the embedding matrix `weight` (V, H)."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, weight.shape[1], generator=draw) * weight.detach().std().float().cpu()


# ---- in a model ----------------------------------------------------------------------------------------------------------


def attach(model: PreTrainedModel | PeftModel, soft_prompt: SoftPrompt) -> None:
    """Make the soft prompt part of the model below its adapter, which must be there already: PEFT freezes what it finds."""
    base = below_adapter(model)
    layer = base.get_input_embeddings()
    base.soft_prompt = soft_prompt.to(layer.weight.device)
    layer.register_forward_hook(lambda module, args, embedded: soft_prompt(args[0], embedded))


def soft_prompt_of(model: nn.Module) -> SoftPrompt | None:
    return next((module for module in model.modules() if isinstance(module, SoftPrompt)), None)


@contextmanager
def without_adapter(model: PeftModel) -> Iterator[None]:
    """The base's own weights: without LoRA and without soft prompt."""
    soft_prompt = soft_prompt_of(model)
    with model.disable_adapter():
        if soft_prompt:
            soft_prompt.is_on = False
        try:
            yield
        finally:
            if soft_prompt:
                soft_prompt.is_on = True


# ---- its file ------------------------------------------------------------------------------------------------------------


def save_soft_prompt(soft_prompt: SoftPrompt, folder: Path) -> None:
    save_file({KEY: soft_prompt.embeddings.detach().cpu()}, folder / FILE_NAME, metadata={"format": "pt"})


def read_soft_prompt(folder: Path, count: int, width: int) -> Tensor:
    """The (count, width) embeddings of the `count` virtual tokens of an adapter.

    Raises UserError if the file is missing or corrupt, or does not hold finite numbers of this shape.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise UserError(f"{folder} has no {FILE_NAME}, although its prompt has {count} virtual tokens. {REMEDY}")
    with reading(str(path), REMEDY):
        weights = load_file(path)
    found = weights.get(KEY)
    if weights.keys() != {KEY} or found.shape != (count, width):
        shapes = {key: list(tensor.shape) for key, tensor in weights.items()}
        raise UserError(f"{path} must hold {KEY} of shape {[count, width]}, but holds {shapes}. {REMEDY}")
    if not found.isfinite().all():
        raise UserError(f"{path} holds numbers that are not finite. {REMEDY}")
    return found
