"""Qwen3-VL with a mixture of experts: as qwen3_vl, but the MLPs of the language model are routers and their experts."""

from boxtune.families.family import Family

FAMILY = Family(
    name="qwen3_vl_moe",
    hub_name=r"qwen3[-_]?vl.*(?:-a\d+b|moe)",
    syntax="json_boxes",
    coordinate_steps=1000,
    patch_size=16,
    merge_size=2,
    vision_tower="model.visual",
    vision_blocks="visual.blocks",
    language_model="language_model",
    lm_head="lm_head",
    lora_parts={
        "language_attention": r"language_model\.layers\.\d+\.self_attn",
        "vision_attention": r"visual\.blocks\.\d+\.attn",
        "vision_mlp": r"visual\.blocks\.\d+\.mlp",
        "merger": r"visual\.(?:merger|deepstack_merger_list\.\d+)",
    },
    weight_prefixes=(),
    # The template qwen3_vl puts an empty thinking block before each response; Qwen3-VL-Instruct generates none.
    llamafactory_template="qwen3_vl_nothink",
    experts=r"language_model\.layers\.\d+\.mlp\.experts",
)
