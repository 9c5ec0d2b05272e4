"""The facts about one model family, as plain data. Each of the other files in this folder describes one family."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

# The parts of a model that LoRA can adapt (recipe key `lora_parts`). Every family states where those that it has are.
LORA_PARTS = (
    "language_attention",
    "language_linear_attention",
    "language_mlp",
    "vision_attention",
    "vision_mlp",
    "merger",
)


@dataclass(frozen=True)
class Family:
    """The facts about one model family. Module paths are those of transformers 5.

    name: `model_type` in config.json, and the name of the family's codec.
    hub_name: regular expression that matches the family's name in Hub ids.
    syntax: how responses are written; the name of a module in boxtune/answers/syntaxes.
    coordinate_steps: coordinates run from 0 to this number across the image. None: they are pixels of the resized input.
    patch_size: side of a vision patch in pixels of the resized input. merge_size: patches along each side of an image token.
    vision_tower, lm_head: module paths. vision_blocks (the tower's transformer blocks), language_model: module paths below
    the base model.
    lora_parts: {part: regular expression of the module path below which the part's linear layers are}, in the order of
    LORA_PARTS, without the parts that no model of the family has. Both towers use the same names (Qwen2.5-VL's vision MLPs
    also have gate_proj, up_proj and down_proj), so each expression names its tower.
    weight_prefixes: (prefix of a key in the Hub's weight files, prefix of the module path), tried in this order. Keys that
    already start with the prefix of a module path are kept.
    llamafactory_template: name of LLaMA-Factory's chat template for the family's instruct models without thinking.
    thinks: whether the family's chat templates can think.
    unquantized: ends of the paths of further linear layers that NF4 skips. prefers_16_bits: whether NF4 is reported to cost it
    more quality than other families.
    experts: regular expression of the paths of modules whose weights are one 3-D parameter for all experts. Neither LoRA nor
    NF4 reaches them. None: there are none.
    """

    name: str
    hub_name: str
    syntax: str
    coordinate_steps: int | None
    patch_size: int
    merge_size: int
    vision_tower: str
    vision_blocks: str
    language_model: str
    lm_head: str
    lora_parts: Mapping[str, str]
    weight_prefixes: tuple[tuple[str, str], ...]
    llamafactory_template: str
    thinks: bool = False
    unquantized: tuple[str, ...] = ()
    prefers_16_bits: bool = False
    experts: str | None = None

    @property
    def factor(self) -> int:
        """Side of an image token in pixels of the resized input, whose height and width are multiples of it."""
        return self.patch_size * self.merge_size

    @property
    def has_linear_attention(self) -> bool:
        """Whether some layers carry a state from token to token, as gated delta nets do, instead of attending."""
        return "language_linear_attention" in self.lora_parts

    @property
    def token_embeddings(self) -> str:
        """The module path of the embedding matrix."""
        return f"model.{self.language_model}.embed_tokens"

    def module_path(self, key: str) -> str:
        """The path of the module to which a key of a weight file belongs."""
        name = key.removesuffix(".weight")
        if not name.startswith(tuple(path for _, path in self.weight_prefixes)):
            for prefix, path in self.weight_prefixes:
                if name.startswith(prefix):
                    return path + name.removeprefix(prefix)
        return name

    @property
    def renamed_paths(self) -> dict[str, str]:
        """{regular expression of the start of a module path in transformers before 4.52: its start today}."""
        today = [path for _, path in self.weight_prefixes]
        renamed = {}
        for prefix, path in self.weight_prefixes:
            ends = "|".join(re.escape(new.removeprefix(prefix)) for new in today if new.startswith(prefix))
            renamed[rf"^{re.escape(prefix)}{f'(?!{ends})' if ends else ''}"] = path
        return renamed

    def unquantized_modules(self, quantize_vision: bool) -> list[str]:
        """Module names that NF4 skips: the head, the family's own exceptions and, unless `quantize_vision`, the vision tower.

        transformers 5 matches such a name from the start of a module path or as its suffix, so `visual` alone skips nothing.
        """
        tower = [] if quantize_vision else [self.vision_tower]
        return [*tower, self.lm_head, *self.unquantized]
