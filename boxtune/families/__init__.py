"""The supported model families by `model_type`. To add one: a file here, a line below, and its test."""

from boxtune.families import qwen2_5_vl, qwen2_vl, qwen3_vl

FAMILIES = {module.FAMILY.name: module.FAMILY for module in (qwen2_vl, qwen2_5_vl, qwen3_vl)}
