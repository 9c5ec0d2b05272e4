"""Which family a model belongs to, by its config.json or its Hub id; without loading it."""

import json
import re
from pathlib import Path

from boxtune.common.errors import UserError, reading
from boxtune.families import FAMILIES


def recognise_family(model: str) -> str:
    """The name of a model's family: from config.json if `model` is a folder, else from its Hub id.

    Raises UserError if neither identifies a supported family.
    """
    config = Path(model) / "config.json"
    if config.is_file():
        with reading(str(config), "Download the model again."):
            values = json.loads(config.read_text(encoding="utf-8"))
        model_type: object = values.get("model_type") if isinstance(values, dict) else None
        if not isinstance(model_type, str) or model_type not in FAMILIES:
            raise UserError(f"{config}: unsupported model_type {model_type!r}; supported: {', '.join(FAMILIES)}.")
        return model_type
    found = [name for name, family in FAMILIES.items() if re.search(family.hub_name, model, re.IGNORECASE)]
    if len(found) != 1:
        raise UserError(
            f"{model}: the name matches none of the families {', '.join(FAMILIES)}, and there is no folder of that name with a "
            "config.json."
        )
    return found[0]
