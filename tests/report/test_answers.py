"""Which queries are shown, and what is said of an answer."""

import boto3
import numpy as np
import pytest
from support.rendering import render

from prvr_ray.report.answers import Query, Video, answers_section, choose
from prvr_ray.report.evaluation import Evaluation
from prvr_ray.report.figures import Span
from prvr_ray.report.filmstrips import Projector
from prvr_ray.scores.lookup import Found

EDGES_S = np.arange(5.0)
QUERY = Query("q", "a text", ["right"], {"right": [Span(1.0, 3.0)]})


def evaluation(best_ranks) -> Evaluation:
    ids = [f"q{number:02d}" for number in range(len(best_ranks))]
    ranks = {"fused": [np.array([rank]) for rank in best_ranks]}
    return Evaluation("a", "test", "held-out", ids, ids, np.full(len(ids), np.nan), ranks)


def found(video_id="right", edges_s=EDGES_S, start_s=1.0, end_s=2.0) -> Found:
    return Found(video_id, 0.5, edges_s, np.array([0.1, 0.9, 0.3, 0.2]), (start_s + end_s) / 2, start_s, end_s)


def shown(answer: Found, video: Video, projector=None):
    videos = {"right": video, "wrong": video}
    section = answers_section({"Best": [QUERY]}, {"q": [(1, answer)]}, {"q": 1}, videos, projector)
    return section.blocks[1].questions[0].answers[0]


def test_best_and_worst_are_chosen_by_rank_and_none_comes_twice():
    chosen = choose(evaluation([5, 1, 9, 3, 7, 2, 8, 4, 6]), 2, seed=0)
    assert set(chosen["Best"]) == {"q01", "q05"}
    assert chosen["Worst"] == ["q02", "q06"]
    everyone = [query_id for of_kind in chosen.values() for query_id in of_kind]
    assert len(everyone) == len(set(everyone)) == 6


def test_the_choice_follows_the_seed():
    many = evaluation([1] * 40)
    assert choose(many, 4, seed=1) == choose(many, 4, seed=1)
    assert choose(many, 4, seed=1) != choose(many, 4, seed=2)


@pytest.mark.parametrize("num_queries", [1, 2, 3])
def test_few_queries_are_shown_once(num_queries):
    everyone = [query_id for of_kind in choose(evaluation([1] * num_queries), 4, 0).values() for query_id in of_kind]
    assert sorted(everyone) == [f"q{number:02d}" for number in range(num_queries)]


def test_an_answer_says_what_was_found_and_what_is_true():
    answer = shown(found(), Video("x", 4.0))
    assert answer.moment == "found 0:01.0–0:02.0, best at 0:01.5; annotated 0:01.0–0:03.0; overlap (IoU) 0.50"
    assert (answer.is_right, answer.ends) == (True, ("0:00", "0:04"))
    assert shown(found("wrong"), Video("x", 4.0)).moment == "found 0:01.0–0:02.0, best at 0:01.5"
    assert not shown(found("wrong"), Video("x", 4.0)).is_right


def test_features_without_times_have_a_curve_and_no_moment():
    nowhere = found(edges_s=np.full(5, np.nan), start_s=np.nan, end_s=np.nan)
    with Projector() as projector:
        answer = shown(nowhere, Video(None, np.nan), projector)
    assert (answer.moment, answer.strips, answer.ends) == ("", (), ("first frame", "last frame"))
    assert answer.note == "No times: only features of this video are known."
    assert "nan" not in answer.curve.lower()


@pytest.mark.parametrize(("uri", "note"), [(None, "No pictures: only features"), ("/none/a.mp4", "No pictures: ")])
def test_why_there_are_no_pictures_is_said(uri, note):
    with Projector() as projector:
        answer = shown(found(), Video(uri, 4.0), projector)
    assert answer.note.startswith(note)
    assert answer.strips == ()


def test_pictures_come_from_an_object_store_too(s3_root, tmp_path):
    bucket = s3_root.split("/")[2]
    boto3.client("s3").upload_file(str(render(tmp_path / "a.mp4", 40)), bucket, "videos/a #1.mp4")
    with Projector() as projector:
        answer = shown(found(), Video(f"s3://{bucket}/videos/a #1.mp4", 4.0), projector)
        absent = shown(found(), Video(f"s3://{bucket}/videos/none.mp4", 4.0), projector)
    assert [strip.partition(",")[0] for strip in answer.strips] == ["data:image/jpeg;base64"] * 2
    assert "does not exist" in absent.note
