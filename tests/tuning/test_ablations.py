"""The ablations ask the paper's questions, train no configuration twice, and say plainly what they show."""

import dataclasses

from prvr_ray.config import Config, resolve
from prvr_ray.tuning.ablations import Question, deduplicate, list_questions, state_finding
from prvr_ray.tuning.seed_comparison import Row
from prvr_ray.tuning.space import apply_point
from prvr_ray.tuning.statistics import Difference, Spread

BASE = resolve({"tune": {"teacher_noise": [2.0, 0.5, 0.0]}})


def point_of(name: str) -> Config:
    points = [question.variants[name] for question in list_questions(BASE) if name in question.variants]
    assert points == points[:1] * len(points)  # one name means one thing in every question
    return apply_point(BASE, points[0])


def test_every_question_of_the_paper_is_asked_with_every_decay() -> None:
    names = [list(question.variants) for question in list_questions(BASE)]
    distillations = [f"{kind}-distillation" for kind in ("static", "exp", "linear", "sigmoid")]
    soft_targets = [f"{kind}-soft-targets" for kind in ("static", "sigmoid", "exp", "linear", "cosine")]
    assert names == [
        ["both-branches", "inheritance-only", "exploration-only"],
        ["no-distillation", *distillations],
        distillations,
        ["hard-targets", *soft_targets],
        soft_targets,
        ["no-teacher", "teacher", "teacher-noise-0.5", "teacher-noise-2"],
        [f"{kind}-distillation-noise-0.5" for kind in ("static", "exp", "linear")],
        [f"{kind}-distillation-noise-2" for kind in ("static", "exp", "linear")],
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
    trained, trained_as = deduplicate(list_questions(BASE), BASE)
    configs = [apply_point(BASE, point).model_dump_json() for point in trained.values()]
    assert len(set(configs)) == len(configs)
    # The base is the paper's: both branches, exp distillation, sigmoid soft targets and a clean teacher are the same.
    same = ("both-branches", "exp-distillation", "sigmoid-soft-targets", "teacher")
    assert {trained_as[name] for name in same} == {"both-branches"}
    assert trained_as["linear-distillation"] == "linear-distillation"
    # With noise, exp distillation is the noisy teacher of the question before.
    assert trained_as["exp-distillation-noise-2"] == "teacher-noise-2"
    assert len(trained) == 18 - 3 + 4


def row(name: str, difference: Difference | None) -> Row:
    return Row(name, {}, Spread(3, 100.0, 1.0), None, difference, None, [])


def test_a_finding_is_one_sentence_that_tells_gain_loss_and_neither() -> None:
    question = Question("Does it help?", {name: {} for name in ("without", "a", "b", "c", "d", "e")})
    rows = {
        "without": row("without", None),
        "a": row("a", Difference(3, 2.0, 1.0, 3.0)),
        "b": row("b", Difference(3, -2.0, -3.0, -1.0)),
        "c": row("c", Difference(3, 1.0, -1.0, 3.0)),
        "d": row("d", Difference(3, 1.5, 0.1, 2.9)),
        "e": row("e", None),
    }
    assert state_finding(question, rows) == (
        "Does it help? Compared with without on the validation split, a and d are better (+2.0 and +1.5 SumR); "
        "b is worse (-2.0 SumR); c does not differ beyond run-to-run spread; e did not finish."
    )


def test_without_its_reference_a_question_has_no_answer() -> None:
    question = Question("Does it help?", {name: {} for name in ("without", "a")})
    rows = {"without": dataclasses.replace(row("without", None), validation=None), "a": row("a", None)}
    assert state_finding(question, rows) == "Does it help? without did not finish, so nothing can be compared with it."


def test_a_finding_is_of_the_validation_split_whatever_the_test_split_says() -> None:
    question = Question("Does it help?", {name: {} for name in ("without", "a", "b", "c")})
    gain, none = Difference(3, 2.0, 1.0, 3.0), Difference(3, 2.0, -1.0, 5.0)
    rows = {"without": row("without", None)}
    rows |= {name: dataclasses.replace(row(name, none), test_gain=gain) for name in ("a", "b", "c")}
    assert state_finding(question, rows) == (
        "Does it help? Compared with without on the validation split, a, b and c do not differ beyond run-to-run "
        "spread."
    )
