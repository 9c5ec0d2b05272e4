"""The soft prompt in a model: its tokens, its first values, what it changes, how it is trained, saved and turned off."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from assets.build_tiny_model import build_model, build_processor, build_tokenizer
from benchmarks.architectures import ARCHITECTURES
from boxtune.common.errors import UserError
from boxtune.families import FAMILIES as FAMILY_FACTS
from boxtune.models.describing import describe_modules, trainable_parameters
from boxtune.models.lora import lora_config
from boxtune.models.placement import lora_targets
from boxtune.models.processors import load_processor
from boxtune.models.soft_prompt import (
    FILE_NAME,
    KEY,
    SoftPrompt,
    add_virtual_tokens,
    attach,
    embeddings_of,
    random_embeddings,
    read_soft_prompt,
    save_soft_prompt,
    soft_prompt_of,
    text_rows,
    virtual_token_ids,
    without_adapter,
)
from tests.helpers.records import FAMILIES
from tests.helpers.soft_prompts import SPARE_ROWS, small_model

COUNT = 5
BOTH_HEADS = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])


@pytest.fixture
def tokenizer():
    return build_tokenizer()


def prompt_values(model) -> torch.Tensor:
    return random_embeddings(model.get_input_embeddings().weight, COUNT, seed=7)


def adapted(model, tokenizer) -> tuple[PeftModel, list[str]]:
    """(the model with a LoRA that has an effect and a soft prompt, its virtual tokens)."""
    tokens = add_virtual_tokens(tokenizer, COUNT, model.config.get_text_config().vocab_size)
    soft_prompt = SoftPrompt(tokenizer.convert_tokens_to_ids(tokens), prompt_values(model))
    with_lora = get_peft_model(model, lora_config(4, 8, 0.0, lora_targets(model)))
    torch.manual_seed(1)
    for name, parameter in with_lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    attach(with_lora, soft_prompt)
    return with_lora, tokens


def ask(family: str, tokenizer, system: str) -> dict[str, torch.Tensor]:
    """A question about an image, as a batch."""
    processor = build_processor(family, tokenizer, max_pixels=84 * 84)
    image = Image.linear_gradient("L").convert("RGB").resize((90, 60))
    content = [{"type": "image", "image": image}, {"type": "text", "text": "Where?"}]
    turns = [{"role": "system", "content": [{"type": "text", "text": system}]}, {"role": "user", "content": content}]
    return processor.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )


# ---- tokens --------------------------------------------------------------------------------------------------------------


def test_virtual_tokens_are_spare_rows_and_survive_saving(tokenizer, tmp_path):
    before = len(tokenizer)
    tokens = add_virtual_tokens(tokenizer, COUNT, before + SPARE_ROWS)
    ids = list(range(before, before + COUNT))
    assert virtual_token_ids(tokenizer, tokens, "x") == ids
    assert add_virtual_tokens(tokenizer, COUNT, before + COUNT) == tokens and len(tokenizer) == before + COUNT
    build_processor("qwen3_vl", tokenizer).save_pretrained(tmp_path)
    loaded = load_processor(str(tmp_path)).tokenizer
    assert loaded("".join(tokens) + "Find", add_special_tokens=False)["input_ids"][: COUNT + 1] == [
        *ids,
        loaded("Find", add_special_tokens=False)["input_ids"][0],
    ]


def test_too_few_spare_rows_are_refused_with_the_number_that_fits(tokenizer):
    rows = len(tokenizer) + 3
    with pytest.raises(
        UserError, match=rf"need 5 rows.*this model has 3 \({rows} rows\). Lower num_virtual_tokens to 3,"
    ):
        add_virtual_tokens(tokenizer, 5, rows)
    add_virtual_tokens(tokenizer, 2, rows)
    with pytest.raises(UserError, match=r"5 virtual tokens need 3 rows.*has 1 .*to 3,"):
        add_virtual_tokens(tokenizer, 5, rows)
    assert add_virtual_tokens(tokenizer, 3, rows)


def test_a_tokenizer_without_the_virtual_tokens_of_a_prompt_is_refused(tokenizer):
    tokens = add_virtual_tokens(tokenizer, 2, len(tokenizer) + 2)
    with pytest.raises(UserError, match=r"tokenizer of my/run lacks 1 of the 3 virtual tokens.*<\|soft_prompt_2\|>"):
        virtual_token_ids(tokenizer, [*tokens, "<|soft_prompt_2|>"], "my/run")


# ---- first values ----------------------------------------------------------------------------------------------------------


def test_a_text_is_cut_or_repeated(tokenizer):
    ids = tokenizer("Detect every cat", add_special_tokens=False)["input_ids"]
    assert len(ids) > 2
    assert text_rows(tokenizer, "Detect every cat", 2) == (ids[:2], len(ids) - 2)
    assert text_rows(tokenizer, "Detect every cat", 2 * len(ids) + 1) == (ids + ids + ids[:1], 0)


def test_a_chinese_text_gives_whole_words_of_the_real_tokenizer(shared_data):
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "qwen_tokenizer" / "qwen3_vl")
    ids, cut_off = text_rows(tokenizer, "检测螺丝", 5)
    assert [tokenizer.decode(token) for token in ids] == ["检测", "螺丝", "检测", "螺丝", "检测"] and cut_off == 0
    first = len(tokenizer)
    tokens = add_virtual_tokens(tokenizer, 16, 151936)  # the rows of Qwen3-VL and Qwen2.5-VL-3B
    prompt = tokenizer("<|im_start|>system\n" + "".join(tokens) + "检测螺丝", add_special_tokens=False)["input_ids"]
    assert prompt[3:] == [*range(first, first + 16), *ids[:2]]


def test_first_values_are_rows_of_the_embeddings_or_as_large_as_they_are():
    weight = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).bfloat16() * 0.02
    assert torch.equal(embeddings_of(weight, [3, 3, 9]), weight[[3, 3, 9]].float())
    drawn = random_embeddings(weight, 40, seed=1)
    assert drawn.std() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(drawn, random_embeddings(weight, 40, seed=1))
    assert not torch.equal(drawn, random_embeddings(weight, 40, seed=2))


# ---- effect ----------------------------------------------------------------------------------------------------------------


@BOTH_HEADS
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_soft_prompt_acts_like_rows_of_the_embeddings_and_leaves_the_head_alone(family, tied, tokenizer):
    """The reference has its rows in the embedding matrix, and the base's head. So image positions have their m-RoPE."""
    model = small_model(family, tokenizer, tied).eval()
    values, reference = prompt_values(model), copy.deepcopy(model)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    tokens = add_virtual_tokens(tokenizer, COUNT, model.config.get_text_config().vocab_size)
    ids = tokenizer.convert_tokens_to_ids(tokens)
    batch = ask(family, tokenizer, "".join(tokens) + "Find things.")
    assert [token for token in batch["input_ids"][0].tolist() if token in ids] == ids
    without = model(**batch).logits
    attach(model, SoftPrompt(ids, values))
    found = model(**batch).logits
    assert not torch.allclose(found, without, atol=1e-3)

    layer = reference.get_input_embeddings()  # a tied head keeps the old weight
    layer.weight = torch.nn.Parameter(layer.weight.index_copy(0, torch.tensor(ids), values))
    assert torch.equal(found, reference(**batch).logits)


@pytest.mark.parametrize("family", FAMILY_FACTS)
def test_every_family_names_its_embedding_matrix(family, tokenizer):
    with torch.device("meta"):
        model = build_model(family, tokenizer, hidden=64, layers=2, vision_layers=3)
    assert model.get_submodule(FAMILY_FACTS[family].token_embeddings) is model.get_input_embeddings()


@BOTH_HEADS
@torch.inference_mode()
def test_turned_off_it_is_the_base_bit_by_bit_and_on_again_the_tuned_model(tied, tokenizer):
    base = small_model("qwen2_5_vl", tokenizer, tied).eval()
    plain = ask("qwen2_5_vl", tokenizer, "Find things.")
    expected = base(**plain).logits
    model, tokens = adapted(base, tokenizer)
    model.eval()
    prompted = ask("qwen2_5_vl", tokenizer, "".join(tokens) + "Find things.")
    tuned, spare_rows = model(**prompted).logits, model.get_input_embeddings().weight[-SPARE_ROWS:]
    with without_adapter(model):
        assert torch.equal(model(**plain).logits, expected)
        # The virtual tokens themselves are then those of the base, too.
        ids = prompted["input_ids"][:, prompted["input_ids"][0] >= len(tokenizer) - COUNT]
        assert torch.equal(model.get_input_embeddings()(ids)[0], spare_rows[:COUNT])
    assert torch.equal(model(**prompted).logits, tuned)
    with pytest.raises(KeyError), without_adapter(model):
        raise KeyError
    assert torch.equal(model(**prompted).logits, tuned)


# ---- training --------------------------------------------------------------------------------------------------------------


@BOTH_HEADS
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_virtual_token_has_a_gradient_and_the_embedding_matrix_has_none(family, checkpointing, tied, tokenizer):
    model, tokens = adapted(small_model(family, tokenizer, tied), tokenizer)
    if checkpointing:  # as the trainer does
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    batch = ask(family, tokenizer, "".join(tokens) + "Find things.")
    model(**batch, labels=batch["input_ids"]).loss.backward()
    soft_prompt = soft_prompt_of(model)
    assert (soft_prompt.embeddings.grad.abs().sum(-1) > 0).all()
    assert model.get_input_embeddings().weight.grad is None
    trained = {name for name, p in model.named_parameters() if p.requires_grad and ".lora_" not in name}
    assert trained == {"base_model.model.soft_prompt.embeddings"}
    assert "  soft prompt: 5 virtual tokens" in describe_modules(model).splitlines()


def test_lora_and_soft_prompt_of_a_3b_model_are_less_than_2_percent_of_its_parameters():
    model_class, config = ARCHITECTURES["Qwen2.5-VL-3B"]
    with torch.device("meta"):
        model = model_class(config)
        targets = lora_targets(model, ["language_attention", "language_mlp"])
        with_lora = get_peft_model(model, lora_config(8, 16, 0.1, targets))
        lora, _ = trainable_parameters(with_lora)
        attach(
            with_lora, SoftPrompt(list(range(151665, 151681)), torch.empty(16, config.get_text_config().hidden_size))
        )
    trainable, total = trainable_parameters(with_lora)
    assert trainable == lora + 16 * 2048
    assert total - trainable == pytest.approx(3.755e9, rel=1e-3)
    assert 0.003 < trainable / total < 0.02


# ---- file ------------------------------------------------------------------------------------------------------------------


def test_the_file_is_read_strictly(tmp_path):
    values = torch.randn(3, 8)
    with pytest.raises(
        UserError, match=r"has no prompt_embeddings.safetensors, although its prompt has 3 virtual tokens"
    ):
        read_soft_prompt(tmp_path, 3, 8)
    save_soft_prompt(SoftPrompt([1, 2, 4], values), tmp_path)
    assert torch.equal(read_soft_prompt(tmp_path, 3, 8), values)
    for shape in ((4, 8), (3, 16)):
        with pytest.raises(UserError, match=rf"of shape \[{shape[0]}, {shape[1]}\], but holds .*\[3, 8\]"):
            read_soft_prompt(tmp_path, *shape)
    for content, message in [
        ({KEY: torch.full((3, 8), torch.nan)}, "not finite"),
        ({"other": values}, "must hold prompt_embeddings"),
        ({KEY: values, "other": values.clone()}, "must hold prompt_embeddings"),
    ]:
        save_file(content, tmp_path / FILE_NAME)
        with pytest.raises(UserError, match=message):
            read_soft_prompt(tmp_path, 3, 8)
    (tmp_path / FILE_NAME).write_bytes(b"corrupt")
    with pytest.raises(UserError, match="cannot be read"):
        read_soft_prompt(tmp_path, 3, 8)


def test_peft_neither_saves_the_soft_prompt_nor_the_embeddings(tokenizer, tmp_path):
    model, _ = adapted(small_model("qwen2_5_vl", tokenizer, tied=False), tokenizer)
    model.save_pretrained(tmp_path)
    assert all(".lora_" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
