"""The supported model families by `model_type`. To add one: write its file and test, and add it to the dict."""

from boxtune.families import qwen2_5_vl, qwen2_vl, qwen3_vl
from boxtune.families.family import Family

FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in (qwen2_vl, qwen2_5_vl, qwen3_vl)}
