"""The policy loss: what sampled responses cost, and that its gradient lowers the cost and leaves the model's mode unchanged."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from boxtune.answers.predictions import make_prediction
from boxtune.batching.collator import DetectionCollator
from boxtune.batching.encoder import IGNORE_INDEX
from boxtune.data.dataset import read_records
from boxtune.data.records import Record
from boxtune.models.loading import load_model
from boxtune.training.losses import BoxLosses
from boxtune.training.policy import PolicyLoss, advantages, answer_costs, answering, repeat_images, until_stop
from tests.helpers.collators import as_examples, make_collator
from tests.helpers.records import FAMILIES, ROOT, make_record
from tests.helpers.training import WEIGHTS, log_history, train

TINY = ROOT / "assets" / "tiny_qwen3_vl"
WEIGHTED = BoxLosses(iou=1.0, fp=0.5, fn=2.0)
RECORD = make_record("a", "a.png", 1000, 1000, [([0, 0, 100, 100], "cat"), ([500, 500, 700, 700], "cat")])


def costs_of(*boxes: list[int], record: Record = RECORD) -> tuple[float, ...]:
    """(iou, fp, fn) costs of a response with these boxes."""
    text = json.dumps([{"bbox_2d": box, "label": "cat"} for box in boxes])
    return tuple(answer_costs(record, make_prediction(record, "qwen3_vl", (448, 448), text, 0.0)).values())


def load_fused(folder: Path) -> PreTrainedModel:
    """A float32 model whose LM head returns log-probabilities, as in TRL's trainer."""
    model = load_model(str(folder), dtype=torch.float32)
    add_fused_lm_head(model)
    return model


def sampling_collator(data_dir: Path) -> DetectionCollator:
    """A collator of the embedded model whose batches hold the questions to sample responses to."""
    return make_collator(TINY, data_dir, max_pixels=50176).for_losses(teacher_forced=False, sampled=True)


def records_with_objects(data_dir: Path, count: int) -> list[Record]:
    """Images with squares, and a question about the class `square`, which the embedded model knows."""
    shown = [record for record in read_records(data_dir, "train") if record["objects"]["bbox"]][:count]
    return [
        make_record(r["id"], r["image"], r["width"], r["height"], [(box, "square") for box in r["objects"]["bbox"]])
        for r in shown
    ]


def recording_forward(model: PreTrainedModel) -> tuple[Callable, list[dict]]:
    """(forward function of the model, list to which each call appends its inputs)."""
    calls = []

    def forward(**inputs):
        calls.append(inputs)
        return model(**inputs)

    return forward, calls


# ---- Costs and advantages ------------------------------------------------------------------------------------------------


def test_costs_of_responses():
    first, second = [0, 0, 100, 100], [500, 500, 700, 700]
    assert costs_of(first, second) == (0, 0, 0)
    assert costs_of(first) == (0, 0, 1 / 2), "one of two is missed"
    assert costs_of(first, second, [800, 0, 900, 90]) == (0, 1 / 2, 0)
    assert costs_of(first, second, [501, 500, 700, 700]) == (0, 2 / 2, 0), "a duplicate counts twice"
    assert costs_of([0, 0, 100, 80], second) == pytest.approx((1 - (0.8 + 1) / 2, 0, 0))
    assert costs_of() == (1, 0, 1)
    empty = make_record("b", "a.png", 1000, 1000, [])
    assert costs_of(record=empty) == (0, 0, 0)
    assert costs_of(first, record=empty) == (0, 1, 0)


def test_advantages_compare_responses_to_the_same_question():
    costs = torch.tensor([[1.0, 2.0, 3.0], [7.0, 7.0, 7.0]], dtype=torch.float64)
    found = advantages(costs)
    assert (found[1] == 0).all()
    torch.testing.assert_close(found[0] / found[0, 0], torch.tensor([1.0, 0.0, -1.0], dtype=found.dtype))
    torch.testing.assert_close(advantages(costs * 10 + 5), found)  # the scale of the costs does not matter


def test_advantages_have_one_scale_for_the_whole_batch():
    """A question whose responses differ a hundred times as much in cost has advantages a hundred times as large."""
    small, large = advantages(torch.tensor([[1.0, 1.01, 1.02], [2.0, 3.0, 4.0]], dtype=torch.float64))
    torch.testing.assert_close(large, 100 * small)


def test_equal_costs_have_zero_advantage():
    """Costs such as 1/3 are rounded. The rounding error must not look like a difference between responses."""
    for cost in torch.linspace(0, 5, 500).tolist():
        for samples in (2, 3, 4, 6):
            assert advantages(torch.tensor([[cost] * samples], dtype=torch.float64)).abs().max() < 1e-6


def test_policy_gradient_lowers_the_expected_cost():
    """A toy policy with four responses: the loss is summed over all pairs of samples, weighted by their probability. Its gradient
    has the direction of the expected cost's gradient by finite differences."""
    costs = torch.tensor([0.3, 1.0, 2.5, 0.9], dtype=torch.float64)
    logits = torch.tensor([0.2, -0.5, 0.4, 0.0], dtype=torch.float64, requires_grad=True)

    def expected_cost(values: Tensor) -> float:
        return float((values.softmax(0) * costs).sum())

    log_probs = logits.log_softmax(0)
    loss = sum(
        (log_probs[a] + log_probs[b]).exp().detach()
        * (advantages(costs[[a, b]][None])[0] * torch.stack([log_probs[a], log_probs[b]])).sum()
        for a in range(4)
        for b in range(4)
    )
    gradient = torch.autograd.grad(loss, logits)[0]
    point, step = logits.detach(), 1e-6
    slopes = [
        (expected_cost(point + step * unit) - expected_cost(point - step * unit)) / (2 * step) for unit in torch.eye(4)
    ]
    assert torch.cosine_similarity(gradient, torch.tensor(slopes).double(), dim=0) > 0.9
    assert expected_cost(point - 0.1 * gradient) < expected_cost(point)
    assert not costs.requires_grad, "the costs themselves have no gradient"


# ---- Sampling ------------------------------------------------------------------------------------------------------------


def test_response_ends_with_its_first_stop_token():
    kept = until_stop(torch.tensor([[5, 9, 6, 9], [5, 5, 5, 5], [9, 9, 9, 9]]), [9])
    assert kept.tolist() == [[True, True, False, False], [True] * 4, [True, False, False, False]]


def test_images_are_repeated_in_the_order_of_their_responses():
    images = {"pixel_values": torch.arange(6.0)[:, None], "image_grid_thw": torch.tensor([[1, 1, 2], [1, 2, 2]])}
    repeated = repeat_images(images, 2)
    assert repeated["pixel_values"][:, 0].tolist() == [0, 1, 0, 1, 2, 3, 4, 5, 2, 3, 4, 5]
    assert repeated["image_grid_thw"].tolist() == [[1, 1, 2], [1, 1, 2], [1, 2, 2], [1, 2, 2]]


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_log_probabilities_equal_those_of_single_responses(tiny_models, tmp_path, family):
    Image.new("RGB", (300, 200), "gray").save(tmp_path / "a.png")
    Image.new("RGB", (120, 120), "blue").save(tmp_path / "b.png")
    records = [
        make_record("a", "a.png", 300, 200, [([10.0, 20, 110, 90], "cat")]),
        make_record("b", "b.png", 120, 120, [], classes=["cat", "traffic light", "red square"]),
    ]
    collator = make_collator(tiny_models[family], tmp_path).for_losses(teacher_forced=False, sampled=True)
    collator.grounding = replace(collator.grounding, max_new_tokens=12)
    model = load_fused(tiny_models[family]).train()
    batch = collator(as_examples(*records))
    forward, calls = recording_forward(model)

    _, found = PolicyLoss(WEIGHTED, samples=3, every=1)(forward, model, collator, batch, batch["asked"])

    weighted_cost = found["policy_iou"] + 0.5 * found["policy_fp"] + 2.0 * found["policy_fn"]
    assert found["policy_cost"] == pytest.approx(weighted_cost)
    assert 0 < found["policy_cost"] < 10 and 0 <= found["policy_frac_same_cost"] <= 1
    [inputs] = calls
    with torch.no_grad():
        batched = model(**inputs).log_probs
        patches = inputs["pixel_values"].split(inputs["image_grid_thw"].prod(1).tolist())
        for i, row in enumerate(batched):
            real = inputs["attention_mask"][i].bool()
            single = model(
                **{key: inputs[key][i][real][None] for key in ("input_ids", "mm_token_type_ids", "labels")},
                pixel_values=patches[i],
                image_grid_thw=inputs["image_grid_thw"][i : i + 1],
                attention_mask=torch.ones(1, int(real.sum())),
                fused_lm_head=True,
            )
            assert row.sum().item() == pytest.approx(single.log_probs.sum().item(), abs=1e-3)


def test_sampling_ignores_the_generation_config_of_the_model(squares):
    """The gradient assumes plain sampling. Hub configs of Qwen2.5-VL set a repetition penalty and sample only likely tokens."""
    model, collator = load_fused(TINY), sampling_collator(squares)
    collator.grounding = replace(collator.grounding, max_new_tokens=24)
    batch = collator(as_examples(*read_records(squares, "train")[:1]))
    forward, calls = recording_forward(model)
    for own in ({}, {"repetition_penalty": 1.5, "temperature": 1e-6, "top_k": 1, "top_p": 0.001}):
        model.generation_config.update(**own)
        torch.manual_seed(0)
        PolicyLoss(WEIGHTED, samples=2, every=1)(forward, model, collator, batch, batch["asked"])
    assert torch.equal(*(inputs["input_ids"] for inputs in calls))


def test_generation_restores_training_mode_and_gradients_after_an_error(tiny_models):
    model = load_model(str(tiny_models["qwen3_vl"]), dtype=torch.float32).train()
    with pytest.raises(RuntimeError, match="out of memory"), answering(model):
        assert not any(module.training for module in model.modules()) and not torch.is_grad_enabled()
        raise RuntimeError("out of memory")
    assert all(module.training for module in model.modules()) and torch.is_grad_enabled()


# ---- Gradient ------------------------------------------------------------------------------------------------------------


def test_policy_gradient_reaches_every_parameter(squares):
    """The embedded model finds some of the squares, so its responses have different costs."""
    model, collator = load_fused(TINY).train(), sampling_collator(squares)
    batch = collator(as_examples(*records_with_objects(squares, 2)))
    torch.manual_seed(0)
    loss, _ = PolicyLoss(WEIGHTED, samples=4, every=1)(model, model, collator, batch, batch["asked"])
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def costs_of_samples(labels: Tensor, records: list[Record], input_sizes: Tensor, collator: DetectionCollator) -> Tensor:
    """(questions, samples) weighted costs of sampled responses, decoded from the labels of a forward call."""
    samples, costs = len(labels) // len(records), []
    for i, row in enumerate(labels):
        text = collator.tokenizer.decode(row[row != IGNORE_INDEX], skip_special_tokens=True)
        record, size = records[i // samples], input_sizes[i // samples].tolist()
        parts = answer_costs(record, make_prediction(record, collator.grounding.codec, size, text, 0.0))
        costs.append(WEIGHTED.iou * parts["iou"] + WEIGHTED.fp * parts["fp"] + WEIGHTED.fn * parts["fn"])
    return torch.tensor(costs, dtype=torch.float64).reshape(len(records), samples)


def test_gradient_step_raises_the_probability_of_cheaper_responses(squares):
    """The costs are computed here independently: each sampled response is decoded and matched with its own image."""
    model, collator = load_fused(TINY), sampling_collator(squares)
    records = records_with_objects(squares, 2)
    batch = collator(as_examples(*records))
    forward, calls = recording_forward(model)
    torch.manual_seed(0)
    loss, _ = PolicyLoss(WEIGHTED, samples=4, every=1)(forward, model, collator, batch, batch["asked"])
    loss.backward()

    [inputs] = calls
    cheaper = -advantages(costs_of_samples(inputs["labels"], records, batch["asked"]["input_sizes"], collator))
    assert (cheaper > 0).any(1).all(), "for each question, some responses must cost less than others"

    def log_probabilities() -> Tensor:
        """(2, 4) log-probabilities of the sampled responses."""
        with torch.no_grad():
            return model(**inputs).log_probs.sum(1).double().reshape(2, 4)

    before = log_probabilities()
    tokens = (inputs["labels"] != IGNORE_INDEX).sum()
    assert loss.item() == pytest.approx(-WEIGHTED.largest * (cheaper * before).sum().item() / tokens.item(), rel=1e-3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad
    assert (cheaper * (log_probabilities() - before)).sum() > 0


def test_policy_loss_is_proportional_to_the_weights(squares):
    """Advantages are normalized, so smaller costs alone would not make the loss smaller."""
    model, collator = load_fused(TINY), sampling_collator(squares)
    batch = collator(as_examples(*records_with_objects(squares, 1)))
    losses = []
    for weights in (WEIGHTED, BoxLosses(iou=0.1, fp=0.05, fn=0.2)):
        torch.manual_seed(0)
        policy = PolicyLoss(weights, samples=4, every=1)
        losses.append(policy(model, model, collator, batch, batch["asked"])[0].item())
    assert losses[0] != 0
    assert losses[1] == pytest.approx(losses[0] / 10, rel=1e-4)  # the log-probabilities are float32


# ---- Runs ----------------------------------------------------------------------------------------------------------------


def test_run_samples_every_few_steps_with_or_without_box_losses(squares, tmp_path):
    options = (*WEIGHTS, "--grounding_every", 2, "--grounding_samples", 2, "--max_steps", 3)
    both = log_history(train(squares, tmp_path / "both", *options, "--grounding_mode", "both"), step=3)[:3]
    assert ["policy_cost" in row for row in both] == [True, False, True]
    assert all("iou_loss" in row for row in both)
    assert ["grad_share/policy" in row for row in both] == [True, False, True]
    shares = {key: value for key, value in both[0].items() if key.startswith("grad_share/")}
    assert set(shares) == {f"grad_share/{name}" for name in ("lm", "iou", "fp", "fn", "policy")}
    assert sum(shares.values()) == pytest.approx(1)

    alone = log_history(train(squares, tmp_path / "alone", *options, "--grounding_mode", "policy"), step=3)[:3]
    assert ["policy_cost" in row for row in alone] == [True, False, True]
    assert "iou_loss" not in alone[0]
    for row in alone:
        assert row["loss"] == pytest.approx(row["lm_loss"] + row.get("policy_loss", 0), abs=1e-4)


def test_sampled_loss_of_a_step_is_the_mean_over_its_micro_batches(squares, tmp_path):
    options = ("--grounding_mode", "policy", "--grounding_every", 1, "--grounding_samples", 4, "--max_steps", 3)
    run = train(squares, tmp_path / "run", *WEIGHTS, *options, "--gradient_accumulation_steps", 2)
    rows = log_history(run, step=3)[:3]
    assert max(abs(row["policy_loss"]) for row in rows) > 0.01  # 0 where all samples cost the same
    for row in rows:
        assert row["loss"] == pytest.approx(row["lm_loss"] + row["policy_loss"], abs=1e-4)


def test_sampling_does_not_change_4_bit_training(squares, tmp_path):
    """With a weight of almost zero, the steps equal those without sampling. This includes CPUs with special inference kernels."""
    steps = []
    for mode in ("teacher_forced", "policy"):
        options = ("--grounding_mode", mode, "--fn_loss_weight", 1e-12, "--grounding_every", 2, "--max_steps", 4)
        run = train(squares, tmp_path / mode, *options, "--learning_rate", 1e-3, "--warmup_steps", 0)
        steps.append([row[key] for row in log_history(run, step=4)[:4] for key in ("lm_loss", "grad_norm")])
    assert steps[0] == pytest.approx(steps[1], rel=1e-3)


def test_grounding_modes_without_effect_are_rejected(squares, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        train(squares, tmp_path / "run", "--grounding_mode", "policy", "--grounding_samples", 1)
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert "has no effect while" in message and "grounding_samples: 1" in message
