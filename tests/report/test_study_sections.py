"""The section about a study says what its summary holds."""

from xml.etree import ElementTree

import pytest
from support.study_summaries import summary, trial

from prvr_ray.report.page import Cell, Figures, Table, Text
from prvr_ray.report.study import ablation_section, study_section


def drawn(section):
    return [figure for block in section.blocks if isinstance(block, Figures) for figure in block.figures]


def test_the_proof_is_shown_as_it_was_computed():
    section = study_section("s", summary([trial(0), trial(1)]))
    table = next(block for block in section.blocks if isinstance(block, Table))
    assert table.rows == [
        ["base", "150.0 ± 2.5", "–", "–", "–"],
        ["trial-0001", "150.0 ± 2.5", Cell("+5.0", "−0.3 to +10.2"), "–", "+5.0"],
    ]
    assert "3 seeds" in table.caption


def test_each_question_of_an_ablation_has_its_finding_and_its_variants():
    rows = summary([])["proof"]
    question = {
        "title": "Are both branches needed?",
        "finding": "Are both needed? Yes.",
        "reference": "base",
        "rows": rows,
    }
    section = ablation_section({"kind": "ablation", "questions": [question, question], "seeds": [1, 2, 3]})
    assert [type(block) for block in section.blocks] == [Text, Table, Text, Table]
    assert section.blocks[0] == Text("Are both needed? Yes.")
    assert [row[0] for row in section.blocks[1].rows] == ["base", "trial-0001"]


def test_verdict_and_states_come_first():
    section = study_section("s", summary([trial(0)], states={"finished": 1, "stopped": 4}))
    assert section.blocks[0] == Text("Nothing beat the base. Study s: 1 trial, 1 finished, 4 stopped.")


def test_trials_stand_on_each_axis_where_their_value_lies():
    trials = [trial(0, lr=1e-4, sumr=100.0), trial(1, lr=1e-3, decay="none", sumr=120.0)]
    figure = drawn(study_section("s", summary(trials)))[-1]
    texts = [item.text for item in ElementTree.fromstring(figure.svg).iter() if item.tag.endswith("text")]
    assert {"lr", "decay", "SumR", "0.0001", "0.01", "exp", "none", "100", "120"} <= set(texts)


@pytest.mark.parametrize("trials", [[], [trial(0, "failed")], [trial(0)], [trial(0, "stopped"), trial(1, "failed")]])
def test_few_failed_and_stopped_trials_are_no_obstacle(trials):
    section = study_section("s", summary(trials, importance={}, proof=[]))
    assert len(drawn(section)) == (1 if any(trial["curve"] for trial in trials) else 0)
