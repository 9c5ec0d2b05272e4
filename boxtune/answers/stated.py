"""What a user states about a model that another program trained, and that therefore has no grounding.json."""

import argparse
import dataclasses
from dataclasses import dataclass

from boxtune.families import FAMILIES


@dataclass(frozen=True)
class Stated:
    """The facts that grounding.json would hold. None: not stated.

    family: the model family whose box format the responses have. system_prompt, format_sentence: what surrounded every
    question in training; may be empty. max_pixels: the pixel budget of training. base_model: the base of an adapter, if it
    names none that can be used; for a whole model, the model whose processor to use, if it has no processor files itself.
    """

    family: str | None = None
    system_prompt: str | None = None
    format_sentence: str | None = None
    max_pixels: int | None = None
    base_model: str | None = None

    def given(self) -> list[str]:
        """The names of the facts that are stated."""
        return [name for name, value in vars(self).items() if value is not None]


NAMES = tuple(field.name for field in dataclasses.fields(Stated))


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a command that state these facts."""
    group = parser.add_argument_group("for models that another program trained (docs/deploy.md)")
    group.add_argument("--family", choices=FAMILIES, help="family whose box format the responses have")
    group.add_argument("--system-prompt", metavar="TEXT", help="system prompt of its training, may be empty")
    group.add_argument("--format-sentence", metavar="TEXT", help="text after each question, may be empty")
    group.add_argument("--max-pixels", type=int, metavar="N", help="pixel budget of its training")
    group.add_argument("--base-model", metavar="ID", help="base of the adapter, if it names another one")


def stated_in(args: argparse.Namespace) -> Stated:
    """What the options of `add_options` state."""
    return Stated(**{name: getattr(args, name) for name in NAMES})
