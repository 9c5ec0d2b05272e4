"""Decode settings: how a trained checkpoint is asked, and which objects of its responses are kept. See docs/decoding.md."""

from dataclasses import asdict, dataclass
from typing import Any

ASKS = ("all", "each")
TEXT, HEAD, BOTH = DECODERS = ("text", "head", "both")
# (least, greatest) of every number among the settings; vLLM accepts no greater penalty.
_RANGES = {"repetition_penalty": (1, 2), "suppress_iou": (0, 1), "score_threshold": (0, 1), "gate": (0, 1)}
# The smallest tile, in pixels. It is the largest size factor of a family: one image token.
LEAST_TILE = 32


@dataclass(frozen=True)
class Decoding:
    """The settings of a checkpoint. The defaults change nothing.

    repetition_penalty: makes tokens less likely that prompt or response already contain; 1 is none.
    suppress_iou: of two boxes with the same label and a greater IoU than this, only the one with the higher score is kept; 1
        keeps both.
    ask: "all" classes in one question, or "each" class in a question of its own.
    score_threshold: the least score of an object.
    tiles: side in pixels of the tiles that are asked about besides the whole image (boxtune/data/tiles.py); 0 is none.
    teachers: number of example images, with their answers, before each question (example_images.py).
    verify: whether each box is scored by the answer to a question about it (boxtune/answers/verifier.py).
    gate: the least probability of yes in the answer to the question whether the image shows one of the classes
        (boxtune/answers/gate.py); images below it get no boxes. 0 asks no such question.
    decoder: where the boxes come from: the generated "text", the detection "head", or "both" (boxtune/answers/head_merging.py).
    """

    repetition_penalty: float = 1.0
    suppress_iou: float = 1.0
    ask: str = "all"
    score_threshold: float = 0.0
    tiles: int = 0
    verify: bool = False
    teachers: int = 0
    decoder: str = TEXT
    gate: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The settings as files hold them. `teachers` and `gate` are left out if unused, so that earlier versions read them."""
        return {name: value for name, value in asdict(self).items() if name not in ("teachers", "gate") or value}

    def problems(self) -> list[str]:
        """One line for each setting that cannot be used."""
        found = []
        for name, (least, greatest) in _RANGES.items():
            value = getattr(self, name)
            if type(value) not in (int, float) or not least <= value <= greatest:
                found.append(f"{name}: {value!r} must be a number from {least} to {greatest}")
        if self.ask not in ASKS:
            found.append(f"ask: {self.ask!r} must be one of {', '.join(ASKS)}")
        if type(self.tiles) is not int or 0 != self.tiles < LEAST_TILE:
            found.append(
                f"tiles: {self.tiles!r} must be a whole number of pixels, {LEAST_TILE} or more, or 0 for no tiles"
            )
        if type(self.teachers) is not int or self.teachers < 0:
            found.append(f"teachers: {self.teachers!r} must be a whole number of example images, or 0 for none")
        if type(self.verify) is not bool:
            found.append(f"verify: {self.verify!r} must be true or false")
        if self.decoder not in DECODERS:
            found.append(f"decoder: {self.decoder!r} must be one of {', '.join(DECODERS)}")
        elif self.decoder != TEXT:
            text_only = {
                "ask": self.ask != "all",
                "tiles": self.tiles > 0,
                "verify": self.verify,
                "teachers": self.teachers > 0,
            }
            found += [f"{name}: needs decoder text, got {self.decoder}" for name, is_set in text_only.items() if is_set]
        return found
