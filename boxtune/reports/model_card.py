"""README.md of a finished model, in the format of the Hugging Face Hub: results, usage and training."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from boxtune.answers.conversation import as_text, user_content
from boxtune.answers.grounding import Grounding
from boxtune.common.errors import reading
from boxtune.common.files import write_whole
from boxtune.common.numbers import format_number
from boxtune.common.templates import text_template
from boxtune.data.questions import question
from boxtune.metrics.guardrail_rules import Probes
from boxtune.reports.guardrail_table import probe_rows
from boxtune.reports.score_table import MEAN_IOU, headline_rows

# The numbers in the card, by their titles in the score table.
_SHOWN = ("AP", "AP50", MEAN_IOU, "precision", "recall", "F1", "false positives", "false negatives")
# The names of metrics in the Hub's metadata.
_HUB_METRICS = {"AP": "mAP", "AP50": "mAP@0.5", "F1": "f1", MEAN_IOU: "mean_iou"}


def write_card(folder: Path, name: str, metrics: dict | None = None, probes: Probes | None = None) -> None:
    """Write `folder`/README.md for a finished model (see `is_finished`) called `name`.

    `metrics` is the content of metrics.json. Without it the card says that the model has not been evaluated. `probes`: its
    guardrails, if they were measured.
    """
    grounding = Grounding.load(folder)
    is_adapter = (folder / "adapter_config.json").is_file()
    run = _read_json(folder / "run.json")
    prompt = grounding.questions[0] if grounding.questions else question(["…"])
    content = user_content(prompt, grounding.format_sentence)
    page = text_template(Path(__file__).with_suffix(".md.jinja")).render(
        metadata=card_data(grounding, name, is_adapter, metrics).to_yaml(),
        name=name,
        grounding=grounding,
        is_adapter=is_adapter,
        kind=_kind(is_adapter, is_trained=run is not None),
        prompt=as_text(content),
        parts=content,
        codec=grounding.get_codec(),
        run=run,
        probes=probe_rows(probes or {}),
        **_result_variables(metrics),
    )
    write_whole(folder / "README.md", page)


def _kind(is_adapter: bool, is_trained: bool) -> str:
    if is_adapter:
        return "A LoRA adapter"
    return "A fine-tuned model" if is_trained else "A merged model"


def _result_variables(metrics: dict | None) -> dict[str, Any]:
    """The variables of the template that show results; empty without an evaluation."""
    if metrics is None:
        return {"rows": {}, "provenance": {}, "parse": {}, "empty": {}}
    rows = headline_rows(metrics)
    return {
        "rows": {title: format_number(rows[title]) for title in _SHOWN},
        "provenance": metrics["provenance"],
        "parse": metrics["parse"],
        "empty": metrics["empty_images"],
    }


def is_finished(folder: Path) -> bool:
    """Whether `folder` is the result of a training or of merging an adapter. A checkpoint in between has no card."""
    return (folder / "run.json").is_file() or (folder / "merge_report.json").is_file()


def model_name(folder: Path) -> str:
    """The name of the run for its folders final and final_merged, otherwise the name of the folder."""
    folder = folder.resolve()
    return folder.parent.name if folder.name in ("final", "final_merged") else folder.name


def card_data(grounding: Grounding, name: str, is_adapter: bool, metrics: dict | None) -> ModelCardData:
    """The metadata of the card. A base model in a local folder is left out, because the Hub does not have it."""
    return ModelCardData(
        base_model=None if Path(grounding.base_model).is_dir() else grounding.base_model,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["boxtune", "object-detection", "visual-grounding", *(["lora"] if is_adapter else [])],
        model_name=name,
        eval_results=_hub_results(metrics) if metrics else None,
    )


def _hub_results(metrics: dict) -> list[EvalResult]:
    rows, split = headline_rows(metrics), metrics["provenance"]["split"]
    dataset = Path(metrics["provenance"]["data"]).name
    values = {hub_name: rows[title] for title, hub_name in _HUB_METRICS.items()}
    return [
        EvalResult("object-detection", dataset, dataset, hub_name, round(value, 4), dataset_split=split)
        for hub_name, value in values.items()
        if value is not None
    ]


def _read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no file."""
    if not path.is_file():
        return None
    with reading(str(path), "Use another checkpoint of the run."):
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
