"""What is known of one family of models, as plain data. Each file beside this one describes one family."""

from collections.abc import Mapping
from dataclasses import dataclass

# The parts of a model that LoRA may adapt (recipe key `lora_parts`); a family says where each lies.
LORA_PARTS = ("language_attention", "language_mlp", "vision_attention", "vision_mlp", "merger")


@dataclass(frozen=True)
class Family:
    """The facts of one model family.

    name: `model_type` in config.json, and the name of the family's codec.
    hub_name: regular expression of how hub ids spell the family.
    syntax: how answers are written, the name of a module in boxtune/answers/syntaxes.
    coordinate_steps: coordinates run from 0 to this number across the image; None means pixels of the resized input.
    patch_size: side of a vision patch in pixels of the resized input. merge_size: patches along each side of an image token.
    vision_tower, lm_head: module paths in transformers 5. vision_blocks: the tower's transformer blocks, below the base model.
    lora_parts: {part: regular expression of the module path below which the part's linears lie}. The towers share names
    (Qwen2.5-VL's vision MLPs have gate_proj, up_proj and down_proj too), so each expression names its tower.
    weight_prefixes: (prefix of a weight's key in the hub's files, prefix of the module's path in transformers 5), in the order
    in which they are tried; keys that already have a path's prefix stay.
    llamafactory_template: LLaMA-Factory's name of the chat template that instruct models of the family use without thinking.
    """

    name: str
    hub_name: str
    syntax: str
    coordinate_steps: int | None
    patch_size: int
    merge_size: int
    vision_tower: str
    vision_blocks: str
    lm_head: str
    lora_parts: Mapping[str, str]
    weight_prefixes: tuple[tuple[str, str], ...]
    llamafactory_template: str

    @property
    def factor(self) -> int:
        """Pixels of the resized input along each side of an image token; its height and width are multiples of this."""
        return self.patch_size * self.merge_size

    def module_path(self, key: str) -> str:
        """The path of the module that a weight's key on disk belongs to."""
        name = key.removesuffix(".weight")
        if not name.startswith(tuple(path for _, path in self.weight_prefixes)):
            for prefix, path in self.weight_prefixes:
                if name.startswith(prefix):
                    return path + name.removeprefix(prefix)
        return name

    def unquantized_modules(self, quantize_vision: bool) -> list[str]:
        """Module names that NF4 skips: the head and, unless told otherwise, the vision tower.

        transformers 5 matches such a name from the start of a module's path or as its end, so a bare `visual` skips nothing.
        """
        return [self.lm_head] if quantize_vision else [self.vision_tower, self.lm_head]
