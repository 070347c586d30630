"""The ablations ask the paper's questions, train no configuration twice, and say plainly what they show."""

from prvr_ray.config import Config, resolve
from prvr_ray.tuning.ablations import Question, distinct, finding, questions
from prvr_ray.tuning.comparison import Row
from prvr_ray.tuning.space import apply_point
from prvr_ray.tuning.statistics import Difference, Spread

BASE = resolve({"tune": {"teacher_noise": [2.0, 0.5, 0.0]}})


def point_of(name: str) -> Config:
    [point] = [question.variants[name] for question in questions(BASE) if name in question.variants]
    return apply_point(BASE, point)


def test_every_question_of_the_paper_is_asked_with_every_decay() -> None:
    names = [list(question.variants) for question in questions(BASE)]
    assert names == [
        ["both-branches", "inheritance-only", "exploration-only"],
        ["no-distillation", "static-distillation", "exp-distillation", "linear-distillation", "sigmoid-distillation"],
        ["hard-targets", "static-soft-targets", *(f"{d}-soft-targets" for d in ("sigmoid", "exp", "linear", "cosine"))],
        ["no-teacher", "teacher", "teacher-noise-0.5", "teacher-noise-2"],
    ]


def test_variants_switch_off_what_they_say() -> None:
    assert point_of("no-distillation").train.distillation_weight == 0
    assert point_of("static-distillation").train.distillation_decay == "none"
    assert not point_of("hard-targets").train.exploration_soft_targets
    static = point_of("static-soft-targets").train
    assert (static.alpha_decay, static.beta_decay) == ("none", "none")
    nobody = point_of("no-teacher").train
    assert (nobody.distillation_weight, nobody.inheritance_soft_targets) == (0, False)
    assert point_of("teacher-noise-2").train.teacher_noise == 2.0
    assert point_of("exploration-only").student.branches == ["exploration"]


def test_no_configuration_is_trained_twice() -> None:
    trained, trained_as = distinct(questions(BASE), BASE)
    configs = [apply_point(BASE, point).model_dump_json() for point in trained.values()]
    assert len(set(configs)) == len(configs)
    # The base is the paper's: both branches, exp distillation, sigmoid soft targets and a clean teacher are the same.
    same = ("both-branches", "exp-distillation", "sigmoid-soft-targets", "teacher")
    assert {trained_as[name] for name in same} == {"both-branches"}
    assert trained_as["linear-distillation"] == "linear-distillation"
    assert len(trained) == 18 - 3


def row(name: str, difference: Difference | None) -> Row:
    return Row(name, {}, Spread(3, 100.0, 1.0), None, difference, None, [])


def test_a_finding_is_one_sentence_that_tells_gain_loss_and_neither() -> None:
    question = Question("Does it help?", {name: {} for name in ("without", "a", "b", "c")})
    rows = {
        "without": row("without", None),
        "a": row("a", Difference(3, 2.0, 1.0, 3.0)),
        "b": row("b", Difference(3, -2.0, -3.0, -1.0)),
        "c": row("c", Difference(3, 1.0, -1.0, 3.0)),
    }
    assert finding(question, rows) == (
        "Does it help? Against without, a is better, +2.0 SumR (interval +1.0 to +3.0, 3 seeds); "
        "b is worse, -2.0 SumR (interval -3.0 to -1.0, 3 seeds); "
        "c does not differ beyond run-to-run spread, +1.0 SumR (interval -1.0 to +3.0, 3 seeds)."
    )


def test_a_finding_names_what_did_not_finish() -> None:
    question = Question("Does it help?", {"without": {}, "a": {}})
    assert "a did not finish" in finding(question, {"without": row("without", None), "a": row("a", None)})
