"""Sampled answers: what they cost, and that the gradient lowers that cost and leaves the model as it was found."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from trl.trainer.utils import add_fused_lm_head

from boxtune.answers.predictions import make_prediction
from boxtune.batching.encoder import IGNORE_INDEX
from boxtune.data.dataset import read_records
from boxtune.models.loading import load_model
from boxtune.training.losses import BoxLosses
from boxtune.training.policy import PolicyLoss, advantages, answer_costs, answering, repeat_images, until_stop
from tests.helpers.collators import make_collator
from tests.helpers.records import FAMILIES, ROOT, make_record
from tests.helpers.training import WEIGHTS, train

TINY = ROOT / "assets" / "tiny_qwen3_vl"
WEIGHED = BoxLosses(iou=1.0, fp=0.5, fn=2.0)
RECORD = make_record("a", "a.png", 1000, 1000, [([0, 0, 100, 100], "cat"), ([500, 500, 700, 700], "cat")])


def costs_of(*boxes, record=RECORD) -> tuple[float, ...]:
    """(iou, fp, fn)"""
    text = json.dumps([{"bbox_2d": box, "label": "cat"} for box in boxes])
    return tuple(answer_costs(record, make_prediction(record, "qwen3_vl", (448, 448), text, 0.0)).values())


def test_what_answers_cost():
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


def test_an_advantage_is_against_the_same_questions_other_answers():
    costs = torch.tensor([[1.0, 2.0, 3.0], [7.0, 7.0, 7.0]], dtype=torch.float64)
    found = advantages(costs)
    assert (found[1] == 0).all()
    torch.testing.assert_close(found[0] / found[0, 0], torch.tensor([1.0, 0.0, -1.0], dtype=found.dtype))
    torch.testing.assert_close(advantages(costs * 10 + 5), found)  # the scale of the costs does not matter


def test_answers_that_all_cost_the_same_teach_nothing():
    """Whatever the cost, a third or a tenth of a box: where float32 rounds, nothing may be left that looks like a difference."""
    for cost in torch.linspace(0, 5, 500).tolist():
        for samples in (2, 3, 4, 6):
            assert advantages(torch.tensor([[cost] * samples], dtype=torch.float64)).abs().max() < 1e-6


def test_gradient_of_sampled_costs_is_that_of_the_expected_cost():
    """All pairs of answers of a toy policy, each weighed with its probability: finite differences of the expectation agree in
    direction, and a step against the gradient lowers it."""
    costs = torch.tensor([0.3, 1.0, 2.5, 0.9], dtype=torch.float64)
    logits = torch.tensor([0.2, -0.5, 0.4, 0.0], dtype=torch.float64, requires_grad=True)

    def expected(values: torch.Tensor) -> float:
        return float((values.softmax(0) * costs).sum())

    log_probs = logits.log_softmax(0)
    loss = sum(
        (log_probs[a] + log_probs[b]).exp().detach()
        * (advantages(costs[[a, b]][None])[0] * torch.stack([log_probs[a], log_probs[b]])).sum()
        for a in range(4)
        for b in range(4)
    )
    gradient = torch.autograd.grad(loss, logits)[0]
    step = 1e-6
    numeric = torch.tensor(
        [
            (expected(logits.detach() + step * unit) - expected(logits.detach() - step * unit)) / (2 * step)
            for unit in torch.eye(4)
        ]
    )
    assert torch.cosine_similarity(gradient, numeric.double(), dim=0) > 0.9
    assert expected(logits.detach() - 0.1 * gradient) < expected(logits.detach())
    assert not costs.requires_grad, "the costs alone have none"


def test_an_answer_ends_with_its_first_stop():
    kept = until_stop(torch.tensor([[5, 9, 6, 9], [5, 5, 5, 5], [9, 9, 9, 9]]), [9])
    assert kept.tolist() == [[True, True, False, False], [True] * 4, [True, False, False, False]]


def test_pictures_are_repeated_in_the_order_of_their_answers():
    pictures = {"pixel_values": torch.arange(6.0)[:, None], "image_grid_thw": torch.tensor([[1, 1, 2], [1, 2, 2]])}
    repeated = repeat_images(pictures, 2)
    assert repeated["pixel_values"][:, 0].tolist() == [0, 1, 0, 1, 2, 3, 4, 5, 2, 3, 4, 5]
    assert repeated["image_grid_thw"].tolist() == [[1, 1, 2], [1, 1, 2], [1, 2, 2], [1, 2, 2]]


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_answers_have_the_probabilities_that_each_has_alone(tiny_models, tmp_path, family):
    Image.new("RGB", (300, 200), "grey").save(tmp_path / "a.png")
    Image.new("RGB", (120, 120), "blue").save(tmp_path / "b.png")
    records = [
        make_record("a", "a.png", 300, 200, [([10.0, 20, 110, 90], "cat")]),
        make_record("b", "b.png", 120, 120, [], classes=["cat", "traffic light", "red square"]),
    ]
    collator = make_collator(tiny_models[family], tmp_path).for_losses(teacher_forced=False, sampled=True)
    collator.grounding = replace(collator.grounding, max_new_tokens=12)
    model = load_model(str(tiny_models[family]), dtype=torch.float32, quantization=None)
    add_fused_lm_head(model)
    model.train()
    batch = collator([{"record": json.dumps(record)} for record in records])
    calls = []

    def forward(**inputs):
        calls.append(inputs)
        return model(**inputs)

    policy = PolicyLoss(WEIGHED, samples=3, every=1)
    _, found = policy(forward, model, collator, batch, batch["asked"])
    assert found["policy_cost"] == pytest.approx(
        found["policy_iou"] + 0.5 * found["policy_fp"] + 2.0 * found["policy_fn"]
    )
    assert 0 < found["policy_cost"] < 10 and 0 <= found["policy_frac_same_cost"] <= 1
    [inputs] = calls
    with torch.no_grad():
        together = model(**inputs).log_probs
        patches = inputs["pixel_values"].split(inputs["image_grid_thw"].prod(1).tolist())
        for i, row in enumerate(together):
            real = inputs["attention_mask"][i].bool()
            alone = model(
                **{key: inputs[key][i][real][None] for key in ("input_ids", "mm_token_type_ids", "labels")},
                pixel_values=patches[i],
                image_grid_thw=inputs["image_grid_thw"][i : i + 1],
                attention_mask=torch.ones(1, int(real.sum())),
                fused_lm_head=True,
            )
            assert row.sum().item() == pytest.approx(alone.log_probs.sum().item(), abs=1e-3)


def test_answers_are_sampled_as_the_gradient_takes_them_to_be_whatever_the_models_own_config(squares):
    """The hub's Qwen2.5-VL configs carry a penalty on repetition and sample from the likeliest tokens alone."""
    model = load_model(str(TINY), dtype=torch.float32)
    add_fused_lm_head(model)
    collator = make_collator(TINY, squares, max_pixels=50176).for_losses(teacher_forced=False, sampled=True)
    collator.grounding = replace(collator.grounding, max_new_tokens=24)
    batch = collator([{"record": json.dumps(record)} for record in read_records(squares, "train")[:1]])
    sampled = []

    def forward(**inputs):
        sampled.append(inputs["input_ids"])
        return model(**inputs)

    for own in ({}, {"repetition_penalty": 1.5, "temperature": 1e-6, "top_k": 1, "top_p": 0.001}):
        model.generation_config.update(**own)
        torch.manual_seed(0)
        PolicyLoss(WEIGHED, samples=2, every=1)(forward, model, collator, batch, batch["asked"])
    assert torch.equal(*sampled)


def test_generating_leaves_dropout_and_gradients_as_they_were(tiny_models):
    model = load_model(str(tiny_models["qwen3_vl"]), dtype=torch.float32).train()
    with pytest.raises(RuntimeError, match="out of memory"), answering(model):
        assert not any(module.training for module in model.modules()) and not torch.is_grad_enabled()
        raise RuntimeError("out of memory")
    assert all(module.training for module in model.modules()) and torch.is_grad_enabled()


def test_gradient_of_sampled_answers_reaches_the_whole_model(squares):
    """The embedded model finds some of the squares, so its answers differ in what they cost."""
    model = load_model(str(TINY), dtype=torch.float32).train()
    add_fused_lm_head(model)
    collator = make_collator(TINY, squares, max_pixels=50176).for_losses(teacher_forced=False, sampled=True)
    records = [record for record in read_records(squares, "train") if record["objects"]["bbox"]][:2]
    batch = collator([{"record": json.dumps(record)} for record in records])
    torch.manual_seed(0)
    loss, _ = PolicyLoss(WEIGHED, samples=4, every=1)(model, model, collator, batch, batch["asked"])
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_a_step_makes_the_answers_that_cost_less_likelier(squares):
    """The sampled answers are read, parsed and matched here once more, each with the picture that it is about."""
    model = load_model(str(TINY), dtype=torch.float32)
    add_fused_lm_head(model)
    collator = make_collator(TINY, squares, max_pixels=50176).for_losses(teacher_forced=False, sampled=True)
    records = [record for record in read_records(squares, "train") if record["objects"]["bbox"]][:2]
    batch = collator([{"record": json.dumps(record)} for record in records])
    calls = []

    def forward(**inputs):
        calls.append(inputs)
        return model(**inputs)

    torch.manual_seed(0)
    policy = PolicyLoss(WEIGHED, samples=4, every=1)
    loss, _ = policy(forward, model, collator, batch, batch["asked"])
    loss.backward()
    [inputs] = calls
    costs = []
    for i, labels in enumerate(inputs["labels"]):
        text = collator.tokenizer.decode(labels[labels != IGNORE_INDEX], skip_special_tokens=True)
        record, size = records[i // 4], batch["asked"]["input_sizes"][i // 4].tolist()
        parts = answer_costs(record, make_prediction(record, collator.grounding.codec, size, text, 0.0))
        costs.append(WEIGHED.iou * parts["iou"] + WEIGHED.fp * parts["fp"] + WEIGHED.fn * parts["fn"])
    costs = torch.tensor(costs, dtype=torch.float64).reshape(2, 4)
    cheaper = -advantages(costs)
    assert (cheaper > 0).any(1).all(), "of both questions some answers cost less than others"

    def likelihood() -> torch.Tensor:
        """(2, 4) log-probabilities of the sampled answers."""
        with torch.no_grad():
            return model(**inputs).log_probs.sum(1).double().reshape(2, 4)

    before = likelihood()
    tokens = (inputs["labels"] != IGNORE_INDEX).sum()
    assert loss.item() == pytest.approx(-WEIGHED.largest * (cheaper * before).sum().item() / tokens.item(), rel=1e-3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad
    assert (cheaper * (likelihood() - before)).sum() > 0


def test_weights_a_tenth_as_large_weigh_a_tenth(squares):
    """The costs are normalised, so it is not they that shrink."""
    model = load_model(str(TINY), dtype=torch.float32)
    add_fused_lm_head(model)
    collator = make_collator(TINY, squares, max_pixels=50176).for_losses(teacher_forced=False, sampled=True)
    record = next(record for record in read_records(squares, "train") if record["objects"]["bbox"])
    batch = collator([{"record": json.dumps(record)}])
    losses = []
    for weights in (WEIGHED, BoxLosses(iou=0.1, fp=0.05, fn=0.2)):
        torch.manual_seed(0)
        policy = PolicyLoss(weights, samples=4, every=1)
        losses.append(policy(model, model, collator, batch, batch["asked"])[0].item())
    assert losses[0] != 0
    assert losses[1] == pytest.approx(losses[0] / 10, rel=1e-4)  # float32 log-probabilities, costs rounded at a tenth


def test_a_run_samples_every_few_steps_and_can_mix_both_kinds(squares, tmp_path):
    sampled = (*WEIGHTS, "--grounding_every", 2, "--grounding_samples", 2, "--max_steps", 3)
    run = train(squares, tmp_path / "run", *sampled, "--grounding_mode", "both")
    log = json.loads((run / "checkpoint-3" / "trainer_state.json").read_text())["log_history"][:3]
    assert ["policy_cost" in row for row in log] == [True, False, True]
    assert all("iou_loss" in row for row in log)
    assert ["grad_share/policy" in row for row in log] == [True, False, True]
    shares = {key: value for key, value in log[0].items() if key.startswith("grad_share/")}
    assert set(shares) == {f"grad_share/{name}" for name in ("lm", "iou", "fp", "fn", "policy")}
    assert sum(shares.values()) == pytest.approx(1)
    alone = train(squares, tmp_path / "alone", *sampled, "--grounding_mode", "policy")
    log = json.loads((alone / "checkpoint-3" / "trainer_state.json").read_text())["log_history"][:3]
    assert ["policy_cost" in row for row in log] == [True, False, True]
    assert "iou_loss" not in log[0]
    for row in log:
        assert row["loss"] == pytest.approx(row["lm_loss"] + row.get("policy_loss", 0), abs=1e-4)


def test_sampling_leaves_training_in_4_bit_as_it_was(squares, tmp_path):
    """With a weight of next to nothing the steps are those of plain training, also where a CPU has kernels for inference."""
    steps = []
    for mode in ("teacher_forced", "policy"):
        options = ("--grounding_mode", mode, "--fn_loss_weight", 1e-12, "--grounding_every", 2, "--max_steps", 4)
        run = train(squares, tmp_path / mode, *options, "--learning_rate", 1e-3, "--warmup_steps", 0)
        log = json.loads((run / "checkpoint-4" / "trainer_state.json").read_text())["log_history"][:4]
        steps.append([row[key] for row in log for key in ("lm_loss", "grad_norm")])
    assert steps[0] == pytest.approx(steps[1], rel=1e-3)


def test_modes_that_would_do_nothing_are_refused(squares, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        train(squares, tmp_path / "run", "--grounding_mode", "policy", "--grounding_samples", 1)
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert "has no effect while" in message and "grounding_samples: 1" in message
