"""Held-out results of pretraining."""

from collections import defaultdict

from assets.pretraining_batches import HELD_OUT, SceneCollator, held_out, held_out_record
from assets.pretraining_objects import CLASSES
from assets.pretraining_questions import IRRELEVANT, TALKS
from boxtune.inference.generation import generate_answers
from boxtune.metrics.scoring import score

BATCH = 64  # images


def answer(model, collator: SceneCollator, records: list[dict]) -> list[dict]:
    """Predictions for `records` from greedy decoding."""
    model.eval()
    answers = generate_answers(model, collator, records, batch_size=BATCH)
    predictions = {prediction["id"]: prediction for prediction in answers}
    model.train()
    return [predictions[record["id"]] for record in records]


def metrics_of(records: list[dict], predictions: list[dict]) -> dict:
    """All metrics, with the content of `matching` merged into the top level."""
    metrics = score(records, predictions, list(CLASSES))
    return metrics | metrics["matching"]


def held_out_results(model, collator: SceneCollator, seed: int, images: int, talk_images: int) -> dict:
    """Scores on `images` images, by class and by kind of scene, and on `talk_images` of each other kind of conversation."""
    records = held_out(images, seed)
    predictions = answer(model, collator, records)
    found = metrics_of(records, predictions)
    keys = ("f1", "precision", "recall", "mean_iou_tp", "mean_iou_gt", "AP", "AP50")
    result = {"images": images} | {key: round(found[key] or 0.0, 4) for key in keys}
    result |= {key: found[key] for key in ("empty_images", "parse")}
    result["f1_per_class"] = {name: round(found["per_class"][name]["f1"] or 0.0, 3) for name in CLASSES}
    result["f1_per_kind"] = {}
    for kind in sorted({record["scenes"][-1].kind for record in records}):
        pairs = [pair for pair in zip(records, predictions, strict=True) if pair[0]["scenes"][-1].kind == kind]
        result["f1_per_kind"][kind] = round(metrics_of(*zip(*pairs, strict=True))["f1"] or 0.0, 3)
    return result | {"conversations": {talk: talk_score(model, collator, talk, seed, talk_images) for talk in TALKS}}


def talk_score(model, collator: SceneCollator, talk: str, seed: int, images: int) -> dict[str, float]:
    """Held-out results for one kind of conversation: F1 for boxes after an example, else the shares of exact responses."""
    names = [f"{HELD_OUT} {seed}/{talk} {i}" for i in range(images)]
    records = [record for name in names if (record := held_out_record(name, talk))["talk"] == talk]
    predictions = answer(model, collator, records)
    if talk == "example":
        return {"images": len(records), "f1": round(metrics_of(records, predictions)["f1"] or 0.0, 3)}
    groups = defaultdict(list)
    for record, prediction in zip(records, predictions, strict=True):
        expected, text = record["messages"][-1]["content"], prediction["text"]
        if talk == "irrelevant":
            unrelated = expected == IRRELEVANT
            groups["unrelated" if unrelated else "related"].append((text == IRRELEVANT) == unrelated)
        else:
            groups["right"].append(text == expected)
    return {"images": len(records)} | {key: round(sum(hits) / len(hits), 3) for key, hits in groups.items()}
