"""What a checkpoint must remember to be asked as it was taught: grounding.json, saved beside the weights."""

import dataclasses
import json
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path

from boxtune.answers.codecs import CODECS, Codec
from boxtune.common.errors import UserError, reading

FILE_NAME = "grounding.json"
PRECISIONS = ("nf4", "bfloat16", "float16", "float32")


@dataclass
class Grounding:
    """Prompt, codec, pixel budget and base of a checkpoint.

    `min_pixels` and `max_pixels` bound the area of the resized input; `questions` are the wordings that training asked;
    `max_new_tokens` holds the longest training answer with room to spare; `base_precision` is how the base was loaded
    ("nf4" or a dtype), and `quantized_vision` says whether "nf4" held for the vision tower too. `calibration` is [slope,
    intercept] that turn scores into shares of hits (boxtune/answers/calibration.py), empty where validation could not tell them.
    `seen_pixels` and `seen_aspects` are the 5th and 95th percentile of width × height and of width / height of training's
    pictures before they are resized; empty in checkpoints of earlier versions.
    `noise_label` is the label of objects that answers hold only to be dropped (noise.py), empty where training had
    none.
    """

    codec: str
    system_prompt: str
    format_sentence: str
    min_pixels: int
    max_pixels: int
    max_new_tokens: int
    base_model: str
    base_revision: str | None = None
    base_precision: str = "bfloat16"
    quantized_vision: bool = False
    compute_dtype: str = "bfloat16"
    classes: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    data_dir: str = ""
    calibration: list[float] = field(default_factory=list)
    seen_pixels: list[float] = field(default_factory=list)
    seen_aspects: list[float] = field(default_factory=list)
    noise_label: str = ""

    def get_codec(self) -> Codec:
        return CODECS[self.codec]

    def save(self, directory: Path) -> None:
        text = json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=2) + "\n"
        (Path(directory) / FILE_NAME).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> "Grounding":
        """Raises UserError where the file is torn or from another version."""
        path = Path(directory) / FILE_NAME
        with reading(str(path), "Take it from the run's final/ folder."):
            grounding = cls(**json.loads(path.read_text(encoding="utf-8-sig")))
        if problems := grounding.problems():
            raise UserError(f"{path} has values that cannot be used; take it from the run's final/ folder:", problems)
        return grounding

    def problems(self) -> list[str]:
        """Every field whose value is of the wrong type or out of range."""
        wrong = {
            key: f"must be {getattr(hint, '__name__', hint)}"
            for key, hint in typing.get_type_hints(type(self)).items()
            if not _is_a(getattr(self, key), hint)
        }
        counts = ("min_pixels", "max_pixels", "max_new_tokens")
        wrong |= {key: "must be at least 1" for key in counts if key not in wrong and getattr(self, key) < 1}
        choices = {"codec": tuple(CODECS), "base_precision": PRECISIONS, "compute_dtype": PRECISIONS[1:]}
        if "calibration" not in wrong and not _is_calibration(self.calibration):
            wrong["calibration"] = "must be empty, or a finite slope above 0 and an intercept"
        for key in ("seen_pixels", "seen_aspects"):
            if key not in wrong and not _is_range(getattr(self, key)):
                wrong[key] = "must be empty, or two finite numbers above 0, the lesser first"
        for key, known in choices.items():
            if getattr(self, key) not in known:
                wrong[key] = f"must be one of {', '.join(known)}"
        return [f"{key}: {getattr(self, key)!r} {reason}" for key, reason in wrong.items()]


def _is_calibration(values: list[float]) -> bool:
    return not values or (len(values) == 2 and values[0] > 0 and all(map(math.isfinite, values)))


def _is_range(values: list[float]) -> bool:
    return not values or (len(values) == 2 and 0 < values[0] <= values[1] < math.inf)


def _is_a(value, hint) -> bool:
    """Whether a JSON value is a str, int, bool, list[str], list[float] or str | None, the types that Grounding has."""
    if hint in (list[str], list[float]):
        kinds = (str,) if hint == list[str] else (int, float)
        return isinstance(value, list) and all(type(item) in kinds for item in value)
    return type(value) in (typing.get_args(hint) or (hint,))
