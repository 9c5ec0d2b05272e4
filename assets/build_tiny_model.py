"""Build a tiny Qwen-VL model of any supported family, with random weights from a seed.

    python -m assets.build_tiny_model --family qwen2_5_vl --out assets/tiny_qwen2_5_vl

The model has the family's own classes and a small byte-level BPE tokenizer that keeps Qwen's special tokens and single-digit
tokens. Every line of the project therefore runs on it as on the Hub's models. Nothing is downloaded.
"""

import argparse
import itertools
import json
import random
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from assets.tiny_newer_models import CLASSES, build_newer_model
from boxtune.answers.codecs import CODECS
from boxtune.answers.conversation import FORMAT_SENTENCES, SYSTEM_PROMPT
from boxtune.data.questions import question
from boxtune.families import FAMILIES

# In Qwen's own order; the added vocabulary of the Hub's tokenizers begins with the same 14 tokens.
SPECIAL_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip

# Qwen's split of text before merging (contractions, words, single digits, punctuation runs, line breaks, spaces), with one
# change: the text between the numbers and labels of a JSON answer stays whole, which gives 18 tokens per object instead of 31.
SPLIT_PATTERN = (
    r'\[\{"bbox_2d": \[|"\}, \{"bbox_2d": \[|\], "label": "|"\}\]|, (?=\p{N})|'
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

NAMES = [
    "nutrition-table",
    "table",
    "figure",
    "title",
    "text",
    "list",
    "caption",
    "header",
    "footer",
    "person",
    "dog",
    "cat",
    "car",
    "bicycle",
    "bus",
    "truck",
    "bird",
    "fish",
    "shark",
    "penguin",
    "jellyfish",
    "starfish",
    "stingray",
    "puffin",
    "balloon",
    "bottle",
    "box",
    "cup",
    "chair",
    "book",
    "phone",
    "sign",
    "RBC",
    "WBC",
    "Platelets",
    "circle",
    "square",
    "triangle",
    "star",
    "cross",
    "ring",
    "cell",
    "package",
    "label",
    "barcode",
    "logo",
    "price",
    "object",
]


def build_tokenizer(texts: Sequence[str] = (), vocab_size: int = 960) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with merges learned from the project's own prompts and answers, and from `texts`."""
    draw = random.Random(0)
    corpus = [SYSTEM_PROMPT, *FORMAT_SENTENCES.values(), "system user assistant\n", *texts]
    for first, second in itertools.combinations(NAMES, 2):
        boxes_xyxy = [
            [draw.randrange(300), draw.randrange(300), draw.randrange(300, 999), draw.randrange(300, 999)]
        ] * 2
        answer = CODECS["qwen3_vl"].encode(boxes_xyxy, [first, second], (1000, 1000), (1000, 1000))
        corpus += [question([first, second]), answer.text]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL_TOKENS[3:],
        model_max_length=32768,
    )


def chat_template(family: str) -> str:
    """The family's chat template from the trl package. Qwen2-VL uses that of Qwen2.5-VL, whose turns are the same."""
    other_names = {"qwen2_vl": "qwen2_5_vl", "qwen3_vl_moe": "qwen3_vl"}
    other_names |= {
        "qwen3_5": "qwen3_5_nothink",
        "qwen3_5_moe": "qwen3_5_think",
    }  # those of the small and the large models
    name = other_names.get(family, family)
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def build_processor(
    family: str, tokenizer: PreTrainedTokenizerFast, max_pixels: int = 224 * 224, patch_size: int | None = None
):
    patch = patch_size or FAMILIES[family].patch_size
    size = {"shortest_edge": 4 * (2 * patch) ** 2, "longest_edge": max_pixels}
    image_processor = Qwen2VLImageProcessor(patch_size=patch, merge_size=2, temporal_patch_size=2, size=size)
    is_older = family in ("qwen2_vl", "qwen2_5_vl")
    video_class = Qwen2VLVideoProcessor if is_older else Qwen3VLVideoProcessor
    video_processor = video_class(patch_size=patch, merge_size=2, temporal_patch_size=2)
    older_classes = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor}
    processor_class = older_classes.get(family, Qwen3VLProcessor)
    return processor_class(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=video_processor,
        chat_template=chat_template(family),
    )


def build_model(
    family: str,
    tokenizer,
    hidden: int = 128,
    layers: int = 4,
    vision_layers: int = 4,
    patch_size: int = 16,
    deepstack: int = 2,
    spare_rows: int = 0,
    seed: int = 0,
):
    """A model with random float32 weights. A head size of 32 keeps the three sections of m-RoPE (time, height, width).

    Qwen3-VL only: patch_size, and deepstack, the number of vision layers whose output goes to the language model directly.
    spare_rows: rows of the vocabulary without a token, as those of the Hub's models.
    """
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text = {
        "vocab_size": len(tokenizer) + spare_rows,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": hidden // 64,
        "max_position_embeddings": 32768,
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "tie_word_embeddings": False,
    }
    tokens = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": False,
    }
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    torch.manual_seed(seed)
    if family == "qwen2_vl":
        vision = {
            "depth": vision_layers,
            "embed_dim": hidden,
            "hidden_size": hidden,
            "num_heads": hidden // 32,
            "mlp_ratio": 3,
        }
        config = Qwen2VLConfig(text_config=text | {"rope_parameters": rope}, vision_config=vision, **tokens)
        return Qwen2VLForConditionalGeneration(config)
    if family == "qwen2_5_vl":
        vision = {
            "depth": vision_layers,
            "hidden_size": hidden,
            "out_hidden_size": hidden,
            "intermediate_size": 3 * hidden,
            "num_heads": hidden // 32,
            "window_size": 112,
            "fullatt_block_indexes": list(range(vision_layers)),
        }
        config = Qwen2_5_VLConfig(text_config=text | {"rope_parameters": rope}, vision_config=vision, **tokens)
        return Qwen2_5_VLForConditionalGeneration(config)
    vision = {
        "depth": vision_layers,
        "hidden_size": hidden,
        "out_hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_heads": hidden // 32,
        "patch_size": patch_size,
        "num_position_embeddings": 256,
        "deepstack_visual_indexes": [vision_layers * (i + 1) // (deepstack + 1) for i in range(deepstack)],
    }
    rope |= {"mrope_interleaved": True}
    if family in CLASSES:
        return build_newer_model(family, text, vision, rope, tokens)
    config = Qwen3VLConfig(text_config=text | {"head_dim": 32, "rope_parameters": rope}, vision_config=vision, **tokens)
    return Qwen3VLForConditionalGeneration(config)


def build(family: str, out: Path, **sizes) -> None:
    """Write model, processor and tokenizer to `out`; they load like a Hub model."""
    tokenizer = build_tokenizer()
    model = build_model(family, tokenizer, **sizes).to(torch.bfloat16)
    model.generation_config.do_sample = False
    model.save_pretrained(out)
    build_processor(family, tokenizer).save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(FAMILIES), default="qwen2_5_vl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    build(args.family, args.out, seed=args.seed)
    print(json.dumps({path.name: path.stat().st_size for path in sorted(args.out.iterdir())}))
