"""The evaluation's figures against float64 scores of plain loops, and what it refuses."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from score_world import moment_of
from served import MAX_FRAMES, add_queries, add_run, add_videos

from prvr_ray.collection import open_collection
from prvr_ray.config import EvaluateSettings, IndexSettings
from prvr_ray.retrieval.metrics import ranks, summarize
from prvr_ray.stages.evaluate import evaluate
from prvr_ray.student.batching import normalize, sample_uniform
from prvr_ray.terminal import show_evaluation

CUT = IndexSettings(windowing="windows", overlap_frames=3)
WEIGHTS = {"inheritance": 0.7, "exploration": 0.3}
VIDEOS = [f"v{i:02d}" for i in range(24)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """24 test videos, 40 queries with one to three relevant videos and a moment each; 6 validation videos."""
    root = tmp_path_factory.mktemp("root")
    rng = np.random.default_rng(5)
    add_videos(root, VIDEOS)
    add_videos(root, [f"w{i}" for i in range(6)], seed=1, split="val")
    relevant = {f"q{i:02d}": rng.choice(VIDEOS, size=1 + i % 3, replace=False).tolist() for i in range(40)}
    moments = {query: [(videos[0], 0.5, 2.0)] for query, videos in relevant.items()}
    add_queries(root, {**relevant, "lost": ["nobody"]}, moments=moments)
    add_queries(root, {f"p{i}": [f"w{i}"] for i in range(6)}, seed=2, split="val")
    return root, add_run(root), relevant


def windows_of(video, settings):
    """(start, stop) of the cuts, by the rule that the settings describe."""
    n = len(video.student)
    if settings is not CUT or n <= MAX_FRAMES:
        return [(0, n)]
    starts = [*range(0, n - MAX_FRAMES, MAX_FRAMES - 3), n - MAX_FRAMES]
    return [(start, start + MAX_FRAMES) for start in starts]


def unit(x):
    return torch.nn.functional.normalize(x.detach(), dim=-1).numpy().astype(np.float16).astype(np.float64)


def encoded_windows(root, student, settings, video_ids):
    """video_id -> per window, branch -> (F, D) float64; the teacher among the branches."""
    features = open_collection(str(root)).features()
    found = {}
    for video in features.read_videos(features.complete()):
        for start, stop in windows_of(video, settings) if video.video_id in video_ids else ():
            inputs = torch.from_numpy(normalize(sample_uniform(video.student[start:stop], MAX_FRAMES)))[None]
            encoded = student.encode_frames(inputs, torch.ones(inputs.shape[:2]))
            frames = video.teacher[start:stop].astype(np.float64)
            window = {branch: unit(encoded[branch][0]) for branch in WEIGHTS}
            window["teacher"] = frames / np.linalg.norm(frames, axis=1, keepdims=True)
            found.setdefault(video.video_id, []).append(window)
    return found


def query_vectors(root, student, prefix):
    """query_id -> branch -> unit vector, float64; the teacher among the branches."""
    features = open_collection(str(root)).features()
    found = {}
    for query in features.read_queries(features.queries()):
        tokens = torch.from_numpy(normalize(query.tokens[:5]))[None]
        vectors = {
            b: x[0].detach().double() for b, x in student.encode_queries(tokens, torch.ones(1, tokens.shape[1])).items()
        }
        vectors["teacher"] = torch.from_numpy(query.teacher.astype(np.float64))
        if query.query_id.startswith(prefix):
            found[query.query_id] = {b: (x / x.norm()).numpy() for b, x in vectors.items()}
    return dict(sorted(found.items()))


def plain_scores(windows, queries, weights):
    """(Q, V) float64: per window the weighted maxima, per video its best window."""
    scores_QV = np.full((len(queries), len(windows)), -np.inf)
    for q, vectors in enumerate(queries.values()):
        for v, of_video in enumerate(windows.values()):
            for window in of_video:
                value = sum(w * (window[branch] @ vectors[branch]).max() for branch, w in weights.items())
                scores_QV[q, v] = max(scores_QV[q, v], value)
    return scores_QV


ROWS = {
    "teacher": {"teacher": 1},
    "inheritance": {"inheritance": 1},
    "exploration": {"exploration": 1},
    "fused": WEIGHTS,
    "teacher+student": {"inheritance": 0.35, "exploration": 0.15, "teacher": 0.5},
}


@pytest.mark.parametrize("windowing", [IndexSettings(), CUT])
def test_all_rows_equal_plain_float64_scores(world, local_ray, windowing):
    root, student, relevant = world
    found = evaluate(EvaluateSettings(mode="fast"), windowing, root=str(root), run="run", split="test")
    windows, queries = encoded_windows(root, student, windowing, VIDEOS), query_vectors(root, student, "q")
    columns = [[list(windows).index(video_id) for video_id in relevant[query_id]] for query_id in queries]
    expected = {row: ranks(plain_scores(windows, queries, weights), columns) for row, weights in ROWS.items()}
    assert found["rows"] == {row: pytest.approx(summarize(of_row), abs=1e-9) for row, of_row in expected.items()}
    assert found["queries"] == 40
    assert found["excluded"] == 1
    stored = root / "runs/run/evaluations"
    assert json.loads((stored / "test-held-out.json").read_text())["rows"] == found["rows"]
    table = pq.read_table(stored / "test-held-out.parquet").to_pylist()
    assert len(table) == 5 * 40
    fused = {row["query_id"]: row["ranks"] for row in table if row["row"] == "fused"}
    assert fused == dict(zip(queries, [r.tolist() for r in expected["fused"]], strict=True))


def test_ratios_and_moments_equal_those_of_plain_loops(world, local_ray):
    root, student, relevant = world
    found = evaluate(EvaluateSettings(), IndexSettings(), root=str(root), run="run", split="test")
    windows, queries = encoded_windows(root, student, IndexSettings(), VIDEOS), query_vectors(root, student, "q")
    columns = [[list(windows).index(video_id) for video_id in relevant[query_id]] for query_id in queries]
    of_fused = ranks(plain_scores(windows, queries, WEIGHTS), columns)
    features = open_collection(str(root)).features()
    lengths = {video.video_id: len(video.student) for video in features.read_videos(features.complete())}
    groups, overlaps = {}, []
    for query_id, vectors, ranks_q in zip(queries, queries.values(), of_fused, strict=True):
        video_id = relevant[query_id][0]  # its one moment is 0.5 s to 2 s, its frames last a second each
        ratio = 1.5 / lengths[video_id]
        groups.setdefault("0.0-0.2" if ratio <= 0.2 else "0.2-0.4" if ratio <= 0.4 else "0.4-1.0", []).append(ranks_q)
        [window] = windows[video_id]
        curve_F = sum(weight * (window[branch] @ vectors[branch]) for branch, weight in WEIGHTS.items())
        overlaps.append(overlap(*plain_span(curve_F, lengths[video_id]), 0.5, 2.0))
    assert found["by_ratio"] == {
        name: pytest.approx(summarize(members) | {"queries": len(members)}) for name, members in sorted(groups.items())
    }
    assert len(groups) > 1
    expected = {f"r1_iou{level}": 100 * np.mean(np.array(overlaps) >= level) for level in (0.3, 0.5, 0.7)}
    assert found["moments"] == pytest.approx(expected)
    assert 0 < expected["r1_iou0.3"] < 100  # or it would show little


def test_moment_recall_equals_plain_loops_over_the_relevant_videos_windows(world, local_ray, capsys):
    """Frames last a second each, so a cut's edges are its frames' numbers."""
    root, student, relevant = world
    found = evaluate(EvaluateSettings(), CUT, root=str(root), run="run", split="test")
    features = open_collection(str(root)).features()
    cuts = {video.video_id: windows_of(video, CUT) for video in features.read_videos(features.complete())}
    encoded, overlaps = encoded_windows(root, student, CUT, VIDEOS), []
    for query_id, vectors in query_vectors(root, student, "q").items():
        video_id = relevant[query_id][0]
        curves = [{branch: window[branch] @ vectors[branch] for branch in WEIGHTS} for window in encoded[video_id]]
        scores = [sum(w * curve[branch].max() for branch, w in WEIGHTS.items()) for curve in curves]
        best = int(np.argmax(scores))
        fused = sum(w * curves[best][branch] for branch, w in WEIGHTS.items())
        _, start, end = moment_of(fused, np.arange(cuts[video_id][best][0], cuts[video_id][best][1] + 1.0))
        overlaps.append(max(0, min(end, 2.0) - max(start, 0.5)) / (max(end, 2.0) - min(start, 0.5)))
    expected = {f"r1_iou{level}": 100 * np.mean(np.array(overlaps) >= level) for level in (0.3, 0.5, 0.7)}
    assert found["moments"] == pytest.approx(expected)
    assert 0 < found["moments"]["r1_iou0.3"] < 100
    show_evaluation(found)
    assert f"{expected['r1_iou0.5']:.1f} % at IoU 0.5" in " ".join(capsys.readouterr().out.split())


def plain_span(curve_F, num_video_frames):
    """The run of frames around the best one that stay above the middle of median and peak; seconds."""
    num = len(curve_F)
    edges = [round(part / num * num_video_frames) for part in range(num + 1)]  # a frame a second, from half a second on
    level = (np.median(curve_F) + curve_F.max()) / 2
    start = stop = int(curve_F.argmax())
    while start and curve_F[start - 1] >= level:
        start -= 1
    while stop + 1 < num and curve_F[stop + 1] >= level:
        stop += 1
    return edges[start], edges[stop + 1]


def overlap(start_s, end_s, true_start_s, true_end_s):
    """Intersection over union."""
    shared = max(0.0, min(end_s, true_end_s) - max(start_s, true_start_s))
    return shared / (max(end_s, true_end_s) - min(start_s, true_start_s))


def test_a_student_below_its_teacher_is_said_to_be_and_one_above_is_not(world, local_ray):
    root, _, _ = world
    add_run(root, "other", seed=4)
    said = []
    for run in ("run", "other"):
        found = evaluate(EvaluateSettings(), IndexSettings(), root=str(root), run=run, split="test")
        is_below = found["rows"]["fused"]["sumr"] < found["rows"]["teacher"]["sumr"]
        assert ("warning" in found) == is_below
        said.append(is_below)
    assert sorted(said) == [False, True]


def test_the_papers_protocol_reports_the_split_that_chose_the_checkpoint(world, local_ray):
    root, _, _ = world
    found = evaluate(EvaluateSettings(protocol="paper"), IndexSettings(), root=str(root), run="run", split="val")
    assert (found["protocol"], found["queries"]) == ("paper", 6)
    assert found["output"].endswith("runs/run/evaluations/val-paper.json")


def test_chosen_weights_are_the_best_of_the_grid_on_the_validation_split(world, local_ray):
    root, student, _ = world
    settings = EvaluateSettings(choose_weights=True)
    found = evaluate(settings, IndexSettings(), root=str(root), run="run", split="test")
    windows = encoded_windows(root, student, IndexSettings(), {f"w{i}" for i in range(6)})
    queries = query_vectors(root, student, "p")
    columns = [[list(windows).index(f"w{query_id[1:]}")] for query_id in queries]

    def sumr(share):
        weights = {"inheritance": share, "exploration": 1 - share}
        return summarize(ranks(plain_scores(windows, queries, weights), columns))["sumr"]

    assert sumr(found["weights"]["inheritance"]) == max(sumr(step / 20) for step in range(21))
    assert sum(found["weights"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("ask", "match"),
    [
        ({"split": "val"}, "use --protocol paper"),
        ({"settings": EvaluateSettings(protocol="paper")}, "train with --train.validation_split test"),
        ({"split": "nothing"}, "no video with features"),
        ({"run": "nobody"}, "no run at"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(world, local_ray, ask, match):
    root, _, _ = world
    settings = ask.get("settings", EvaluateSettings())
    with pytest.raises(ValueError, match=match) as refusal:
        evaluate(settings, IndexSettings(), root=str(root), run=ask.get("run", "run"), split=ask.get("split", "test"))
    assert "\n" not in str(refusal.value)  # no traceback of a worker


def test_queries_of_videos_without_known_times_are_in_no_group_and_no_moment_recall(tmp_path, local_ray):
    timed, untimed = [f"v{i}" for i in range(4)], [f"w{i}" for i in range(3)]
    add_videos(tmp_path, timed)
    add_videos(tmp_path, untimed, seed=1, times=lambda rng, n: np.full(n, np.nan))
    moments = {f"q-{video_id}": [(video_id, 0.0, 1000.0)] for video_id in [*timed, *untimed]}
    add_queries(tmp_path, {f"q-{video_id}": [video_id] for video_id in [*timed, *untimed]}, moments=moments)
    add_videos(tmp_path, ["x"], seed=2, split="val")
    add_queries(tmp_path, {"p": ["x"]}, seed=2, split="val")
    add_run(tmp_path)
    settings = EvaluateSettings(iou_thresholds=[1e-6])
    found = evaluate(settings, IndexSettings(), root=str(tmp_path), run="run", split="test")
    assert found["queries"] == 7
    assert {group: of_group["queries"] for group, of_group in found["by_ratio"].items()} == {"0.4-1.0": 4}
    assert found["moments"] == {"r1_iou1e-06": 100.0}  # any span of a video meets the whole of it
