"""What enters the language model and what leaves it, for losses and heads that need more than its logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from boxtune.models.config import family_of


def below_adapter(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model below its adapter, if it has one: backbone and LM head."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


@dataclass(frozen=True)
class LanguageStates:
    """inputs: (N, T, H) embeddings of the tokens, where those of image tokens are the vision tower's output. last: (N, T, H) last
    hidden states."""

    inputs: Tensor
    last: Tensor


@contextmanager
def language_states(base: PreTrainedModel) -> Iterator[list[LanguageStates]]:
    """A list that holds the states of the latest forward pass inside the `with` block. `base`: the model below its adapters.

    TRL's fused LM head does not return them.
    """
    found: list[LanguageStates] = []

    def keep(module, args, kwargs, output) -> None:
        # Replaced, not appended: generation makes one pass per token, and all their states would fill the memory.
        found[:] = [LanguageStates(kwargs["inputs_embeds"], output.last_hidden_state)]

    language_model = base.base_model.get_submodule(family_of(base.config).language_model)
    hook = language_model.register_forward_hook(keep, with_kwargs=True)
    try:
        yield found
    finally:
        hook.remove()
