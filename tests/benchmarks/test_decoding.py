"""The table of decode settings: what is compared with what."""

import numpy as np
import pytest

from benchmarks import decoding
from benchmarks.decoding import Outcome, rows
from boxtune.common.errors import UserError
from boxtune.metrics.comparison import Run


def outcome(ap: float, seconds: float, samples: tuple[float, ...]) -> Outcome:
    drawn = np.array(samples)
    return Outcome(Run({"AP": ap, "f1": ap}, {"AP": drawn, "f1": drawn}, images=[]), seconds)


def test_gains_are_paired_by_seed_and_draw():
    """The second setting is 0.1 better in every draw, though the draws and seeds themselves differ more than that."""
    seeds = [
        {"defaults": outcome(0.2, 1.0, (0.1, 0.5)), "ask each": outcome(0.3, 3.0, (0.2, 0.6))},
        {"defaults": outcome(0.6, 2.0, (0.7, 0.4)), "ask each": outcome(0.7, 5.0, (0.8, 0.5))},
    ]
    assert list(rows(seeds)) == [
        ["defaults", "0.400", "0.400", "1.50"],
        ["ask each", "0.500 (+0.100 to +0.100)", "0.500 (+0.100 to +0.100)", "4.00"],
    ]


def test_a_setting_without_responses_of_its_own_costs_nothing_more():
    seed = {"defaults": outcome(0.2, 1.0, (0.1,)), "suppress_iou 0.7": outcome(0.2, 1.0, (0.1,))}
    assert [row[-1] for row in rows([seed])] == ["1.00", "as the defaults"]


def test_checkpoints_that_were_not_trained_are_named_with_the_command_that_trains_them(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "RUNS", tmp_path)
    with pytest.raises(UserError, match=r"0 of 5 checkpoints .*--only marmot_tables_csv --again"):
        decoding.checkpoints("marmot_tables_csv", 0)
