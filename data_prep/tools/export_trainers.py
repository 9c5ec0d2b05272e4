"""Exports for other trainers of vision-language models: TRL, ms-swift and LLaMA-Factory."""

import json
import math
import shlex
from typing import Any

from boxtune.answers.codecs import CODECS
from boxtune.answers.conversation import SYSTEM_PROMPT, as_text, format_sentence, render
from boxtune.common.json_lines import to_json_line
from boxtune.data.dataset import SPLIT_FOLDERS
from boxtune.data.questions import IMAGE
from boxtune.data.records import Record
from data_prep.tools.export_job import ExportJob, ModelInput, place_images

# min_pixels and max_pixels in preprocessor_config.json of Qwen/Qwen2.5-VL-7B-Instruct, which LLaMA-Factory does not change.
_HUB_BUDGET = (3136, 12_845_056)
# Of Qwen2VLPlugin, whatever the family's own factor is.
_LLAMAFACTORY_MIN_SIDE = 28
# LLaMA-Factory's default of 2,048 tokens truncates answers without a warning.
_LLAMAFACTORY_CUTOFF = 32_768


def write_trl(job: ExportJob, model_input: ModelInput) -> str:
    """SPLIT.jsonl with prompt and completion for SFTTrainer, which puts the image before the first question's text."""
    for split, records in job.splits.items():
        names = place_images(job, split)
        with open(job.staged / f"{split}.jsonl", "w", encoding="utf-8") as lines:
            for record, name in zip(records, names, strict=True):
                turns = _conversation(record, _trl_size(record, model_input), model_input)
                turns = [turn | {"content": turn["content"].replace(IMAGE, "")} for turn in turns]
                images = [f"images/{SPLIT_FOLDERS[split]}/{name}"]
                row = {"images": images, "prompt": turns[:-1], "completion": turns[-1:]}
                # Some templates of these models open a think block in the prompt if they are not told otherwise.
                thinking = {"chat_template_kwargs": {"enable_thinking": False}} if model_input.family.thinks else {}
                lines.write(to_json_line(row | thinking))
    options = " Train with remove_unused_columns=False, which keeps chat_template_kwargs."
    return (
        "Load the .jsonl files with datasets, make the image paths absolute, and cast images to Sequence(Image()). Set the "
        f"image processor's size to shortest_edge {model_input.min_pixels}, longest_edge {model_input.max_pixels}."
        f"{options if model_input.family.thinks else ''}"
    )


def write_swift(job: ExportJob, model_input: ModelInput) -> str:
    """SPLIT.jsonl with ms-swift's messages and the boxes as text.

    ms-swift's placeholders <ref-object> and <bbox> are not used: Template.normalize_bbox would write Qwen2-VL's tokens into
    the JSON of the later families (unless QWENVL_BBOX_FORMAT=new is set), collapse thin boxes and round halves to even.
    """
    for split, records in job.splits.items():
        names = place_images(job, split)
        with open(job.staged / f"{split}.jsonl", "w", encoding="utf-8") as lines:
            for record, name in zip(records, names, strict=True):
                images = [str((job.out / "images" / SPLIT_FOLDERS[split] / name).absolute())]
                messages = _conversation(record, _swift_size(record, model_input), model_input)
                lines.write(to_json_line({"messages": messages, "images": images}))
    min_pixels, max_pixels = _swift_budget(model_input)
    command = ["swift", "sft", "--model", "MODEL", "--dataset", str(job.out / "train.jsonl")]
    if "validation" in job.splits:
        command += ["--val_dataset", str(job.out / "validation.jsonl")]
    return f"Train with:\n    MIN_PIXELS={min_pixels} MAX_PIXELS={max_pixels} {shlex.join(command)}"


def write_llamafactory(job: ExportJob, model_input: ModelInput) -> str:
    """SPLIT.json in the ShareGPT format, and dataset_info.json with a description of each."""
    descriptions: dict[str, Any] = {}
    for split, records in job.splits.items():
        names = place_images(job, split)
        rows = [
            {
                "messages": _conversation(record, _llamafactory_size(record, model_input), model_input),
                "images": [f"images/{SPLIT_FOLDERS[split]}/{name}"],
            }
            for record, name in zip(records, names, strict=True)
        ]
        text = json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
        (job.staged / f"{split}.json").write_text(text, encoding="utf-8")
        descriptions[f"{job.out.name}_{split}"] = {
            "file_name": f"{split}.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": {f"{name}_tag": name for name in ("role", "content", "user", "assistant", "system")},
        }
    (job.staged / "dataset_info.json").write_text(json.dumps(descriptions, indent=2) + "\n", encoding="utf-8")
    return f"Train with:\n    {_llamafactory_command(job, model_input)}"


def _llamafactory_command(job: ExportJob, model_input: ModelInput) -> str:
    options = {
        "stage": "sft",
        "model_name_or_path": "MODEL",
        "template": model_input.family.llamafactory_template,
        "dataset_dir": job.out,
        "media_dir": job.out,
        "dataset": f"{job.out.name}_train",
        "image_min_pixels": model_input.min_pixels,
        "image_max_pixels": model_input.max_pixels,
        "cutoff_len": _LLAMAFACTORY_CUTOFF,
        "output_dir": "RUN",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return shlex.join(["llamafactory-cli", "train", "--do_train", *words])


def _conversation(record: Record, input_size: tuple[int, int], model_input: ModelInput) -> list[dict[str, str]]:
    """The conversation that boxtune trains on. Each turn's content is one text, in which `<image>` stands for the image.

    `input_size` is the (height, width) of the image as the model gets it.
    """
    codec = CODECS[model_input.family.name]
    conversation, _ = render(record, codec, input_size, SYSTEM_PROMPT, format_sentence(codec))
    return [{"role": turn["role"], "content": as_text(turn["content"])} for turn in conversation]


# Each function below gives the (height, width) of the model's input that the trainer in its name produces.


def _trl_size(record: Record, model_input: ModelInput) -> tuple[int, int]:
    """The image processor resizes to the given budget."""
    budget = (model_input.min_pixels, model_input.max_pixels)
    return _processor_size(record["height"], record["width"], model_input.family.factor, budget)


def _swift_size(record: Record, model_input: ModelInput) -> tuple[int, int]:
    """ms-swift resizes with qwen-vl-utils, which rounds sides below half a token differently than the image processor."""
    from qwen_vl_utils.vision_process import smart_resize  # imports torch

    height, width = smart_resize(
        record["height"], record["width"], model_input.family.factor, *_swift_budget(model_input)
    )
    return height, width


def _swift_budget(model_input: ModelInput) -> tuple[int, int]:
    """(min, max) pixels, rounded down to whole image tokens as ms-swift does for qwen-vl-utils 0.0.14
    (compat_qwen_vl_utils in swift/model/models/qwen.py)."""
    token = model_input.family.factor**2
    return model_input.min_pixels // token * token, model_input.max_pixels // token * token


def _llamafactory_size(record: Record, model_input: ModelInput) -> tuple[int, int]:
    """LLaMA-Factory first resizes to its own budget, then the image processor resizes to the budget of the Hub.

    Its steps are those of MMPluginMixin._preprocess_image and Qwen2VLPlugin in src/llamafactory/data/mm_plugin.py.
    """
    width, height = record["width"], record["height"]
    if width * height > model_input.max_pixels:
        width, height = _scaled(width, height, model_input.max_pixels)
    if width * height < model_input.min_pixels:
        width, height = _scaled(width, height, model_input.min_pixels)
    width, height = max(width, _LLAMAFACTORY_MIN_SIDE), max(height, _LLAMAFACTORY_MIN_SIDE)
    if max(width, height) > 200 * min(width, height):
        width, height = (height * 180, height) if width > height else (width, width * 180)
    return _processor_size(height, width, model_input.family.factor, _HUB_BUDGET)


def _scaled(width: int, height: int, pixels: int) -> tuple[int, int]:
    factor = math.sqrt(pixels / (width * height))
    return int(width * factor), int(height * factor)


def _processor_size(height: int, width: int, factor: int, budget: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) to which the image processor resizes an image for a budget of (min, max) pixels."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize  # imports torch

    resized_height, resized_width = smart_resize(height, width, factor, *budget)
    return resized_height, resized_width
