"""What a checkpoint must remember to be asked as it was taught: grounding.json, saved beside the weights."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from boxtune.codecs import CODECS, Codec
from boxtune.errors import UserError

FILE_NAME = "grounding.json"


@dataclass
class Grounding:
    """Prompt, codec, pixel budget and base of a checkpoint.

    `min_pixels` and `max_pixels` bound the area of the resized input; `questions` are the wordings that training asked;
    `max_new_tokens` holds the longest training answer with room to spare; `base_precision` is how the base was loaded
    ("nf4" or a dtype).
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
    compute_dtype: str = "bfloat16"
    classes: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    data_dir: str = ""

    def get_codec(self) -> Codec:
        return CODECS[self.codec]

    def save(self, directory: Path) -> None:
        text = json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=2) + "\n"
        (Path(directory) / FILE_NAME).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> "Grounding":
        """Raises UserError where the file is torn or from another version."""
        path = Path(directory) / FILE_NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            grounding = cls(**values)
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error}). Take it from the run's final/ folder.") from None
        if grounding.codec not in CODECS:
            raise UserError(f"{path}: unknown codec {grounding.codec!r}; known: {', '.join(CODECS)}.")
        return grounding
