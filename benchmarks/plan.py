"""What `make benchmark` measures: the experiments, and the tables of docs/results.md and docs/losses.md that they fill."""

from dataclasses import dataclass

SEEDS = (0, 1, 2)
SHORTER = 100  # steps of the rows that choose a default: a quarter of the recipe's, to make all rows affordable


@dataclass(frozen=True)
class Experiment:
    """One row: a recipe with options, trained once for every seed.

    split: the split that is scored. Reported scores use test; choices of a default use validation.
    folds: number of cross-validation folds, for a dataset that is too small for a test split. The model of the fold that
    leaves an image out predicts it. 0: no cross-validation.
    base: whether to score the base model too. Its predictions do not depend on the seed.
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
    """A table of docs/results.md or docs/losses.md: `question` is its heading, and `answer` the conclusion below it, if any."""

    question: str
    experiments: tuple[Experiment, ...]
    answer: str = ""


def nutrition(name: str, title: str, *options: str) -> Experiment:
    """A variant of tiny_nutrition_qlora on its validation split, at half of the recipe's rank."""
    options = ("--max_steps", str(SHORTER), "--lora_r", "32", "--lora_alpha", "64", *options)
    return Experiment(f"nutrition-{name}", title, "tiny_nutrition_qlora", options, split="validation")


def marmot(name: str, title: str, *options: str, steps: int = 60) -> Experiment:
    """A variant of tiny_marmot_tables_csv with twofold cross-validation, in fewer steps than the recipe to save time."""
    options = ("--max_steps", str(steps), *options)
    return Experiment(f"marmot-{name}", title, "tiny_marmot_tables_csv", options, folds=2)


DATASETS = Table(
    "Datasets: base and tuned model",
    (
        Experiment("nutrition", "generated product images", "tiny_nutrition_qlora", base=True),
        Experiment("bccd_voc", "BCCD blood cells", "tiny_bccd_voc", base=True),
        Experiment("marmot_tables_csv", "Marmot page scans", "tiny_marmot_tables_csv", folds=5, base=True),
        Experiment("aquarium_yolo", "Aquarium", "tiny_aquarium_yolo", folds=5, base=True),
        Experiment("publaynet_examples_coco", "PubLayNet pages", "tiny_publaynet_examples_coco", folds=5, base=True),
    ),
)

AS_IS = nutrition("as-is", "the recipe, at rank 32")
UNQUANTIZED = ("--load_in_4bit", "false")

CHOICES = (
    Table(
        "Does quantization reduce accuracy?",
        (AS_IS, nutrition("unquantised", "LoRA on the bf16 weights", *UNQUANTIZED)),
        """No. LoRA on the bf16 weights scores 2 percentage points of F1 lower, which may be chance (-4.8 to +0.5). We
therefore keep NF4.""",
    ),
    Table(
        "Which rank?",
        (
            AS_IS,
            nutrition("r8", "rank 8, alpha 16", "--lora_r", "8", "--lora_alpha", "16"),
            nutrition("r64", "rank 64, alpha 128", "--lora_r", "64", "--lora_alpha", "128"),
        ),
        """A low rank costs accuracy: rank 8 loses 8 percentage points of F1 (-13.6 to -3.2) and 6.5 of mean IoU. Rank 64
gains 1.8 percentage points of F1, within chance, and takes no more time. The recipe keeps rank 64.""",
    ),
    Table(
        "Which precision for the adapters? (recipe: fp32)",
        (AS_IS, nutrition("bf16", "bf16 adapters", "--adapter_dtype", "bfloat16")),
        """At the recipe's learning rate of 1e-3, bf16 adapters have no measurable disadvantage. The smaller an update, the
more of it is lost to rounding: with earlier weights, bf16 lost 3.5 percentage points of mean IoU at 3e-4. So adapters stay
in fp32.""",
    ),
    Table(
        "Which order of the objects? (recipe: raster, from top to bottom, then left to right)",
        (AS_IS, nutrition("area", "largest first", "--object_order", "area")),
        """Largest first has no measurable disadvantage: mean IoU is 2.3 percentage points lower, within chance (-5.6 to +0.9).
The embedded model was pretrained with raster order in four of five answers, which may explain part of the difference. Raster
order stays.""",
    ),
    Table(
        "Does a larger image help? (recipe: 224 × 224 pixels)",
        (AS_IS, nutrition("larger", "twice the pixels", "--max_pixels", "100352")),
        """Not measurably: with twice the pixels, mean IoU is 1.6 percentage points higher (-2.6 to +5.1) and F1 1 lower, and
training takes 1.6 times as long. With earlier weights, which had seen no image above 224 × 224, F1 was 4.8 percentage points
lower.""",
    ),
    Table(
        "Does training in bf16 on a CPU cost accuracy? (recipe: float32)",
        (AS_IS, nutrition("autocast", "--bf16 true", "--bf16", "true")),
        """Not measurably: F1 is 0.9 percentage points lower, within chance (-3.2 to +1.4). On this CPU, an AMD EPYC with
AVX512-BF16, `--bf16 true` takes 18 % less time, and 1.45 times the memory. The recipes stay in float32, because older CPUs
have no instructions for bf16.""",
    ),
    Table(
        "Do a soft prompt or few-shot conversations help?",
        (
            AS_IS,
            nutrition("soft-prompt", "16 virtual tokens before the system prompt", "--num_virtual_tokens", "16"),
            nutrition(
                "teachers",
                "two other examples before half of the examples",
                *("--teacher_ratio", "0.5", "--num_teacher_samples", "2"),
            ),
        ),
        """Neither has a measurable effect. With a soft prompt beside LoRA, F1 is 0.2 percentage points lower (-3.2 to
+2.5). With two examples before half of the training examples, it is 1.3 percentage points higher (-1.9 to +4.4), for more
than twice the training time. Examples in the prompts of evaluation make these checkpoints worse
([decoding.md](decoding.md#what-they-gain-and-cost)). So both stay off.""",
    ),
)  # fmt: skip

IOU = ("--iou_loss_weight", "1.0")
W1 = ("--box_loss", "w1", "--iou_loss_weight", "5.0")
STOPPING = ("--fp_loss_weight", "0.5", "--fn_loss_weight", "1.0")
POLICY = ("--grounding_mode", "policy")
NOISE = ("--noise_objects", "0.5", "--end_token_weight", "0.5")
AUGMENTED = ("--augment", "resize", "crop", "color")


# docs/losses.md: each row against the first of its table.
LOSSES = (
    Table(
        "Nutrition tables (tiny_nutrition_qlora)",
        (
            nutrition("as-is", "plain fine-tuning"),
            nutrition("loss-stopping", "+ FP 0.5 and FN 1", *STOPPING),
            nutrition("loss-w1", "+ IoU term: W1, weight 5", *W1),
            nutrition("loss-noise", "+ noise objects (0.5 per object), end_token_weight 0.5", *NOISE),
        ),
        """- **FP and FN** have no measurable effect on F1 or mean IoU. They miss 3 % fewer objects and have 19 %
  more false positives; at equal false positives, they miss more.
- **W1** loses 2.5 percentage points of mean IoU (-5.2 to +0.1), and adds nothing.
- With **noise objects**, false positives more than triple, and F1 falls by 23 percentage points: with a single class and
  one noise box for every two ground-truth boxes, `noise` is never the most likely label, so no box is dropped.

With earlier weights, which found fewer of these tables, FP and FN and noise objects raised mean IoU (by 4 and 15 percentage
points, with more false positives); GIoU, policy, and augmentation did not help. Those were not measured again.

So all terms stay off by default.""",
    ),
    Table(
        "Marmot page scans (tiny_marmot_tables_csv), 60 steps, twofold cross-validation",
        (
            marmot("as-is", "plain fine-tuning"),
            marmot("longer", "plain, 96 steps (same time as policy)", steps=96),
            marmot("loss-giou", "+ IoU term: GIoU, weight 1", *IOU),
            marmot("loss-w1", "+ IoU term: W1, weight 5", *W1),
            marmot("loss-stopping", "+ FP 0.5 and FN 1", *STOPPING),
            marmot("loss-policy", "+ policy: 1, 0.5, 1", *IOU, *STOPPING, *POLICY),
            marmot("loss-noise", "+ noise objects (0.5 per object), end_token_weight 0.5", *NOISE),
            marmot("loss-augmented", "+ augmentation: resize, crop, color", *AUGMENTED),
            marmot("loss-all", "all together", *IOU, *STOPPING, "--grounding_mode", "both", *NOISE, *AUGMENTED),
        ),
        """The sixty pages contain 71 tables. The 95 % intervals are therefore ±5 to 10 percentage points of F1, and only a
gain of that size could be detected. No variant has one.

- **FP and FN, W1 and policy** have no measurable effect. **GIoU** tends to lower the scores.
- With **noise objects**, mean IoU rises by 2 percentage points, within chance. No more tables are found, and false
  positives triple.
- **Augmentation** loses 5 percentage points of mean IoU, and **all together** loses 10 percentage points of F1.
- **More steps** hurt here: 96 steps instead of 60 lower F1 by 9 percentage points, because the model soon memorizes the
  thirty pages of a fold.

All terms stay off by default.""",
    ),
)

TABLES = (DATASETS, *CHOICES, *LOSSES)
EXPERIMENTS = {experiment.name: experiment for table in TABLES for experiment in table.experiments}
