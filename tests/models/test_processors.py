"""Processors that cannot be loaded are reported with the edit that repairs them."""

import json
import shutil

import pytest

from boxtune.common.errors import UserError
from boxtune.models.processors import check_processor, load_processor, set_pixel_budget

OLD_NAME = (
    "Qwen2_5_VLImageProcessor"  # of the first copies of Qwen2.5-VL; later versions of transformers do not have it
)


@pytest.mark.parametrize("file", ["processor_config.json", "preprocessor_config.json"])
def test_an_image_processor_of_an_older_copy_is_named_with_the_edit(tiny_models, tmp_path, file):
    model = tmp_path / "model"
    shutil.copytree(tiny_models["qwen2_5_vl"], model)
    config = json.loads((model / "processor_config.json").read_text())
    config["image_processor"]["image_processor_type"] = OLD_NAME
    if file == "preprocessor_config.json":  # as transformers 4 wrote it
        (model / "processor_config.json").unlink()
        config = config["image_processor"] | {"processor_class": config["processor_class"]}
    (model / file).write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"has no image processor {OLD_NAME}") as error:
        load_processor(str(model))
    assert f'In {model / file}, write "image_processor_type": "Qwen2VLImageProcessor"' in str(error.value)
    # What the message advises is enough. The names that transformers 4 gave its fast processors are known.
    for name in ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast"):
        (model / file).write_text(json.dumps(config).replace(OLD_NAME, name))
        assert type(load_processor(str(model)).image_processor).__name__ == "Qwen2VLImageProcessor"


def test_the_config_of_the_hub_names_a_known_image_processor(shared_data):
    """The real Qwen2.5-VL files of early 2025 carry the old name; without tokenizer they get no further than this check."""
    folder = shared_data / "qwen_tokenizer" / "qwen2_5_vl_processor"
    with pytest.raises(UserError, match=f"no image processor {OLD_NAME}. In {folder}/preprocessor_config.json"):
        load_processor(str(folder))


def test_the_pixel_budget_is_set_within_its_bounds(tiny_models):
    """One image token of Qwen2-VL is 28 × 28 pixels."""
    processor = load_processor(str(tiny_models["qwen2_vl"]), min_pixels=784, max_pixels=784)
    assert processor.image_processor.size["shortest_edge"] == processor.image_processor.size["longest_edge"] == 784
    set_pixel_budget(processor, None, 5000)
    assert (processor.image_processor.size["shortest_edge"], processor.image_processor.size["longest_edge"]) == (
        784,
        5000,
    )
    set_pixel_budget(processor, 1000, None)
    assert (processor.image_processor.size["shortest_edge"], processor.image_processor.size["longest_edge"]) == (
        1000,
        5000,
    )
    for low, high in ((783, 5000), (5001, 5000), (100, 200)):
        with pytest.raises(UserError, match=f"min_pixels is {low} and max_pixels is {high}, but 784"):
            set_pixel_budget(processor, low, high)


def test_everything_that_makes_a_processor_unusable_is_listed(tiny_models):
    processor = load_processor(str(tiny_models["qwen2_vl"]))
    check_processor(processor, "m")
    processor.chat_template = "{% for m in messages %}{{ m.role }}{% endfor %}"
    processor.tokenizer.pad_token = None
    with pytest.raises(UserError, match="the processor of m is unusable") as error:
        check_processor(processor, "m")
    assert error.value.problems == [
        "the chat template renders one image and the question 'Where?' as 'user'",
        "the tokenizer has no pad_token",
    ]
    processor.chat_template = "{{ messages"
    with pytest.raises(UserError, match="the chat template of m is corrupt"):
        check_processor(processor, "m")
