"""A model's config, and the model family and codec that follow from its `model_type`."""

from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from boxtune.answers.codecs import CODECS, Codec
from boxtune.common.errors import UserError, reading
from boxtune.families import FAMILIES
from boxtune.families.family import Family
from boxtune.models.hub import require_hub_model

# Paths that start like this are local folders, never hub ids.
LOCAL_PREFIXES = (".", "/", "assets/", "runs/")


def load_config(model_id: str, revision: str | None = None) -> PretrainedConfig:
    """The config of a model in a local folder or on the hub.

    Raises UserError if the model does not exist, cannot be downloaded or has an unreadable config.
    """
    if Path(model_id).is_dir():
        if not (Path(model_id) / "config.json").is_file():
            raise UserError(f"{model_id} contains no model: config.json is missing.")
    elif model_id.startswith(LOCAL_PREFIXES) or model_id.count("/") != 1:
        raise UserError(
            f"no model at {model_id!r}: the folder does not exist. Train first (make train RECIPE=NAME), or give the path "
            "of another model."
        )
    else:
        require_hub_model(model_id, revision)
    with reading(f"the config of {model_id}", "Download the model again."):
        return AutoConfig.from_pretrained(model_id, revision=revision)


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
