"""The Pareto report of a sweep: frontier, rule, intervals over seeds, page and drawing."""

import pytest
from PIL import Image

from boxtune.common.errors import UserError
from boxtune.metrics.guardrail_rules import Probe
from boxtune.reports.pareto import write_pareto
from boxtune.reports.pareto_drawing import FORBIDDEN, RECOMMENDED, WIDTH, Axis, Mark, draw_scatter, nice_ticks
from boxtune.reports.run_results import describe_placement, frontier, interval, read_results
from tests.helpers.sweep_results import run_info, write_run

LAST = {"language_attention": [3, 4], "language_mlp": [3, 4], "vision_attention": [], "vision_mlp": [7]}


def recommend(folder, guardrail="irrelevant_pass_rate") -> str:
    return write_pareto(folder, "f1", guardrail, 0.10, "placement")


def test_the_frontier_is_what_no_other_run_dominates():
    points = [(0.9, 0.1), (0.8, 0.5), (0.8, 0.4), (0.5, 0.6), (0.4, 0.6), (0.5, 0.6)]
    assert frontier(points) == [0, 1, 3, 5]
    assert frontier([]) == []


def test_the_interval_is_that_of_students_t():
    """4.3027 is the 97.5 % quantile with two degrees of freedom; the standard deviation of 1, 2 and 3 is 1."""
    assert interval([1.0, 2.0, 3.0]) == pytest.approx([2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5], abs=1e-4)
    assert interval([1.0]) is None


def test_the_best_run_within_the_limit_is_recommended(tmp_path):
    write_run(tmp_path, "A0", f1=0.05, pass_rate=0.9, trainable=0)
    write_run(tmp_path, "A1", f1=0.60, pass_rate=0.85, trainable=500)
    write_run(tmp_path, "C1", f1=0.70, pass_rate=0.80, trainable=900, layers=LAST)
    write_run(tmp_path, "D3", f1=0.90, pass_rate=0.79, trainable=2000)
    assert recommend(tmp_path) == (
        "Use C1 (LLM 3-4, vision 7): F1 0.700 with irrelevant_pass_rate 0.800 (base 0.900), 900 trained weights."
    )
    page = (tmp_path / "pareto.html").read_text()
    assert "Use C1 (LLM 3-4, vision 7)" in page and '<tr class="chosen">' in page
    rows = [line for line in page.split("<tr") if "<td" in line]
    assert [row.split('"text">')[1].split("<")[0] for row in rows[:4]] == ["D3", "C1", "A1", "A0"]
    assert [">yes<" in row for row in rows[:4]] == [True, True, True, True]


def test_of_runs_that_are_as_good_the_smallest_is_recommended(tmp_path):
    write_run(tmp_path, "A0", f1=0.05, pass_rate=0.9, trainable=0)
    write_run(tmp_path, "big", f1=0.705, pass_rate=0.9, trainable=5000)
    write_run(tmp_path, "small", f1=0.695, pass_rate=0.9, trainable=500)
    write_run(tmp_path, "worse", f1=0.694, pass_rate=0.9, trainable=50)
    assert recommend(tmp_path).startswith("Use small")


def test_a_guardrail_of_which_less_is_better_turns_limit_and_axis(tmp_path):
    for name, f1, rate, trainable in (("A0", 0.05, 0.1, 0), ("A1", 0.5, 0.2, 10), ("A2", 0.7, 0.21, 10)):
        others = {"hallucination_rate": Probe(rate, 20)}
        write_run(tmp_path, name, f1=f1, pass_rate=1.0, trainable=trainable, others=others)
    assert recommend(tmp_path, "hallucination_rate").startswith("Use A1")
    assert "(lower is better" not in (tmp_path / "pareto.html").read_text()  # in the drawing only


def test_the_base_is_kept_if_no_run_is_allowed_or_better(tmp_path):
    write_run(tmp_path / "a", "A0", f1=0.05, pass_rate=0.9, trainable=0)
    write_run(tmp_path / "a", "A1", f1=0.60, pass_rate=0.5)
    assert recommend(tmp_path / "a").startswith("Keep the base: irrelevant_pass_rate of every run is worse than 0.800")
    write_run(tmp_path / "b", "A0", f1=0.60, pass_rate=0.9, trainable=0)
    write_run(tmp_path / "b", "A1", f1=0.60, pass_rate=0.9)
    assert recommend(tmp_path / "b").startswith("Keep the base: its F1 of 0.600 is not exceeded")


def test_the_base_of_the_evaluations_stands_for_a_run_of_the_base(tmp_path):
    write_run(tmp_path, "A1", f1=0.60, pass_rate=0.85, baseline=0.9)
    assert "(base 0.900)" in recommend(tmp_path)
    write_run(tmp_path / "b", "A1", f1=0.60, pass_rate=0.85)
    assert recommend(tmp_path / "b").startswith("No recommendation: irrelevant_pass_rate of the base was not measured")


def test_a_run_that_finds_nothing_is_not_recommended(tmp_path):
    write_run(tmp_path, "A1", f1=0.0, pass_rate=0.9, baseline=0.9)
    write_run(tmp_path, "A2", f1=0.6, pass_rate=0.1, baseline=0.9)
    assert recommend(tmp_path) == "No recommendation: F1 is 0 in every allowed run."


def test_without_guardrails_runs_are_compared_by_their_size(tmp_path):
    write_run(tmp_path, "r8", f1=0.60, trainable=1000)
    write_run(tmp_path, "r16", f1=0.70, trainable=2000)
    assert recommend(tmp_path).startswith(
        "Use r16 (none): F1 0.700, 2,000 trained weights. No guardrails were measured"
    )
    assert "The run with the best F1" in (tmp_path / "pareto.html").read_text()


def test_seeds_are_averaged_and_runs_without_a_value_are_named(tmp_path):
    write_run(tmp_path, "A0", f1=0.05, pass_rate=0.9, trainable=0)
    for seed, f1 in enumerate((0.5, 0.6, 0.7)):
        write_run(tmp_path, "A1", seed=seed, f1=f1, pass_rate=0.9)
    write_run(tmp_path, "A2", f1=None, pass_rate=0.9)
    recommend(tmp_path)
    page = (tmp_path / "pareto.html").read_text()
    assert "<td>0.600</td><td>0.352 to 0.848</td>" in page and "Without a value: A2." in page
    [run] = [result for result in read_results(tmp_path) if result.name == "A1"]
    assert [seed.seed for seed in run.seeds] == [0, 1, 2] and run.metric("f1") == [0.5, 0.6, 0.7]


def test_a_folder_without_evaluated_runs_is_an_error(tmp_path):
    with pytest.raises(UserError, match="has no evaluated run"):
        read_results(tmp_path)


def test_the_base_alone_gives_no_recommendation(tmp_path):
    for folder, rate in (("a", 0.9), ("b", None)):
        write_run(tmp_path / folder, "A0", f1=0.05, pass_rate=rate, trainable=0)
        assert recommend(tmp_path / folder) == "No recommendation: no trained run was evaluated."


def test_runs_without_any_value_are_an_error(tmp_path):
    write_run(tmp_path, "A1", f1=None, pass_rate=0.9)
    with pytest.raises(UserError, match="has both F1 and a value of irrelevant_pass_rate"):
        recommend(tmp_path)


def test_placements_are_described():
    modules = run_info(1, LAST)["modules"]
    assert describe_placement(modules) == "LLM 3-4, vision 7"
    modules["whole"] = ["model.visual.merger"]
    modules["adapted"] = {"merger": {"linear_fc1": 1}}
    assert describe_placement(modules) == "LLM 3-4, vision 7, merger, merger whole"


# ---- drawing -----------------------------------------------------------------------------------------------------------


def places_of(image: Image.Image, color: str) -> list[tuple[int, int]]:
    wanted = tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))
    return [(x, y) for x in range(0, image.width, 2) for y in range(60, 740, 2) if image.getpixel((x, y))[:3] == wanted]


def test_better_is_to_the_right_and_what_the_limit_forbids_to_the_left(tmp_path):
    for is_cost in (False, True):
        good, bad = (0.1, 0.9) if is_cost else (0.9, 0.1)
        marks = [Mark("good", good, 0.5, is_recommended=True), Mark("bad", bad, 0.5)]
        image = draw_scatter(marks, Axis("guardrail", is_cost, limit=0.5), Axis("F1"), "title")
        assert all(x > WIDTH / 2 for x, _ in places_of(image, RECOMMENDED))
        assert places_of(image, RECOMMENDED) and places_of(image, FORBIDDEN)
        assert all(x < 0.6 * WIDTH for x, _ in places_of(image, FORBIDDEN))


def test_ticks_are_round_numbers_around_the_values():
    assert nice_ticks(0.0, 0.9) == [-0.2, 0, 0.2, 0.4, 0.6, 0.8, 1.0]
    ticks = nice_ticks(0.5, 0.5)
    assert ticks[0] < 0.5 < ticks[-1]
