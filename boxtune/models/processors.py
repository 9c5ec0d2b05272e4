"""The processor of a model: loading, checks and pixel budget."""

from pathlib import Path

import jinja2
import transformers
from transformers import AutoProcessor, BaseImageProcessor, ProcessorMixin
from transformers.utils import cached_file

from boxtune.common.errors import UserError, reading

# The image processor of all families.
IMAGE_PROCESSOR = "Qwen2VLImageProcessor"
# Its config is in the first of these files that has it.
PROCESSOR_CONFIGS = ("processor_config.json", "preprocessor_config.json")


def load_processor(
    model_id: str, revision: str | None = None, min_pixels: int | None = None, max_pixels: int | None = None
) -> ProcessorMixin:
    """The processor of a model, with its pixel budget set. Raises UserError if it is unreadable or unusable."""
    with reading(
        f"the processor of {model_id}",
        "Download it again, or copy its files from another checkpoint of the run.",
    ):
        _check_image_processor_type(model_id, revision)
        processor = AutoProcessor.from_pretrained(model_id, revision=revision)
    if not getattr(processor, "chat_template", None):
        raise UserError(f"the processor of {model_id} has no chat template; use an Instruct model.")
    check_processor(processor, model_id)
    set_pixel_budget(processor, min_pixels, max_pixels)
    return processor


def _check_image_processor_type(model_id: str, revision: str | None) -> None:
    """Raises UserError if the config names an image processor that transformers no longer has, as older copies do.

    transformers itself only lists all the types that it knows.
    """
    config, _ = BaseImageProcessor.get_image_processor_dict(model_id, revision=revision)
    named = config.get("image_processor_type")
    if named and not hasattr(transformers, named.removesuffix("Fast")):
        file = _file_that_names(named, model_id, revision)
        raise UserError(
            f'transformers {transformers.__version__} has no image processor {named}. In {file}, write "image_processor_type": '
            f'"{IMAGE_PROCESSOR}" instead, or download the model again.'
        )


def _file_that_names(text: str, model_id: str, revision: str | None) -> str:
    """The path of the processor config that contains `text`."""
    for name in PROCESSOR_CONFIGS:
        path = cached_file(model_id, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        if path and text in Path(path).read_text(encoding="utf-8"):
            return path
    return f"the processor config of {model_id}"


def check_processor(processor: ProcessorMixin, model_id: str) -> None:
    """Render one question about one image. Raises UserError if chat template or special tokens are not those of Qwen-VL."""
    tokenizer, question = processor.tokenizer, "Where?"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    try:
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    except jinja2.TemplateError as error:
        raise UserError(f"the chat template of {model_id} is corrupt ({error}).") from None
    problems = []
    if text.count(processor.image_token) != 1 or question not in text:
        problems.append(f"the chat template renders one image and the question {question!r} as {text!r}")
    missing = [name for name in ("eos_token", "pad_token") if getattr(tokenizer, name) is None]
    problems += [f"the tokenizer has no {name}" for name in missing]
    if len(tokenizer(processor.image_token, add_special_tokens=False)["input_ids"]) != 1:
        problems.append(f"the tokenizer has no token {processor.image_token}")
    if problems:
        raise UserError(
            f"the processor of {model_id} is unusable; copy its files from another checkpoint. Problems:", problems
        )


def set_pixel_budget(processor: ProcessorMixin, min_pixels: int | None, max_pixels: int | None) -> None:
    """Set the bounds on an image's area after resizing, in pixels. None keeps the processor's own bound.

    The bounds are saved with the processor, so that training, evaluation and serving resize alike. Raises UserError if the
    bounds are in the wrong order or smaller than one image token.
    """
    image_processor = processor.image_processor
    low = min_pixels or image_processor.size["shortest_edge"]
    high = max_pixels or image_processor.size["longest_edge"]
    smallest = (image_processor.patch_size * image_processor.merge_size) ** 2
    if not smallest <= low <= high:
        raise UserError(
            f"min_pixels is {low} and max_pixels is {high}, but {smallest} (one image token) ≤ min_pixels ≤ max_pixels is "
            "required."
        )
    image_processor.size = {"shortest_edge": low, "longest_edge": high}
