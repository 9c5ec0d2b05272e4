"""Qwen3.5, 3.6 and 3.8, dense: JSON, coordinates in thousandths of the image. Three of four layers are gated delta nets."""

from boxtune.families.family import Family

FAMILY = Family(
    name="qwen3_5",
    hub_name=r"qwen3[._][568](?!.*(?:-a\d+b|moe|flash[-_]next))",  # Qwen3.8-Flash-Next is a qwen4_exp
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
        "language_linear_attention": r"language_model\.layers\.\d+\.linear_attn",
        "language_mlp": r"language_model\.layers\.\d+\.mlp",
        "vision_attention": r"visual\.blocks\.\d+\.attn",
        "vision_mlp": r"visual\.blocks\.\d+\.mlp",
        "merger": r"visual\.merger",
    },
    weight_prefixes=(),
    # Its empty thinking block before each response is that of the models' own templates; qwen3_5_nothink has none.
    llamafactory_template="qwen3_5",
    thinks=True,
    prefers_16_bits=True,
    # They decide how much of the state each token keeps and overwrites, and have one output per head.
    unquantized=("linear_attn.in_proj_a", "linear_attn.in_proj_b"),
)
