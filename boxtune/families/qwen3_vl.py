"""Qwen3-VL (the hub repository's cookbooks): JSON boxes in thousandths of the image."""

from boxtune.families.family import Family

FAMILY = Family(
    name="qwen3_vl",
    hub_name=r"qwen3[-_]?vl",
    syntax="json",
    coordinate_steps=1000,
    patch_size=16,
    merge_size=2,
    vision_tower="model.visual",
    vision_blocks="visual.blocks",
    lm_head="lm_head",
    lora_parts={
        "language_attention": r"language_model\.layers\.\d+\.self_attn",
        "language_mlp": r"language_model\.layers\.\d+\.mlp",
        "vision_attention": r"visual\.blocks\.\d+\.attn",
        "vision_mlp": r"visual\.blocks\.\d+\.mlp",
        "merger": r"visual\.(?:merger|deepstack_merger_list\.\d+)",
    },
    weight_prefixes=(),
    # Its template qwen3_vl puts an empty thought before each answer; Qwen3-VL-Instruct writes none.
    llamafactory_template="qwen3_vl_nothink",
)
