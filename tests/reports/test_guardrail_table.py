"""Guardrail probes on the report and in the terminal: what changed, in which direction, and the table of images and prompts."""

from boxtune.metrics.guardrail_rules import Probe
from boxtune.metrics.scoring import score
from boxtune.reports.guardrail_table import domain_rows, probe_rows
from boxtune.reports.report import write_report
from tests.helpers.records import make_record

PROBES = {
    "irrelevant_pass_rate": Probe(0.2, 10, 1.0),
    "hallucination_rate": Probe(0.8, 10, 0.0),
    "hallucinated_boxes": Probe(0.05, 10, 0.0),
    "pope_accuracy": Probe(0.75, 16, 0.5),
    "pope_yes_rate": Probe(0.75, 16, 0.5),
    "drift_kl": Probe(0.4, 200, None),
    "absent_rate": Probe(None, 0, None),
    **{name: Probe(0.5, 8, 0.25) for name in ("boxes_in_in", "boxes_in_out", "boxes_out_in", "boxes_out_out")},
}


def test_each_change_is_called_better_or_worse_by_what_the_probe_measures():
    rows = {row.name: row for row in probe_rows(PROBES)}
    assert {name: row.verdict for name, row in rows.items()} == {
        "irrelevant_pass_rate": "worse",
        "hallucination_rate": "worse",
        "hallucinated_boxes": "",  # too small a change
        "absent_rate": "",
        "pope_accuracy": "better",
        "pope_yes_rate": "",  # neither direction is better
        "drift_kl": "",  # no base
    }
    assert (rows["pope_accuracy"].base, rows["pope_accuracy"].tuned, rows["pope_accuracy"].change) == (
        "0.500",
        "0.750",
        "+0.250",
    )
    assert rows["drift_kl"].base == rows["absent_rate"].tuned == "–"


def test_the_table_of_images_and_prompts():
    assert domain_rows(PROBES) == [
        ["own images", "0.250 → 0.500", "0.250 → 0.500"],
        ["unrelated images", "0.250 → 0.500", "0.250 → 0.500"],
    ]
    assert domain_rows({"drift_kl": Probe(0.4, 200)}) == []


def test_the_report_shows_the_guardrails_that_were_measured(tmp_path):
    record = make_record("a", "a.png", 10, 10, [([0, 0, 5, 5], "cat")])
    prediction = {
        **{key: record[key] for key in ("id", "image", "width", "height")},
        "text": "[]",
        "codec": "qwen3_vl",
        "input_size": [32, 32],
        "problems": [],
        "seconds": 0.1,
        "decoder": "text",
        "objects": {"bbox": [], "category": [], "score": []},
    }
    metrics = score([record], [prediction], ["cat"])
    for probes, shown in ((PROBES, True), (None, False)):
        write_report(tmp_path / "report.html", [record], [prediction], metrics, {}, tmp_path, "a run", probes=probes)
        page = (tmp_path / "report.html").read_text()
        assert ("Guardrails: what else changed" in page) is shown
        assert ("irrelevant_pass_rate" in page) is shown
