"""README.md of a finished model, in the hub's form: what it finds, how well, how to ask it, and what it was trained on."""

import json
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from boxtune.answers.conversation import as_text, user_content
from boxtune.answers.grounding import Grounding
from boxtune.common.errors import reading
from boxtune.common.files import write_whole
from boxtune.common.numbers import format_number
from boxtune.common.templates import text_template
from boxtune.data.questions import question
from boxtune.reports.score_table import headline_rows

_SHOWN = ("AP", "AP50", "mean IoU (all truth)", "precision", "recall", "F1", "false positives", "false negatives")
# Names of the hub's metadata for what metrics.json holds.
_HUB_METRICS = {"AP": "mAP", "AP50": "mAP@0.5", "F1": "f1", "mean IoU (all truth)": "mean_iou"}


def write_card(folder: Path, name: str, metrics: dict | None = None) -> None:
    """Write `folder`/README.md for a finished model (`is_finished`), under the model's `name`.

    `metrics` is metrics.json of an evaluation; without it the card says that there was none.
    """
    grounding = Grounding.load(folder)
    is_adapter = (folder / "adapter_config.json").is_file()
    run = _read(folder / "run.json")
    rows = headline_rows(metrics) if metrics else {}
    asked = grounding.questions[0] if grounding.questions else question(["…"])
    content = user_content(asked, grounding.format_sentence)
    page = text_template(Path(__file__).with_suffix(".md.jinja")).render(
        metadata=card_data(grounding, name, is_adapter, metrics).to_yaml(),
        name=name,
        grounding=grounding,
        is_adapter=is_adapter,
        kind="A LoRA adapter" if is_adapter else "A fine-tuned model" if run else "A merged model",
        asked=as_text(content),
        parts=content,
        codec=grounding.get_codec(),
        rows={title: format_number(rows[title]) for title in _SHOWN} if metrics else {},
        provenance=metrics["provenance"] if metrics else {},
        answers=metrics["parse"] if metrics else {},
        empty=metrics["empty_images"] if metrics else {},
        run=run,
    )
    write_whole(folder / "README.md", page)


def is_finished(folder: Path) -> bool:
    """Whether `folder` holds what a training here ended with, or what merging made of that. A checkpoint has no card."""
    return (folder / "run.json").is_file() or (folder / "merge_report.json").is_file()


def model_name(folder: Path) -> str:
    """What a model is called: its run's name where it is the run's final model, else its folder's."""
    folder = folder.resolve()
    return folder.parent.name if folder.name in ("final", "final_merged") else folder.name


def card_data(grounding: Grounding, name: str, is_adapter: bool, metrics: dict | None) -> ModelCardData:
    """The card's metadata. A base that is a folder of this machine is no model of the hub, and not named."""
    results = None
    if metrics:
        rows, split = headline_rows(metrics), metrics["provenance"]["split"]
        data = Path(metrics["provenance"]["data"]).name
        results = [
            EvalResult("object-detection", data, data, _HUB_METRICS[title], round(rows[title], 4), dataset_split=split)
            for title in _HUB_METRICS
            if rows[title] is not None
        ]
    return ModelCardData(
        base_model=None if Path(grounding.base_model).is_dir() else grounding.base_model,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["boxtune", "object-detection", "visual-grounding", *(["lora"] if is_adapter else [])],
        model_name=name,
        eval_results=results,
    )


def _read(path: Path) -> dict | None:
    if not path.is_file():
        return None
    with reading(str(path), "Take another checkpoint of the run."):
        return json.loads(path.read_text(encoding="utf-8"))
