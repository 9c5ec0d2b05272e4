"""The keys of a recipe that TRL's SFTConfig and ModelConfig lack."""

from dataclasses import dataclass, field, fields

from boxtune.answers.conversation import SYSTEM_PROMPT
from boxtune.batching.augmentation import OPERATIONS
from boxtune.families.family import LORA_PARTS
from boxtune.training.losses import BOX_LOSSES

GROUNDING_MODES = ("teacher_forced", "policy", "both")


@dataclass
class BoxtuneArguments:
    """What boxtune adds to TRL's SFTConfig and ModelConfig."""

    data_dir: str = field(default="", metadata={"help": "Prepared data set; made once when absent."})
    data_format: str | None = field(default=None, metadata={"help": "Converter that makes data_dir, as in data_prep."})
    data_source: str | None = field(default=None, metadata={"help": "What the converter reads: a path or a hub id."})
    data_args: list[str] | None = field(default=None, metadata={"help": "Further data_prep options, one item each."})
    answer: str = field(default="boxes", metadata={"help": "Answer form.", "choices": ["boxes", "click"]})
    codec: str | None = field(
        default=None,
        metadata={"help": "Box text of another family, such as qwen3_vl for 0…1000; default: the model's own."},
    )
    object_order: str = field(
        default="source",
        metadata={
            "help": "Order of the objects in an answer: as annotated, in lines of print, largest first, or drawn once.",
            "choices": ["source", "raster", "area", "random"],
        },
    )
    augment: list[str] | None = field(
        default=None,
        metadata={
            "help": "What changes a training picture, and its boxes with it, each time it is shown. flip mirrors print too.",
            "choices": list(OPERATIONS),
        },
    )
    negative_questions: float = field(
        default=0.0,
        metadata={
            "help": "Share of training examples that ask for one class which the picture lacks; as many ask for one it shows."
        },
    )
    prompt_variety: bool = field(
        default=False, metadata={"help": "Half of the training questions in other neutral words than the record's own."}
    )
    noise_objects: float = field(
        default=0.0,
        metadata={"help": "Wrong boxes, labelled noise, for each true one at the end of a training answer (Pix2Seq)."},
    )
    system_prompt: str = field(default=SYSTEM_PROMPT, metadata={"help": "System turn; saved with the checkpoint."})
    min_pixels: int | None = field(default=None, metadata={"help": "Smallest area of the resized picture."})
    max_pixels: int | None = field(default=None, metadata={"help": "Largest area of the resized picture."})
    lora_parts: list[str] | None = field(
        default=None,
        metadata={
            "help": f"What LoRA adapts, of {', '.join(LORA_PARTS)}; instead of lora_target_modules and lora_vision."
        },
    )
    lora_vision: bool = field(
        default=False, metadata={"help": "Beside lora_target_modules, adapt the linears of the vision tower's blocks."}
    )
    quantize_vision: bool = field(default=False, metadata={"help": "With load_in_4bit: the vision tower in NF4 too."})
    adapter_dtype: str = field(
        default="float32",
        metadata={"help": "What trained weights are kept in.", "choices": ["float32", "bfloat16"]},
    )
    overlong: str = field(
        default="error",
        metadata={"help": "Examples above max_length: stop, or drop and list them.", "choices": ["error", "drop"]},
    )
    eval_images: int = field(
        default=32,
        metadata={
            "help": "ImageFinder of validation that are answered at every evaluation, for eval_AP50 and its like; 0: never."
        },
    )
    iou_loss_weight: float = field(
        default=0.0, metadata={"help": "Weight of box_loss, beside the LM's loss; 0: plain fine-tuning."}
    )
    fp_loss_weight: float = field(
        default=0.0, metadata={"help": "Weight of stopping where no object follows (docs/losses.md)."}
    )
    fn_loss_weight: float = field(default=0.0, metadata={"help": "Weight of going on where another object follows."})
    box_loss: str = field(
        default="giou",
        metadata={
            "help": "What iou_loss_weight weighs: GIoU or L1 of the expected box, or W1 of its digits.",
            "choices": BOX_LOSSES,
        },
    )
    end_token_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the tokens that end answers in the LM's loss, against 1 of all others."},
    )
    grounding_mode: str = field(
        default="teacher_forced",
        metadata={
            "help": "Where the three weights apply: to the true answer's tokens, to the cost of sampled answers, or both.",
            "choices": GROUNDING_MODES,
        },
    )
    grounding_every: int = field(default=10, metadata={"help": "Steps from one sampling of answers to the next."})
    grounding_samples: int = field(default=4, metadata={"help": "Answers that are sampled to each question."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Evaluations without improvement before training stops."}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Delete the run that output_dir holds."})
    requires_gpu: bool = field(default=False, metadata={"help": "Stop at once where there is no CUDA GPU."})

    def __post_init__(self):
        # argparse checks the choices of what the command line says, not of what a recipe does.
        for f in fields(self):
            choices, value = f.metadata.get("choices"), getattr(self, f.name)
            items = value if isinstance(value, list) else [value]
            if choices and value is not None and not set(items) <= set(choices):
                raise ValueError(f"{f.name} must be one of {', '.join(choices)}, got {value!r}.")
