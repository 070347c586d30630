"""A small ROOT with everything that a report reads, made without Ray: rendered videos, features that mean something,
a run of a few epochs, an index, an evaluation, a study. Names and captions are hostile where a user's could be."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from prvr_ray import schema
from prvr_ray.collection import Collection, declare_spec, history, open_collection
from prvr_ray.config import Config, StudentSettings, TrainSettings
from prvr_ray.demo.world import Script, plan_world, queries_of, render
from prvr_ray.index.student_encoder import WindowEncoder, Windowing, encode_queries
from prvr_ray.retrieval.metrics import ranks
from prvr_ray.runs.run import open_run
from prvr_ray.runs.training_data import TrainingData
from prvr_ray.schema import pack_times, pack_vectors
from prvr_ray.storage import put_json, table_to_bytes
from prvr_ray.student.training import fit

HOSTILE = '<script>document.title = "taken"</script><img src=x onerror="document.title = 1">'
BROKEN = f"test/{HOSTILE}.mp4"
DIM = 8
SPLITS = {"train": 16, "val": 4, "test": 9}
CONFIG = Config(
    student=StudentSettings(hidden_dim=16, num_heads=4, max_frames=32),
    train=TrainSettings(num_epochs=4, videos_per_batch=8, lr=3e-3, hard_pool_size=3),
)


def make_world(folder: Path, runs: tuple[str, ...] = ("first", "second")) -> Collection:
    """Everything below folder/root; the videos of the test split below folder/videos."""
    collection = open_collection(str(folder / "root"))
    scripts = plan_world(0, SPLITS)
    videos = {script.video_id: _video_row(script, folder / "videos") for script in scripts}
    videos[BROKEN] = _row(BROKEN, str(folder / "videos" / "none.mp4"), "test")
    collection.video_shards.append(pa.Table.from_pylist(list(videos.values()), schema.VIDEOS))
    queries = queries_of(scripts)
    queries[-1]["text"] = f"{HOSTILE} {queries[-1]['text']}"
    collection.query_shards.append(pa.Table.from_pylist(queries, schema.QUERIES))
    _put_features(collection, scripts, queries, videos)
    for seed, run in enumerate(runs):
        _put_run(collection, run, seed)
        _put_index_and_evaluation(collection, run)
    history.record(collection.store.uri, "ingest", {"videos": {"total": len(videos)}, "seconds": 3.2, "output": "x"})
    return collection


def _row(video_id: str, uri: str, split: str) -> dict:
    return {
        "video_id": video_id, "uri": uri, "size": 1, "etag": "e", "split": split, "duration_s": None,
        "added_at": 1.0, "removed": False,
    }  # fmt: skip


def _video_row(script: Script, folder: Path) -> dict:
    path = render(script, str(folder)) if script.split == "test" else folder / script.video_id
    return _row(script.video_id, str(path), script.split)


def _put_features(collection: Collection, scripts: list[Script], queries: list[dict], videos: dict) -> None:
    """Words have random vectors; a frame means the caption of what it shows, a token means its word."""
    rng = np.random.default_rng(0)
    words: dict[str, np.ndarray] = {}

    def meaning(text: str) -> np.ndarray:
        for word in text.split():
            words.setdefault(word, np.random.default_rng(len(words)).normal(size=DIM))
        return np.array([words[word] for word in text.split()])

    features = collection.features()
    spec = {"name": "tiny", "dim": DIM}
    declare_spec(features.store, {"shared": True, "teacher": spec, "student": {**spec, "token_dim": DIM}})
    rows = []
    for script in scripts:
        times_F = np.arange(0, script.duration_s)
        frames_FD = rng.normal(size=(len(times_F), DIM))
        for event in script.moments:
            frames_FD[(times_F >= event.start_s) & (times_F < event.end_s)] += 2 * meaning(event.caption).mean(0)
        rows.append(_segment(script.video_id, len(times_F), pack_times(times_F), pack_vectors(frames_FD), script))
    failure = _segment(BROKEN, 0, None, None, None) | {"error_class": "decode", "error": HOSTILE}
    features.video_shards.append(pa.Table.from_pylist([*rows, failure], schema.FEATURE_VIDEOS))
    encoded = [_query_row(query, meaning(query["text"])) for query in queries]
    features.query_shards.append(pa.Table.from_pylist(encoded, schema.FEATURE_QUERIES))


def _segment(video_id: str, num_frames: int, times: bytes | None, vectors: bytes | None, script: Script | None) -> dict:
    return {
        "video_id": video_id, "etag": "e", "added_at": 1.0, "segment": 0, "is_last": True, "num_frames": num_frames,
        "timestamps_s": times, "teacher": vectors, "start_s": 0.0, "warnings": [], "decoded_share": 1.0,
        "duration_s": script.duration_s if script else None,
    }  # fmt: skip


def _query_row(query: dict, tokens_TD: np.ndarray) -> dict:
    return {
        "query_id": query["query_id"], "text_hash": schema.text_hash(query["text"]), "num_tokens": len(tokens_TD),
        "teacher": pack_vectors(tokens_TD.mean(0)[None]), "student": pack_vectors(tokens_TD),
    }  # fmt: skip


def _put_run(collection: Collection, run: str, seed: int) -> None:
    train = CONFIG.train.model_copy(update={"seed": seed, "cache_folder": f"{collection.store.uri}/cache"})
    config = CONFIG.model_copy(update={"train": train})
    data = TrainingData.of(collection.store.uri, "default")
    folder = open_run(collection.store.uri, run)
    folder.declare(config, data.plan)
    fit(*data.open_caches(config), config.student, config.train, on_epoch=folder.put_epoch)


def _put_index_and_evaluation(collection: Collection, run: str) -> None:
    folder, features = open_run(collection.store.uri, run), collection.features()
    student, windowing = folder.load_student(), Windowing("whole", CONFIG.student.max_frames, 0)
    index = collection.store.child(f"index/{run}")
    declare_spec(index, {
        "run": run, "features": "default", "branches": list(student.branches), "dim": CONFIG.student.hidden_dim,
        "windowing": asdict(windowing), "features_spec": features.spec(), **folder.best_weights(),
    })  # fmt: skip
    videos = list(features.read_videos(features.complete()))
    table = pa.concat_tables(WindowEncoder(student, windowing, 4096).encode(videos))
    index.put("shard-0.parquet", table_to_bytes(table))

    queries = collection.queries("test").to_pylist()
    rows = features.queries()
    encoded = {query.query_id: query for query in features.read_queries(rows)}
    of_branch = encode_queries(student, [encoded[query["query_id"]].tokens for query in queries])
    searched = [row for row in table.to_pylist() if row["video_id"].startswith("test/")]
    place = {row["video_id"]: column for column, row in enumerate(searched)}
    relevant = [[place[video_id] for video_id in query["video_ids"]] for query in queries]
    scores = {branch: _scores(of_branch[branch], [_frames(row[branch]) for row in searched]) for branch in of_branch}
    scores["fused"] = 0.7 * scores["inheritance"] + 0.3 * scores["exploration"]
    by_id = {video.video_id: video.teacher.astype(float) for video in videos}
    teacher_QD = np.array([encoded[query["query_id"]].teacher for query in queries], dtype=float)
    scores["teacher"] = _scores(_unit(teacher_QD), [_unit(by_id[row["video_id"]]) for row in searched])
    lengths = dict(zip((v.video_id for v in videos), (v.duration_s for v in videos), strict=True))
    kept = [
        {"query_id": query["query_id"], "row": row, "ranks": ranks_q.tolist(), "moment_ratio": _ratio(query, lengths)}
        for row, scores_QV in scores.items()
        for query, ranks_q in zip(queries, ranks(scores_QV, relevant), strict=True)
    ]
    ranked = pa.Table.from_pylist(kept, schema.QUERY_RANKS)
    folder.store.put("evaluations/test-held-out.parquet", table_to_bytes(ranked))
    put_json(folder.store, "evaluations/test-held-out.json", {
        "split": "test", "protocol": "held-out", "weights": {"inheritance": 0.7, "exploration": 0.3},
        "moments": {"r1_iou0.3": 40.0},
    })  # fmt: skip


def _frames(value: bytes) -> np.ndarray:
    return np.frombuffer(value, "<f2").reshape(-1, CONFIG.student.hidden_dim).astype(float)


def _unit(x_nD: np.ndarray) -> np.ndarray:
    return x_nD / np.linalg.norm(x_nD, axis=1, keepdims=True)


def _scores(queries_QD: np.ndarray, videos: list[np.ndarray]) -> np.ndarray:
    return np.stack([(queries_QD @ frames_FD.T).max(1) for frames_FD in videos], axis=1)


def _ratio(query: dict, lengths: dict[str, float]) -> float:
    [moment] = query["moments"]
    return (moment["end_s"] - moment["start_s"]) / lengths[moment["video_id"]]
