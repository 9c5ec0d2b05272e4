"""grounding.json, saved next to the weights: prompt, codec, pixel budget and base of a checkpoint."""

import dataclasses
import json
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path

from boxtune.answers.codecs import CODECS, Codec
from boxtune.answers.decoding import TEXT, Decoding
from boxtune.answers.virtual_tokens import split_soft_prompt
from boxtune.common.errors import UserError, reading
from boxtune.common.files import write_whole

FILE_NAME = "grounding.json"
# Fields that the file has only if they are used, so that earlier versions read the checkpoints of those that do not use them.
_LEFT_OUT_IF_EMPTY = ("candidates",)
PRECISIONS = ("nf4", "bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Grounding:
    """What a checkpoint must remember so that it is asked as it was trained: the content of grounding.json.

    codec: how boxes are written (boxtune/answers/codecs.py). system_prompt, format_sentence: what surrounds every question.
    min_pixels, max_pixels: bounds of the resized input's area.
    max_new_tokens: the length of the longest target response with some room to spare.
    base_model, base_revision, base_precision ("nf4" or a dtype), compute_dtype: the base and how it was loaded.
    quantized_vision: whether "nf4" included the vision tower.
    classes, questions: the dataset's classes, and every question wording that training used. descriptions: {class: what it
    means}, as the questions name it.
    calibration: [slope, intercept] that turn scores into hit rates (boxtune/answers/calibration.py); empty if validation had
    too few boxes to fit them. verify_calibration: the same for the scores of the verifier; evaluate.py --tune --verify fits it.
    seen_pixels, seen_aspects: 5th and 95th percentile of width × height and of width / height of the training images, tiles
    included, before resizing; empty in checkpoints of earlier versions.
    noise_label: label of the noise objects in target responses (noise.py); empty if there were none.
    irrelevant_answer: the text that the model writes instead of objects where the image has nothing to do with the question;
    empty if it was trained on none.
    candidates: the closed list of labels that the system prompt offers, and to which other labels are snapped; empty for none.
    head_threshold, both_threshold: least score of the objects of decoder "head" or "both", unless `decoding.score_threshold` is
    set; the one with the best F1 on validation.
    think_prefix: the (empty) think block that the chat template put before each response in training; None if unknown.
    decoding: how the checkpoint is asked and which objects are kept; chosen after training, except for `tiles` of the recipe.
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
    descriptions: dict[str, str] = field(default_factory=dict)
    questions: list[str] = field(default_factory=list)
    data_dir: str = ""
    calibration: list[float] = field(default_factory=list)
    verify_calibration: list[float] = field(default_factory=list)
    seen_pixels: list[float] = field(default_factory=list)
    seen_aspects: list[float] = field(default_factory=list)
    noise_label: str = ""
    irrelevant_answer: str = ""
    candidates: list[str] = field(default_factory=list)
    head_threshold: float = 0.0
    both_threshold: float = 0.0
    think_prefix: str | None = None
    decoding: Decoding = field(default_factory=Decoding)

    def get_codec(self) -> Codec:
        return CODECS[self.codec]

    def of_base(self) -> "Grounding":
        """How the base of the adapter is asked: without what only the adapter has, such as soft prompt, calibration and head."""
        return dataclasses.replace(
            self,
            system_prompt=split_soft_prompt(self.system_prompt)[1],
            calibration=[],
            verify_calibration=[],
            noise_label="",
            decoding=dataclasses.replace(self.decoding, score_threshold=0.0, decoder=TEXT, gate=0.0),
        )

    def save(self, directory: Path) -> None:
        content = dataclasses.asdict(self) | {"decoding": self.decoding.to_json()}
        for key in [key for key in _LEFT_OUT_IF_EMPTY if not content[key]]:
            del content[key]
        text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
        write_whole(Path(directory) / FILE_NAME, text)

    @classmethod
    def load(cls, directory: Path) -> "Grounding":
        """Raises UserError if the file is corrupt or from another version."""
        path = Path(directory) / FILE_NAME
        with reading(str(path), "Take it from the run's final/ folder."):
            content = json.loads(path.read_text(encoding="utf-8-sig"))
            decoding = Decoding(**content.pop("decoding", {}))  # checkpoints of earlier versions have none
            grounding = cls(**content, decoding=decoding)
        if problems := grounding.problems():
            raise UserError(f"{path} has values that cannot be used; take it from the run's final/ folder:", problems)
        return grounding

    def problems(self) -> list[str]:
        """One line for each field whose value has the wrong type or is out of range."""
        wrong = {
            key: f"must be {getattr(hint, '__name__', hint)}"
            for key, hint in typing.get_type_hints(type(self)).items()
            if not _is_a(getattr(self, key), hint)
        }
        counts = ("min_pixels", "max_pixels", "max_new_tokens")
        wrong |= {key: "must be at least 1" for key in counts if key not in wrong and getattr(self, key) < 1}
        for key in ("head_threshold", "both_threshold"):
            if key not in wrong and not 0 <= getattr(self, key) <= 1:
                wrong[key] = "must be from 0 to 1"
        choices = {"codec": tuple(CODECS), "base_precision": PRECISIONS, "compute_dtype": PRECISIONS[1:]}
        for key in ("calibration", "verify_calibration"):
            if key not in wrong and not _is_calibration(getattr(self, key)):
                wrong[key] = "must be empty, or a finite slope above 0 and an intercept"
        for key in ("seen_pixels", "seen_aspects"):
            if key not in wrong and not _is_range(getattr(self, key)):
                wrong[key] = "must be empty, or two finite numbers above 0 in ascending order"
        for key, known in choices.items():
            if getattr(self, key) not in known:
                wrong[key] = f"must be one of {', '.join(known)}"
        return [f"{key}: {getattr(self, key)!r} {reason}" for key, reason in wrong.items()] + [
            f"decoding.{problem}" for problem in self.decoding_problems()
        ]

    def decoding_problems(self) -> list[str]:
        """One line for each decode setting that cannot be used with this checkpoint."""
        found = self.decoding.problems()
        if found or self.codec not in CODECS or not self.get_codec().is_click:
            return found
        needs_boxes = {
            "suppress_iou": self.decoding.suppress_iou < 1,
            "tiles": self.decoding.tiles > 0,
            "verify": self.decoding.verify,
            "decoder": self.decoding.decoder != TEXT,
        }
        return [
            f"{name}: {getattr(self.decoding, name)!r} needs boxes, but this checkpoint responds with points"
            for name, is_set in needs_boxes.items()
            if is_set
        ]


def _is_calibration(values: list[float]) -> bool:
    return not values or (len(values) == 2 and values[0] > 0 and all(map(math.isfinite, values)))


def _is_range(values: list[float]) -> bool:
    return not values or (len(values) == 2 and 0 < values[0] <= values[1] < math.inf)


def _is_a(value: object, hint: object) -> bool:
    """Whether a JSON value has one of the types of Grounding: str, int, bool, dict, list[str], list[float] or str | None."""
    if hint == dict[str, str]:
        return isinstance(value, dict) and all(type(text) is str for text in value.values())
    if hint in (list[str], list[float]):
        kinds = (str,) if hint == list[str] else (int, float)
        return isinstance(value, list) and all(type(item) in kinds for item in value)
    return type(value) in (typing.get_args(hint) or (hint,))
