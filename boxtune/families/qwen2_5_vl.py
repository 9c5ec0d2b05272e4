"""Qwen2.5-VL (arXiv 2502.13923): JSON, coordinates in pixels of the resized input."""

from boxtune.families.family import Family

FAMILY = Family(
    name="qwen2_5_vl",
    hub_name=r"qwen2[._]5[-_]?vl",
    syntax="json_boxes",
    coordinate_steps=None,
    patch_size=14,
    merge_size=2,
    vision_tower="model.visual",
    vision_blocks="visual.blocks",
    language_model="language_model",
    lm_head="lm_head",
    lora_parts={
        "language_attention": r"language_model\.layers\.\d+\.self_attn",
        "language_mlp": r"language_model\.layers\.\d+\.mlp",
        "vision_attention": r"visual\.blocks\.\d+\.attn",
        "vision_mlp": r"visual\.blocks\.\d+\.mlp",
        "merger": r"visual\.merger",
    },
    weight_prefixes=(("visual.", "model.visual."), ("model.", "model.language_model.")),
    llamafactory_template="qwen2_vl",
)
