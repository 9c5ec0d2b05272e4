"""The detection head: it sees no response, does not depend on the batch, is small, and is saved and loaded strictly."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from boxtune.common.errors import UserError
from boxtune.data.dataset import read_records
from boxtune.models.detection_head import DetectionHead, HeadShape, Layer, best_proposals, label_embeddings, seen_in
from boxtune.models.head_files import (
    HEAD_FOLDER,
    attach_head,
    detection_head,
    load_head,
    save_head,
    without_head,
)
from boxtune.models.language_states import language_states
from boxtune.models.loading import load_model
from tests.helpers.collators import as_examples, make_collator
from tests.helpers.records import FAMILIES

CLASSES = ["red square", "blue square"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tiny_models):
    """A tiny model with a head whose boxes move, so that they depend on what the head sees."""
    base = load_model(str(tiny_models[request.param]), dtype=torch.float32)
    torch.manual_seed(0)
    head = attach_head(base, HeadShape(base.get_input_embeddings().embedding_dim, hidden_size=32, queries=20))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return base.eval()


def found_in(model, batch: dict, collator) -> Layer:
    """The head's result for a training batch."""
    names = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
    with torch.no_grad(), language_states(model) as states:
        model(**{name: batch[name] for name in names})
    ids = batch["input_ids"]
    is_question = torch.arange(ids.shape[1]) < batch["head_targets"]["question_end"][:, None]
    merge_size = collator.processor.image_processor.merge_size
    seen = seen_in(ids, is_question, batch["image_grid_thw"], collator.image_token_id, merge_size)
    labels = label_embeddings(model.get_input_embeddings(), collator.tokenizer, CLASSES)
    with torch.no_grad():
        return detection_head(model)(states[0], seen, labels).layers[-1]


def head_collator(model, data_dir):
    collator = make_collator(model.name_or_path, data_dir)
    collator.grounding.classes.extend(CLASSES)
    return collator.for_losses(teacher_forced=False, sampled=False, head=True)


def test_no_response_leaks_into_the_head(model, squares):
    record = next(r for r in read_records(squares, "train") if r["objects"]["bbox"])
    more = [[3 * i, 4, 5 * i + 20, 30] for i in range(6)]
    empty = {"bbox": [], "category": [], "ignore": []}
    others = {"bbox": more, "category": ["blue square"] * 6, "ignore": [False] * 6}
    collator = head_collator(model, squares)
    batches = [collator(as_examples(record | {"objects": o})) for o in (record["objects"], empty, others)]
    assert len({batch["input_ids"].shape[1] for batch in batches}) == 3, "the responses differ"
    found = [found_in(model, batch, collator) for batch in batches]
    for other in found[1:]:
        # Float32 sums of the language model over sequences of another length.
        torch.testing.assert_close(other.boxes_cxcywh, found[0].boxes_cxcywh, rtol=0, atol=1e-5)
        torch.testing.assert_close(other.logits, found[0].logits, rtol=0, atol=1e-4)


def test_a_batch_of_different_images_equals_each_by_itself(model, squares):
    records = read_records(squares, "train")[:4]
    collator = head_collator(model, squares)
    together = found_in(model, collator(as_examples(*records)), collator)
    for i, record in enumerate(records):
        alone = found_in(model, collator(as_examples(record)), collator)
        kept = together.exists[i]
        assert kept.sum() == alone.exists.sum()
        # Float32 sums in another order.
        torch.testing.assert_close(together.boxes_cxcywh[i][kept], alone.boxes_cxcywh[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(together.logits[i][kept], alone.logits[0], rtol=0, atol=1e-3)


def test_a_new_head_proposes_a_box_around_each_image_token():
    head = DetectionHead(HeadShape(64, hidden_size=32, queries=6))
    states = type("States", (), {"inputs": torch.randn(1, 9, 64), "last": torch.randn(1, 9, 64)})
    is_image = torch.tensor([[False, True, True, True, True, True, True, False, False]])
    seen = type(
        "Seen", (), {"is_image": is_image, "is_question": torch.ones(1, 9, dtype=torch.bool), "grids": [(2, 3)]}
    )
    found = head(states, seen, torch.randn(2, 64))
    expected = [[(column + 0.5) / 3, (row + 0.5) / 2, 0.2, 0.2] for row in range(2) for column in range(3)]
    torch.testing.assert_close(found.proposals.boxes_cxcywh[0], torch.tensor(expected))
    assert found.layers[-1].logits.shape == (1, 6, 2)
    proposed = found.proposals.logits[0, :, 0].sort(descending=True).values
    # The layers start with the scores of the proposals, the best first; only the classes add to them.
    assert found.proposals.logits.sigmoid().max() < 0.1
    head.likeness.weight.data.zero_()
    head.likeness.bias.data.zero_()
    last = head(states, seen, torch.randn(2, 64)).layers[-1]
    torch.testing.assert_close(last.logits[0, :, 0], proposed)


def test_overlapping_proposals_become_one_query():
    boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.4], [0.51, 0.5, 0.4, 0.4], [0.2, 0.2, 0.2, 0.2], [0.8, 0.8, 0.1, 0.1]]])
    logits = torch.tensor([[[1.0], [2.0], [0.0], [3.0]]])
    exists = torch.tensor([[True, True, True, False]])
    best, is_query = best_proposals(Layer(boxes, logits, exists, has_classes=False), 10)
    assert best[is_query].tolist() == [1, 2]
    assert best_proposals(Layer(boxes, logits, exists, has_classes=False), 1)[0].tolist() == [[1]]


@pytest.mark.parametrize("llm_hidden_size", [2048, 3584])
def test_the_head_is_below_two_percent_of_a_3b_model(llm_hidden_size):
    with torch.device("meta"):
        head = DetectionHead(HeadShape(llm_hidden_size, decoder_layers=2))
    assert sum(parameter.numel() for parameter in head.parameters()) < 0.02 * 3.755e9


def test_the_saved_head_is_loaded_strictly(model, tmp_path):
    save_head(model, tmp_path)
    file = tmp_path / HEAD_FOLDER / "model.safetensors"
    weights = load_file(file)
    assert all(torch.equal(value, weights[key]) for key, value in detection_head(model).state_dict().items())
    assert not any("detection_head" in key for key in without_head(model.state_dict()))
    first, second, *_ = weights
    damaged = weights | {first: weights[first] * float("nan"), "extra": torch.zeros(1)}
    del damaged[second]
    save_file(damaged, file)
    with pytest.raises(UserError) as raised:
        load_head(model, tmp_path)
    assert f"{first} not finite" in str(raised.value).replace(": ", " ")
    assert all(word in str(raised.value) for word in (second, "missing", "extra", "unexpected"))
