"""The recipe keys that boxtune adds to TRL's SFTConfig and ModelConfig."""

from dataclasses import dataclass, field, fields

from boxtune.answers.conversation import SYSTEM_PROMPT
from boxtune.batching.augmentation import OPERATIONS
from boxtune.families.family import LORA_PARTS
from boxtune.inference.guardrail_suite import DEFAULT_SUITE
from boxtune.metrics.guardrail_rules import HALLUCINATION_RISE, PASS_DROP
from boxtune.models.lora import BIASES
from boxtune.training.guardrail_stops import StopLimits
from boxtune.training.losses import BOX_LOSSES

# As the only candidate: the classes of the data.
CLASSES = "true"
COLLATORS = ("padded", "packed", "auto")
GROUNDING_MODES = ("teacher_forced", "policy", "both")


@dataclass
class BoxtuneArguments:
    """The recipe keys that boxtune adds to those of TRL. Raises ValueError for a value outside a key's choices."""

    data_dir: str = field(
        default="",
        metadata={
            "help": "Folder of the prepared dataset (data/NAME if the recipe does not set it); created if it does not exist."
        },
    )
    data_format: str | None = field(
        default=None, metadata={"help": "Converter that creates data_dir: a FORMAT of data_prep."}
    )
    data_source: str | None = field(
        default=None, metadata={"help": "Source that the converter reads: a path or a Hub id."}
    )
    data_args: list[str] | None = field(
        default=None, metadata={"help": "More data_prep options, one list item per argument."}
    )
    answer: str = field(
        default="boxes",
        metadata={
            "help": "What the model writes: boxes, or one click (center point) per object.",
            "choices": ["boxes", "click"],
        },
    )
    codec: str | None = field(
        default=None,
        metadata={
            "help": "Box format of another family, such as qwen3_vl for coordinates 0…1000; default: the model's own."
        },
    )
    captions: bool = field(
        default=False,
        metadata={
            "help": "Also train on the objects' captions, the column `caption`; for families that answer in JSON."
        },
    )
    object_order: str = field(
        default="source",
        metadata={
            "help": "Order of objects in an answer: as annotated, in reading order, largest first, or one fixed random order.",
            "choices": ["source", "raster", "area", "random"],
        },
    )
    train_images: int = field(
        default=0,
        metadata={"help": "Train on a fixed random sample of at most this many images, as for a first try; 0 for all."},
    )
    vision_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder for the outputs of a frozen vision tower, so that each image passes it once. Runs may share it."
        },
    )
    vision_cache_gb: float = field(default=20.0, metadata={"help": "The most that vision_cache may hold, in GB."})
    augment: list[str] | None = field(
        default=None,
        metadata={
            "help": "Random changes to training images and their boxes, different in each epoch. flip also mirrors text.",
            "choices": list(OPERATIONS),
        },
    )
    tiles: int = field(
        default=0,
        metadata={
            "help": "Also train on overlapping tiles of each training image, with this side in pixels, and evaluate with them; "
            "0 for none."
        },
    )
    negative_questions: float = field(
        default=0.0,
        metadata={
            "help": "Fraction of training examples that ask for one absent class; the same fraction asks for one present class."
        },
    )
    negative_sampling: str = field(
        default="uniform",
        metadata={
            "help": "How negative_questions choose the absent class. hard: more often those that were predicted wrongly, by the "
            "confusion matrix of negative_from.",
            "choices": ["uniform", "hard"],
        },
    )
    negative_from: str | None = field(
        default=None,
        metadata={"help": "metrics.json of an evaluation on the same classes, for negative_sampling: hard."},
    )
    prompt_variety: bool = field(default=False, metadata={"help": "Rephrase half of the training questions."})
    noise_objects: float = field(
        default=0.0,
        metadata={
            "help": "Number of wrong boxes labeled noise, per ground-truth box, appended to each training answer (Pix2Seq)."
        },
    )
    teacher_ratio: float = field(
        default=0.0,
        metadata={
            "help": "Fraction of training examples that are preceded by other training examples with their answers."
        },
    )
    num_teacher_samples: int = field(
        default=1, metadata={"help": "With teacher_ratio: number of examples that precede each of these."}
    )
    irrelevant_answer: str = field(
        default="",
        metadata={
            "help": "Text that is the answer for unrelated images, in the data's own conversations or with irrelevant_images; "
            "evaluation reads it as a clean answer without objects."
        },
    )
    irrelevant_images: str | None = field(
        default=None,
        metadata={
            "help": "Folder of unrelated images to train on, or `generated` for drawn ones; their answer is "
            "irrelevant_answer, or an empty list (docs/guardrails.md)."
        },
    )
    irrelevant_share: float = field(
        default=0.1, metadata={"help": "With irrelevant_images: share of training examples that have one."}
    )
    candidates: list[str] | None = field(
        default=None,
        metadata={
            "help": "Closed list of labels that the system prompt offers, and to which other labels in responses are snapped; "
            f"{CLASSES} for the classes of the data."
        },
    )
    system_prompt: str = field(default=SYSTEM_PROMPT, metadata={"help": "System prompt; saved with the checkpoint."})
    min_pixels: int | None = field(default=None, metadata={"help": "Smallest area of the resized image."})
    max_pixels: int | None = field(default=None, metadata={"help": "Largest area of the resized image."})
    lora_parts: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Parts that LoRA adapts, any of {', '.join(LORA_PARTS)}; replaces lora_target_modules and lora_vision."
        },
    )
    skip_missing_parts: bool = field(
        default=False,
        metadata={"help": "Leave out those of lora_parts that the model lacks, with a note, instead of stopping."},
    )
    lora_vision: bool = field(
        default=False,
        metadata={"help": "In addition to lora_target_modules, adapt the linear layers of the vision blocks."},
    )
    lora_llm_layers: list[str] | None = field(
        default=None,
        metadata={
            "help": "Layers of the language model that LoRA may reach: -2 for the last two, 34,35 or 20-23, or 0 for none; "
            "all by default. Alone, it adapts all linears of these layers."
        },
    )
    lora_vision_blocks: list[str] | None = field(
        default=None,
        metadata={
            "help": "Blocks of the vision tower that LoRA adapts, in the same way: -4, 20-23, or 0 for none. Implies lora_vision."
        },
    )
    lora_bias: str = field(
        default="none",
        metadata={
            "help": "Biases of the base that are trained with LoRA: none, all, or those of the adapted layers (lora_only).",
            "choices": list(BIASES),
        },
    )
    continue_from: str | None = field(
        default=None,
        metadata={
            "help": "Adapter of an earlier run, such as runs/NAME/final: start from its weights, with a new optimizer. Rank "
            "and placement must be the same."
        },
    )
    quantize_vision: bool = field(
        default=False, metadata={"help": "With load_in_4bit: quantize the vision tower to NF4 as well."}
    )
    num_virtual_tokens: int = field(
        default=0,
        metadata={
            "help": "Number of virtual tokens before the system prompt whose embeddings are trained with LoRA; 0 for none."
        },
    )
    prompt_tuning_init: str = field(
        default="random",
        metadata={
            "help": "First values of the virtual tokens: random numbers, or the tokens of prompt_tuning_init_text.",
            "choices": ["random", "text"],
        },
    )
    prompt_tuning_init_text: str = field(
        default="",
        metadata={
            "help": "Text whose tokens the virtual tokens start from, in any language; cut or repeated to their number."
        },
    )
    adapter_dtype: str = field(
        default="float32",
        metadata={"help": "Dtype of the trained weights.", "choices": ["float32", "bfloat16"]},
    )
    overlong: str = field(
        default="error",
        metadata={
            "help": "What to do with examples that exceed max_length: stop, or drop and list them.",
            "choices": ["error", "drop"],
        },
    )
    collator: str = field(
        default="padded",
        metadata={
            "help": "Pad the examples of a micro-batch to equal lengths, pack them into one row, or pack where much would be "
            "padding (docs/recipes.md).",
            "choices": COLLATORS,
        },
    )
    tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "Fill each micro-batch with as many examples as have this many tokens, padding included; replaces "
            "per_device_train_batch_size in training."
        },
    )
    scale_lr_for_packing: bool = field(
        default=True,
        metadata={
            "help": "With tokens_per_batch: multiply learning rates by the square root of tokens per step, relative to those of "
            "per_device_train_batch_size."
        },
    )
    eval_images: int = field(
        default=32,
        metadata={
            "help": "Number of validation images predicted at every evaluation for metrics such as eval_AP50; 0 disables them."
        },
    )
    iou_loss_weight: float = field(
        default=0.0, metadata={"help": "Weight of box_loss, which is added to the LM loss; 0 disables it."}
    )
    fp_loss_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the false-positive loss, −log p(stop) where no object follows (docs/losses.md)."},
    )
    fn_loss_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the false-negative loss, −log p(continue) where another object follows."},
    )
    box_loss: str = field(
        default="giou",
        metadata={
            "help": "Box loss that iou_loss_weight scales: GIoU or L1 of the expected box, or W1 of its digits.",
            "choices": BOX_LOSSES,
        },
    )
    end_token_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the tokens that end an answer in the LM loss; all other tokens have weight 1."},
    )
    grounding_mode: str = field(
        default="teacher_forced",
        metadata={
            "help": "What the iou, fp and fn loss weights apply to: the target answer, sampled responses, or both.",
            "choices": GROUNDING_MODES,
        },
    )
    grounding_every: int = field(default=10, metadata={"help": "Sample responses every this many steps."})
    grounding_samples: int = field(default=4, metadata={"help": "Number of responses sampled per question."})
    detection_head: bool = field(
        default=False,
        metadata={
            "help": "Train a detection head too, which finds boxes without generating text (docs/detection_head.md)."
        },
    )
    detection_hidden_size: int = field(
        default=256, metadata={"help": "Hidden size of the detection head, a multiple of 16."}
    )
    detection_queries: int = field(
        default=100, metadata={"help": "Most objects that the detection head finds in an image."}
    )
    detection_decoder_layers: int = field(default=2, metadata={"help": "Decoder layers of the detection head, 1 to 6."})
    detection_bbox_weight: float = field(default=5.0, metadata={"help": "Weight of the head's L1 loss."})
    detection_giou_weight: float = field(default=2.0, metadata={"help": "Weight of the head's GIoU loss."})
    detection_objectness_weight: float = field(
        default=1.0, metadata={"help": "Weight of the head's focal loss on objectness and class."}
    )
    detection_trains_model: bool = field(
        default=False,
        metadata={
            "help": "Whether the head's loss also trains the model. false: the head only reads it, and the text is that of "
            "training without a head."
        },
    )
    detection_caption_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the head's loss on captions (the objects' `caption`, or else their class); 0: it writes none."
        },
    )
    detection_caption_layers: int = field(
        default=4, metadata={"help": "Layers of the head's caption decoder, if detection_caption_weight is above 0."}
    )
    vision_lr: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of the vision tower without its merger; learning_rate by default, 0 freezes it."
        },
    )
    merger_lr: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of the merger between vision tower and language model, deepstack mergers included."
        },
    )
    llm_lr: float | None = field(
        default=None,
        metadata={"help": "Learning rate of the language model, its embeddings, its head and the soft prompt."},
    )
    detection_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of the detection head without its adapters."}
    )
    adapter_lr: float | None = field(default=None, metadata={"help": "Learning rate of the detection head's adapters."})
    peft_lr: float | None = field(
        default=None,
        metadata={"help": "Learning rate of all LoRA and soft prompt weights; by default that of the part they adapt."},
    )
    phases: list[dict] | None = field(
        default=None,
        metadata={
            "help": "Learning rates by epoch, in a recipe file only: a list of {until: EPOCH, llm_lr: RATE, …}. Until an epoch, "
            "they replace the keys ending in _lr."
        },
    )
    detection_freeze_epochs: float = field(
        default=0.0, metadata={"help": "Keep the detection head and its adapters unchanged until this epoch."}
    )
    vision_warmup_steps: int = field(
        default=0,
        metadata={"help": "Linear warm-up of the vision tower and merger, in addition to that of the schedule."},
    )
    llm_lr_tail: float = field(
        default=1.0,
        metadata={"help": "Factor of the language model's learning rate in the last quarter of the run, such as 0.1."},
    )
    skipped_steps_limit: int = field(
        default=5,
        metadata={
            "help": "Stop after this many steps in a row that were skipped because the loss or a gradient was not finite."
        },
    )
    recovery_steps: int = field(
        default=10,
        metadata={"help": "Number of steps after a skipped step with lower learning rates and a lower max_grad_norm."},
    )
    recovery_factor: float = field(
        default=0.5, metadata={"help": "What the learning rates and max_grad_norm are multiplied by in those steps."}
    )
    detect_anomaly: bool = field(
        default=False,
        metadata={
            "help": "Name the operation whose gradient is NaN and stop there; slow (torch.autograd.detect_anomaly)."
        },
    )
    guardrails: str = field(
        default="",
        metadata={
            "help": "Guardrail suite that is asked before training and at evaluations, a name in recipes/guardrails or a YAML "
            "file: a run that forgets stops (docs/guardrails.md)."
        },
    )
    guardrail_every: int = field(default=1, metadata={"help": "Ask the guardrails at every so many evaluations."})
    stop_pass_rate_drop: float = field(
        default=StopLimits.pass_rate_drop,
        metadata={"help": "Stop if irrelevant_pass_rate falls by more than this, from its value before training."},
    )
    stop_pass_rate_floor: float = field(
        default=StopLimits.pass_rate_floor,
        metadata={"help": "Stop if irrelevant_pass_rate is below this in two evaluations and was not before training."},
    )
    stop_hallucination_rise: float = field(
        default=StopLimits.hallucination_rise, metadata={"help": "Stop if hallucination_rate rises by more than this."}
    )
    stop_caption_drop: float = field(
        default=StopLimits.caption_drop,
        metadata={"help": "Stop if caption_sanity falls by more than this in two evaluations."},
    )
    stop_loss_gap_rise: float = field(
        default=StopLimits.loss_gap_rise,
        metadata={
            "help": "Stop if evaluation loss minus training loss is more than this above its lowest value and rose in two "
            "evaluations."
        },
    )
    select_pass_rate_drop: float = field(
        default=PASS_DROP,
        metadata={"help": "Largest fall of irrelevant_pass_rate in a checkpoint that may be the best."},
    )
    select_hallucination_rise: float = field(
        default=HALLUCINATION_RISE,
        metadata={"help": "Largest rise of hallucination_rate in a checkpoint that may be the best."},
    )
    final_guardrails: str = field(
        default=DEFAULT_SUITE,
        metadata={
            "help": "Guardrail suite that `make train` asks after training, the base against the tuned model; empty for none."
        },
    )
    vision_stages: list[int] | None = field(
        default=None,
        metadata={
            "help": "Progressive unfreezing: train the adapters of the last 2 vision blocks first, then of 4 and 6 (for 2 4 6), "
            "each time the guardrails hold at an evaluation."
        },
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without improvement."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete an existing run in output_dir and start over."}
    )
    requires_gpu: bool = field(default=False, metadata={"help": "Exit with an error if there is no CUDA GPU."})

    def __post_init__(self):
        # argparse checks choices for command-line values only, not for values from a recipe.
        for f in fields(self):
            choices, value = f.metadata.get("choices"), getattr(self, f.name)
            items = value if isinstance(value, list) else [value]
            if choices and value is not None and not set(items) <= set(choices):
                raise ValueError(f"{f.name} must be one of {', '.join(choices)}, got {value!r}.")
