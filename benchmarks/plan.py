"""What `make benchmark` measures: the experiments, and the tables of docs/results.md that they fill."""

from collections.abc import Callable
from dataclasses import dataclass

SEEDS = (0, 1, 2)
SHORTER = 160  # steps of the rows that choose a default: less than half of what the recipe takes, to afford them all


@dataclass(frozen=True)
class Experiment:
    """One row: a recipe with options, trained once for every seed.

    `split` is what it is scored on: test for what is reported, validation for what a default is chosen by. With `folds`
    the data set is too small for a split of its own: every picture is answered by the model of the fold that left it out.
    `base` says whether the base model answers too; its answers do not depend on the seed.
    """

    name: str
    title: str
    recipe: str
    options: tuple[str, ...] = ()
    split: str = "test"
    folds: int = 0
    base: bool = False


@dataclass(frozen=True)
class Table:
    """`question` heads a table of docs/results.md, `answer` is what follows from it, once there is something to follow."""

    question: str
    experiments: tuple[Experiment, ...]
    answer: str = ""


def nutrition(name: str, title: str, *options: str, steps: int = SHORTER) -> Experiment:
    """A variant of tiny_nutrition_qlora at the rank it had when these were compared, on its validation split."""
    options = ("--max_steps", str(steps), "--lora_r", "32", "--lora_alpha", "64", *options)
    return Experiment(f"nutrition-{name}", title, "tiny_nutrition_qlora", options, split="validation")


def bccd(name: str, title: str, *options: str) -> Experiment:
    """A variant of tiny_bccd_voc, compared on its validation split."""
    options = ("--max_steps", str(SHORTER), *options)
    return Experiment(f"bccd-{name}", title, "tiny_bccd_voc", options, split="validation")


def marmot(name: str, title: str, *options: str, steps: int = 60) -> Experiment:
    """A variant of tiny_marmot_tables_csv, by twofold cross-validation and in fewer steps than the recipe's, to afford it."""
    options = ("--max_steps", str(steps), *options)
    return Experiment(f"marmot-{name}", title, "tiny_marmot_tables_csv", options, folds=2)


DATA_SETS = Table(
    "Data sets: base against tuned",
    (
        Experiment("nutrition", "generated product pictures", "tiny_nutrition_qlora", base=True),
        Experiment("bccd_voc", "BCCD blood cells", "tiny_bccd_voc", base=True),
        Experiment("marmot_tables_csv", "Marmot page scans", "tiny_marmot_tables_csv", folds=5, base=True),
        Experiment("aquarium_yolo", "Aquarium", "tiny_aquarium_yolo", folds=5, base=True),
        Experiment("publaynet_examples_coco", "PubLayNet pages", "tiny_publaynet_examples_coco", folds=5, base=True),
    ),
)

AS_IS = nutrition("as-is", "the recipe, at rank 32")
UNQUANTISED = ("--load_in_4bit", "false")
FULL = (*UNQUANTISED, "--use_peft", "false", "--lora_vision", "false")

CHOICES = (
    Table(
        "Does quantisation cost boxes?",
        (
            AS_IS,
            nutrition("vision-nf4", "vision tower in NF4 too", "--quantize_vision", "true"),
            nutrition("unquantised", "LoRA on the bf16 weights", *UNQUANTISED),
            nutrition("full", "full fine-tuning", *FULL),
            nutrition("full-low", "full fine-tuning, a third of the rate", *FULL, "--learning_rate", "3e-4"),
        ),
        """None that could be measured: on bf16 weights LoRA gains 1.4 points of F1, within chance (-1.4 to +4.1), and the
vision tower in NF4 loses nothing either, here. So NF4 stays, and the tower stays out of it, as it is a small part of the
memory. Training every weight at a third of the rate gains 3 points of mean IoU (+0.1 to +6.6): a hint that with a model
that fits `use_peft: false` is worth a try.""",
    ),
    Table(
        "Which rank, and on what?",
        (
            AS_IS,
            nutrition("r8", "rank 8, alpha 16", "--lora_r", "8", "--lora_alpha", "16"),
            nutrition("r16", "rank 16, alpha 32", "--lora_r", "16", "--lora_alpha", "32"),
            nutrition("r64", "rank 64, alpha 128", "--lora_r", "64", "--lora_alpha", "128"),
            nutrition("attention", "attention only", "--lora_target_modules", "q_proj", "k_proj", "v_proj", "o_proj"),
            nutrition("language-only", "language model only", "--lora_vision", "false"),
        ),
        """The higher the rank, the more is found: 8 loses 4 points of mean IoU against 32 (-7.3 to -0.7), and 64 gains 3 points
of F1 (+0.2 to +6.7), each in all three seeds, for little more time. The recipe has therefore gone from 32 to 64; what is compared
here and in docs/losses.md keeps 32. Attention alone loses 2 points of mean IoU. Adapters in the vision tower gain nothing that
shows, and cost two fifths of the training time.""",
    ),
    Table(
        "Which precision for the adapters? (The recipe's are fp32, its learning rate 1e-3.)",
        (AS_IS, nutrition("bf16", "bf16 adapters", "--adapter_dtype", "bfloat16")),
    ),
    Table(
        "And at a third of the rate?",
        (
            nutrition("fp32-low", "fp32 adapters, learning rate 3e-4", "--learning_rate", "3e-4"),
            nutrition(
                "bf16-low", "bf16 adapters, learning rate 3e-4", "--adapter_dtype", "bfloat16", "--learning_rate", "3e-4"
            ),
        ),
        """At 1e-3 bf16 adapters lose nothing that shows. At 3e-4 they lose 3.5 points of mean IoU (-5.9 to -1.3), and F1 tends
down with it: the smaller a step, the more of it rounds away. So adapters stay in fp32, whatever the rate. At 1e-4 and 1e-5
neither learns in 160 steps to answer at all.""",
    ),
    Table(
        "Which order of the objects? (The recipe's is raster: top, then left.)",
        (
            AS_IS,
            nutrition("area", "largest first", "--object_order", "area"),
            nutrition("random", "random, drawn once", "--object_order", "random"),
            nutrition("source", "as annotated", "--object_order", "source"),
        ),
        """Raster stays: largest first and a random order lose 5 and 4 points of mean IoU, and F1 tends down with it; the order of
the annotations loses nothing that shows. The base was taught raster in four of five answers, so part of that is habit.""",
    ),
    Table(
        "Pixels or 0…1000?",
        (AS_IS, nutrition("pixels", "pixels of the resized input", "--codec", "qwen2_5_vl")),
        """What the base was taught: this one knows 0…1000, and 160 steps in pixels reach F1 0.10 where its own frame reaches
0.49. So a recipe writes a family's own coordinates unless `codec` says otherwise.""",
    ),
    Table(
        "Does a larger picture help? (The recipe's is of 224 × 224 pixels.)",
        (AS_IS, nutrition("larger", "twice the pixels", "--max_pixels", "100352")),
        """Not with this base, which has seen none above 224 × 224: with twice the pixels F1 is 4.8 points lower (-10.0 to
+0.4), in all three seeds, and takes nearly twice the time.""",
    ),
    Table(
        "Blood cells (tiny_bccd_voc): does a larger picture help?",
        (
            bccd("as-is", "the recipe as it is, 224 × 224"),
            bccd("larger", "twice the pixels", "--max_pixels", "100352"),
        ),
        """Not with this base: twice the pixels cost 2.3 points of F1 (-4.3 to -0.2), and both answer with red cells alone: white
cells, 71 pixels across at 224 × 224 and so large enough, are never named.""",
    ),
)  # fmt: skip

IOU = ("--iou_loss_weight", "1.0")
W1 = ("--box_loss", "w1", "--iou_loss_weight", "5.0")
STOPPING = ("--fp_loss_weight", "0.5", "--fn_loss_weight", "1.0")
STOPPING_LOW = ("--fp_loss_weight", "0.1", "--fn_loss_weight", "0.2")
POLICY = ("--grounding_mode", "policy")
POLICY_LOW = ("--iou_loss_weight", "0.1", "--fp_loss_weight", "0.05", "--fn_loss_weight", "0.1", *POLICY)
NOISE = ("--noise_objects", "0.5", "--end_token_weight", "0.5")
AUGMENTED = ("--augment", "resize", "crop", "color")


def losses(make: Callable[..., Experiment], longer: int) -> tuple[Experiment, ...]:
    """The terms of docs/losses.md one by one, beside the plain recipe, and that for `longer`: the time that policy takes."""
    return (
        make("as-is", "plain fine-tuning"),
        make("longer", f"plain, {longer} steps: in policy's time", steps=longer),
        make("loss-giou", "+ IoU term: GIoU, weight 1", *IOU),
        make("loss-w1", "+ IoU term: W1, weight 5", *W1),
        make("loss-stopping", "+ FP 0.5 and FN 1", *STOPPING),
        make("loss-policy", "+ policy: 1, 0.5, 1", *IOU, *STOPPING, *POLICY),
        make("loss-noise", "+ noise objects, 1 for 2, end tokens at 0.5", *NOISE),
        make("loss-augmented", "+ augmentation: resize, crop, colour", *AUGMENTED),
        make("loss-all", "all together", *IOU, *STOPPING, "--grounding_mode", "both", *NOISE, *AUGMENTED),
    )


OTHER_WEIGHTS = (
    nutrition("loss-giou-low", "GIoU 0.2", "--iou_loss_weight", "0.2"),
    nutrition("loss-stopping-low", "FP 0.1 and FN 0.2", *STOPPING_LOW),
    nutrition("loss-policy-low", "policy 0.1, 0.05, 0.1", *POLICY_LOW),
    nutrition("loss-w1-stopping", "W1 5 with FP 0.1 and FN 0.2", *W1, *STOPPING_LOW),
)

# docs/losses.md: each row against the first of its table.
LOSSES = (
    Table(
        "Nutrition tables (tiny_nutrition_qlora)",
        (*losses(nutrition, longer=256), *OTHER_WEIGHTS),
        """At the formula's weights (1 for the IoU, 0.5 and 1) **FP and FN** raise mean IoU by 4 points, and at a fifth of
them by as much: one object in ten less is missed, and false positives are a seventh to a fifth more. A threshold that takes these
back to plain fine-tuning's number takes most of the gain with it (last column), so the goal set beforehand, fifteen in a
hundred fewer missed at no more false positives, is not reached. F1 changes by no more than chance. **W1** gains 1.4 points of
mean IoU, within chance, and adds nothing to FP and FN; its goal, 2 points or 3 of F1 at IoU 0.75, is missed. **GIoU** at
weight 1 costs boxes, and at 0.2 makes no difference beyond chance. Two causes are likely: the gradient is clipped at norm
1, so that the LM's loss lacks what a term takes, and the mean of two modes can be right where neither is, which W1 sees and
GIoU does not. **Policy** makes no difference beyond chance, at the formula's weights or a tenth of them: 160 steps sample
16 times, and so few answers say little of where to go. **Noise objects** find a third of what is missed, and mean IoU rises
by 15 points, but the word `noise` is never the likeliest label (one class, one noise box for two true ones), so none is
dropped and false positives are more than four times as many; at as few false positives a fifth more is missed than without.
**Augmentation** gains nothing: 160 steps show no picture twice. All together has noise objects' false positives, if
fewer of them. More steps tend to do as much as any term: plain fine-tuning for 256 gains 3 points of F1, of F1 at IoU 0.75 and
of mean IoU alike, within chance, with no more false positives. So all terms stay off.""",
    ),
    Table(
        "Marmot page scans (tiny_marmot_tables_csv), 60 steps, twofold cross-validation",
        losses(marmot, longer=96),
        """Sixty pages hold 71 tables, so intervals reach five to ten points of F1 to either side, and a gain has to be as large
to show. None does. FP and FN, W1 and policy make no difference beyond chance; GIoU tends down, as on nutrition tables.
Noise objects raise mean IoU by 2 points, within chance, find no table more and bring three times as many false positives.
Augmentation costs 5 points of mean IoU, and all together 10 of F1. More steps do harm here: 96 in place of 60 cost
9 points of F1, for the thirty pages of a fold are soon known by heart. All terms stay off.""",
    ),
)

TABLES = (DATA_SETS, *CHOICES, *LOSSES)
EXPERIMENTS = {experiment.name: experiment for table in TABLES for experiment in table.experiments}
