"""A checkpoint without an adapter, without training one."""

import shutil
from pathlib import Path

from boxtune.answers.grounding import Grounding
from boxtune.models.generation_config import greedy_config
from boxtune.models.processors import load_processor
from tests.helpers.records import ROOT


def write_whole_model(folder: Path, data_dir: Path) -> Path:
    """The embedded model in `folder`, asked as if it had been trained on the squares of `data_dir`."""
    base = ROOT / "assets" / "tiny_qwen3_vl"
    shutil.copytree(base, folder)
    processor = load_processor(str(folder), min_pixels=4096, max_pixels=50176)
    processor.save_pretrained(folder)
    greedy_config(processor.tokenizer, 48).save_pretrained(folder)
    Grounding(
        codec="qwen3_vl",
        system_prompt="",
        format_sentence="Answer in JSON.",
        min_pixels=4096,
        max_pixels=50176,
        max_new_tokens=48,
        base_model=str(base),
        data_dir=str(data_dir),
        classes=["red square", "blue square"],
        base_precision="float32",
    ).save(folder)
    return folder
