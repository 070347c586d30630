"""The evaluation's figures against float64 scores of plain loops, and what it refuses."""

import contextlib
import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support.read_only import refuse_puts
from support.score_world import moment_of
from support.served import MAX_FRAMES, add_queries, add_run, add_videos

from prvr_ray import cli
from prvr_ray.cli.tables import show_evaluation
from prvr_ray.collection import open_collection
from prvr_ray.config import EvaluateSettings, IndexSettings
from prvr_ray.retrieval.metrics import ranks, summarize
from prvr_ray.stages import evaluate as stage
from prvr_ray.stages.evaluate import evaluate
from prvr_ray.student.batching import normalize, sample_uniform

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
    add_queries(root, {f"t{i:02d}": ["w0"] for i in range(30)}, seed=3, split="train")
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
            frames /= np.linalg.norm(frames, axis=1, keepdims=True)
            window["teacher"] = frames.astype(np.float16).astype(np.float64)  # as an index holds them
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


def test_a_filter_ranks_matching_videos_alone_and_leaves_the_whole_splits_result(world, local_ray):
    root, student, relevant = world
    some = VIDEOS[:9]
    ask = {"root": str(root), "run": "run", "split": "test"}
    whole = evaluate(EvaluateSettings(), IndexSettings(), **ask)
    chosen = [f"video_id in ({', '.join(some)})", "duration_s > 0"]
    found = evaluate(EvaluateSettings(), IndexSettings(), **ask, filter=chosen)
    windows = encoded_windows(root, student, IndexSettings(), some)
    left = {query: [v for v in relevant[query] if v in some] for query in query_vectors(root, student, "q")}
    queries = {query: vectors for query, vectors in query_vectors(root, student, "q").items() if left[query]}
    columns = [[list(windows).index(video_id) for video_id in left[query]] for query in queries]
    of_rows = {row: ranks(plain_scores(windows, queries, weights), columns) for row, weights in ROWS.items()}
    assert {row: found["rows"][row] for row in ROWS} == {
        row: pytest.approx(summarize(of_row), abs=1e-9) for row, of_row in of_rows.items()
    }
    assert (found["queries"], found["excluded"]) == (len(queries), 41 - len(queries))
    assert found["filters"] == chosen
    stored = json.loads((root / "runs/run/evaluations/test-held-out.json").read_text())
    assert stored["rows"] == whole["rows"]
    with pytest.raises(ValueError, match="has no video with features that matches split = val"):
        evaluate(EvaluateSettings(), IndexSettings(), **ask, filter=["split = val"])


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


def test_a_warning_says_what_the_split_can_tell_of_the_student(world, local_ray):
    root, _, _ = world
    found = evaluate(EvaluateSettings(), IndexSettings(), root=str(root), run="run", split="test")
    difference = found["rows"]["fused"]["sumr"] - found["rows"]["teacher"]["sumr"]
    assert f"SumR {difference:+.1f}, 95 % interval" in found["warning"]
    assert "on the test split" in found["warning"]
    few = evaluate(EvaluateSettings(protocol="paper"), IndexSettings(), root=str(root), run="run", split="val")
    assert "6 queries about 6 videos: too few to tell" in few["warning"]


def test_the_papers_protocol_reports_the_split_that_chose_the_checkpoint(world, local_ray):
    root, _, _ = world
    found = evaluate(EvaluateSettings(protocol="paper"), IndexSettings(), root=str(root), run="run", split="val")
    assert (found["protocol"], found["queries"]) == ("paper", 6)
    assert found["output"].endswith("runs/run/evaluations/val-paper.json")


@pytest.mark.parametrize("windowing", [IndexSettings(), CUT])
def test_chosen_rows_equal_plain_scores_under_the_weights_that_were_kept(world, local_ray, windowing):
    """The weights are the choice's own test's business; hubs are found by loops over the training queries here."""
    root, student, relevant = world
    add_run(root, f"chosen-{windowing.windowing}")
    name = {"root": str(root), "run": f"chosen-{windowing.windowing}", "split": "test"}
    first = evaluate(EvaluateSettings(choose_weights=True), windowing, **name)
    again = evaluate(EvaluateSettings(), windowing, **name)
    kept = json.loads((root / "runs" / name["run"] / "weights" / "00001.json").read_text())
    assert again["rows"] == first["rows"]
    assert first["chosen"]["weights"] == kept["weights"]
    assert (kept["split"], kept["num_queries"], kept["num_videos"], kept["features"]) == ("val", 6, 6, "default")

    windows, queries = encoded_windows(root, student, windowing, VIDEOS), query_vectors(root, student, "q")
    columns = [[list(windows).index(video_id) for video_id in relevant[query_id]] for query_id in queries]
    scores_QV = plain_scores(windows, queries, kept["weights"])
    training_QV = plain_scores(windows, query_vectors(root, student, "t"), kept["weights"])
    hubs_V = np.sort(training_QV, axis=0)[-10:].mean(axis=0)
    assert first["rows"]["chosen"] == pytest.approx(summarize(ranks(scores_QV, columns)))
    assert first["rows"]["chosen+hubness"] == pytest.approx(summarize(ranks(scores_QV - 0.5 * hubs_V, columns)))
    assert first["rows"]["chosen+hubness"] != first["rows"]["chosen"]


def test_weights_chosen_for_an_earlier_student_are_left_aside(world, local_ray):
    root, _, _ = world
    add_run(root, "again")
    evaluate(EvaluateSettings(choose_weights=True), IndexSettings(), root=str(root), run="again", split="test")
    add_run(root, "again", seed=9)
    found = evaluate(EvaluateSettings(), IndexSettings(), root=str(root), run="again", split="test")
    assert "chosen" not in found["rows"]


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
    made = add_videos(tmp_path, timed) | add_videos(tmp_path, untimed, seed=1, times=lambda rng, n: np.full(n, np.nan))
    moments = {f"q-{video_id}": [(video_id, 0.0, float(len(frames_FD)))] for video_id, frames_FD in made.items()}
    add_queries(tmp_path, {f"q-{video_id}": [video_id] for video_id in [*timed, *untimed]}, moments=moments)
    add_videos(tmp_path, ["x"], seed=2, split="val")
    add_queries(tmp_path, {"p": ["x"]}, seed=2, split="val")
    add_run(tmp_path)
    settings = EvaluateSettings(iou_thresholds=[1e-6])
    found = evaluate(settings, IndexSettings(), root=str(tmp_path), run="run", split="test")
    assert found["queries"] == 7
    assert {group: of_group["queries"] for group, of_group in found["by_ratio"].items()} == {"0.4-1.0": 4}
    assert found["moments"] == {"r1_iou1e-06": 100.0}  # any span of a video meets the whole of it


@pytest.mark.parametrize("options", [[], ["--choose-weights", "true"]])
def test_a_root_that_may_only_be_read_shows_the_figures_and_that_they_were_not_kept(
    world, monkeypatch, capsys, options
):
    """What a worker does is done in this process, so that Ray need not start."""
    root, _, _ = world
    here = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=stage.evaluate_split))
    monkeypatch.setattr(stage, "ray", SimpleNamespace(remote=lambda function: here, get=lambda found: found))
    monkeypatch.setattr(stage, "connect", lambda address: contextlib.nullcontext())
    monkeypatch.setattr(stage, "require", lambda worker: None)
    refuse_puts(monkeypatch)
    command = ["evaluate", "--root", str(root), "--run", "run", "--split", "test", "--json", *options]
    assert cli.main(command) == 1
    said = capsys.readouterr()
    assert "test split, protocol held-out" in said.out
    assert json.loads(said.out.splitlines()[-1])["queries"] == 40
    [line] = said.err.splitlines()
    assert line.startswith(f"prvr: this evaluation could not be kept in {root}/runs/run/evaluations: ")
    assert "Read-only file system" in line
