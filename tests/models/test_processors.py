"""Processors that cannot be loaded are reported with the edit that repairs them."""

import json
import shutil

import pytest

from boxtune.common.errors import UserError
from boxtune.models.processors import load_processor

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
