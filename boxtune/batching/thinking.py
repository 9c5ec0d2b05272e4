"""Chat templates of models that can think."""

from functools import lru_cache
from importlib.resources import files

from boxtune.answers.codecs import THINK_START

TRAINING_SUFFIX = "_training.jinja"


@lru_cache
def training_template(template: str) -> str:
    """TRL's training variant of a template that can think; the template itself if TRL has none.

    The templates of Qwen3.5, 3.6 and 3.8 start a prompt's response with an empty think block, but leave the block out of
    earlier responses of the conversation. The training variants put it before each response, and differ in nothing else that
    concerns us. TRL ships the templates as they were published. So the content of a template says which one it is; the name of
    the model does not matter.
    """
    if THINK_START not in template:
        return template
    folder = files("trl") / "chat_templates"
    for variant in folder.iterdir():
        published = folder / variant.name.replace(TRAINING_SUFFIX, ".jinja")
        is_variant = variant.name.endswith(TRAINING_SUFFIX)
        if is_variant and published.read_text(encoding="utf-8").strip() == template.strip():
            return variant.read_text(encoding="utf-8")
    return template
