"""A model's config, and the model family and codec that follow from its `model_type`."""

from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from boxtune.answers.codecs import CODECS, Codec
from boxtune.common.errors import UserError, reading
from boxtune.families import FAMILIES
from boxtune.families.family import Family
from boxtune.models.hub import require_hub_model

# Folders of the repository, relative to its root, that hold models.
REPOSITORY_FOLDERS = ("assets/", "runs/")
# Paths that start like this are local folders, never Hub ids.
LOCAL_PREFIXES = (".", "/", *REPOSITORY_FOLDERS)


def load_config(model_id: str, revision: str | None = None) -> PretrainedConfig:
    """The config of a model in a local folder or on the Hub.

    Raises UserError if the model does not exist, cannot be downloaded or has an unreadable config.
    """
    if Path(model_id).is_dir():
        if not (Path(model_id) / "config.json").is_file():
            raise UserError(f"{model_id} contains no model: config.json is missing.")
    elif model_id.startswith(LOCAL_PREFIXES) or model_id.count("/") != 1:
        raise UserError(f"no model at {model_id!r}: the folder does not exist. {_remedy_for_missing(model_id)}")
    else:
        require_hub_model(model_id, revision)
    with reading(f"the config of {model_id}", "Download the model again."):
        return AutoConfig.from_pretrained(model_id, revision=revision)


def _remedy_for_missing(folder: str) -> str:
    if not folder.startswith(REPOSITORY_FOLDERS):
        return "Give the path of a model, or a Hub id of the form OWNER/NAME."
    training = ", and train the model first (make train RECIPE=NAME)" if folder.startswith("runs/") else ""
    return (
        f"The path is relative to the repository root; the current folder is {Path.cwd()}. Run the command from the "
        f"repository root{training}."
    )


def family_of(config: PretrainedConfig) -> Family:
    """The family of a model. Raises UserError if the architecture is not supported."""
    if config.model_type not in FAMILIES:
        raise UserError(
            f"model type {config.model_type!r} is not supported. Supported model types: {', '.join(FAMILIES)}."
        )
    return FAMILIES[config.model_type]


def codec_for(config: PretrainedConfig, answer: str = "boxes", name: str | None = None) -> Codec:
    """The codec that a model is trained with. Raises UserError if the architecture is not supported.

    answer: "boxes" or "click". name: a codec to use instead of the one of the model's own family.
    """
    family = family_of(config)
    return CODECS[name or family.name + ("_click" if answer == "click" else "")]
