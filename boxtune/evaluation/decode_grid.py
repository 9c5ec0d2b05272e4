"""The decode settings that --tune tries, what each of them gives, and which is best."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby, product

from rich.table import Table

from boxtune.answers.decoding import ASKS, Decoding
from boxtune.answers.predictions import Prediction
from boxtune.answers.selection import keep_objects
from boxtune.common.numbers import format_number
from boxtune.data.questions import asked_classes
from boxtune.data.records import Record
from boxtune.metrics.average_precision import all_classes, evaluate_coco
from boxtune.metrics.matching import is_click, match_images
from boxtune.metrics.scoring import total_rates

METRICS = ("AP", "f1")
# In each of these, the value that changes nothing comes first, because the first of equally good settings is chosen.
PENALTIES = (1.0, 1.05, 1.1)
SUPPRESSIONS = (1.0, 0.85, 0.7)
DEFAULTS = Decoding()
THRESHOLDS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Trial:
    """What some settings give on a split. `AP` is None for points. `seconds` is the mean per image."""

    decoding: Decoding
    AP: float | None
    f1: float | None
    objects: int
    seconds: float

    def value(self, metric: str) -> float:
        """The value of one of METRICS; below every other where it is undefined."""
        value = self.AP if metric == "AP" else self.f1
        return -1.0 if value is None else value


def settings_to_generate(
    records: list[Record], asked: list[str], stored: Decoding = DEFAULTS, with_verifier: bool = False
) -> list[Decoding]:
    """The settings that need responses of their own, all with the tiles and teachers that are `stored`.

    asked: the classes that a question about all objects names. with_verifier: each is tried without and with the verifier.
    """
    has_choice = any(len(asked_classes(record, asked)) > 1 for record in records)
    asks = ASKS if has_choice else ASKS[:1]
    verifiers = (False, True) if with_verifier else (False,)
    return [
        Decoding(repetition_penalty=penalty, ask=ask, tiles=stored.tiles, verify=verify, teachers=stored.teachers)
        for verify, ask, penalty in product(verifiers, asks, PENALTIES)
    ]


def try_selections(
    records: list[Record], predictions: list[Prediction], classes: list[str], decoding: Decoding, metric: str
) -> Iterator[Trial]:
    """What each suppression and threshold makes of the `predictions`, which were generated with `decoding` and hold all objects.

    A threshold never raises AP, because an object of a lower score takes nothing from those before it: so only f1 tries any.
    """
    classes, has_boxes = all_classes(records, classes), not is_click(predictions)
    seconds = sum(prediction["seconds"] or 0.0 for prediction in predictions) / len(predictions)
    suppressions = SUPPRESSIONS if has_boxes else SUPPRESSIONS[:1]
    thresholds = THRESHOLDS if metric == "f1" else THRESHOLDS[:1]
    for suppress_iou, threshold in product(suppressions, thresholds):
        settings = replace(decoding, suppress_iou=suppress_iou, score_threshold=threshold)
        kept = [keep_objects(prediction, settings) for prediction in predictions]
        yield Trial(
            decoding=settings,
            AP=evaluate_coco(records, kept, classes).ap() if has_boxes else None,
            f1=total_rates(match_images(records, kept))["f1"],
            objects=sum(len(prediction["objects"]["category"]) for prediction in kept),
            seconds=round(seconds, 3),
        )


def best_of(trials: list[Trial], metric: str) -> Trial:
    """The trial with the highest value of `metric`; of equal ones the first, which changes the least."""
    return max(trials, key=lambda trial: trial.value(metric))


def trials_table(trials: list[Trial], metric: str) -> Table:
    """One row for all trials that differ only in their threshold: the best of them. The best of all is bold."""
    table = Table()
    for title in ("verify", "ask", "penalty", "suppress", "threshold", "AP", "F1", "objects", "seconds"):
        table.add_column(title, justify="right", no_wrap=True)
    chosen = best_of(trials, metric)
    for _, group in groupby(trials, key=lambda trial: replace(trial.decoding, score_threshold=0.0)):
        best = best_of(list(group), metric)
        settings = best.decoding
        table.add_row(
            "yes" if settings.verify else "no",
            settings.ask,
            f"{settings.repetition_penalty:g}",
            "off" if settings.suppress_iou == 1 else f"{settings.suppress_iou:g}",
            f"{settings.score_threshold:g}",
            format_number(best.AP),
            format_number(best.f1),
            str(best.objects),
            f"{best.seconds:.2f}",
            style="bold" if best is chosen else None,
        )
    return table
