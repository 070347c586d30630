"""`prvr index`: a run's student encodes a feature set, through Ray Data, into shards of windows.

With `--teacher` the teacher's own vectors become the windows, and nothing is encoded.

A worker encodes videos and puts their windows itself, so vectors never leave its process. No second kind of worker has
to wait for a CPU where indexers hold them all, and the loss of a node costs only its unfinished tasks.

Videos that already have all their windows, from the same file, are skipped: videos that are added later go into new
shards. If a killed job put only some of a video's windows, the whole video is encoded again. At its end the job puts a
manifest, and readers see all of its shards at once.
"""

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.data import ActorPoolStrategy, Dataset

from prvr_ray import schema
from prvr_ray.collection import Collection, FeatureSet, ShardFolder, declare_spec, existing_collection, preview_spec
from prvr_ray.collection.manifest import read_manifest
from prvr_ray.collection.shard_writer import PutShard, raise_put_errors
from prvr_ray.config import IndexSettings
from prvr_ray.devices import choose_device
from prvr_ray.index.index import IndexFolder
from prvr_ray.index.live_windows import summarize_shards
from prvr_ray.index.manifest import commit, live_counts
from prvr_ray.index.student_encoder import WindowEncoder, Windowing
from prvr_ray.index.teacher_encoder import TEACHER, WINDOW_FRAMES, TeacherWindows
from prvr_ray.progress import Steps
from prvr_ray.runs.encoders import check_encoders
from prvr_ray.runs.run import RunFolder, open_run
from prvr_ray.stages.datasets import make_dataset
from prvr_ray.stages.resources import Worker, choose_pool_size, require
from prvr_ray.stages.session import connect
from prvr_ray.student.batching import prefetch

_VIDEOS_PER_TASK = 256  # or more, until they fill a shard
_SHARDS_PER_TASK = 8  # the most, because a node that dies loses the work of its tasks
_BLOCK_BYTES = 2**14  # smaller than the acknowledgement of a full shard, so that each one is passed on at once
_FILE = ["video_id", "added_at"]  # one version of a video


def index(
    settings: IndexSettings,
    *,
    root: str,
    index: str,
    run: str | None = None,
    teacher: bool = False,
    features: str = "",
    address: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Bring an index up to date with its feature set: that of its run, or, of the teacher alone, any.

    Args:
        root: the collection.
        run: a training run; its best student encodes. FROM_ROOT:RUN: one of another collection, whose features were
            made by the same encoders.
        index: name of the index.
        teacher: index the teacher's own frame vectors instead: no run, and no caption, is needed.
        features: the feature set, with `teacher`; empty: default.
        address: of a Ray cluster; None: embedded.
        dry_run: only say what would be done.

    Returns:
        Counts of videos, windows and frames that were added.

    Raises:
        ValueError: neither a run nor the teacher, or both; no such run or feature set, features of other encoders than
            the run's or without teacher vectors, or the index exists with another student or windowing.
    """
    if (run is not None) == teacher or (features and not teacher):
        raise ValueError("index either a run's student, --run RUN, or the teacher alone, --teacher [--features SET]")
    collection, folder, note = existing_collection(root), None, None
    if run is None:
        feature_set = collection.features(features or "default")
        spec = _teacher_spec(feature_set, settings)
    else:
        folder = open_run(root, run)
        feature_set, note = _features_of(folder, run, collection)
        spec = _index_spec(folder, feature_set, settings)
    target = IndexFolder(collection, index)
    (preview_spec if dry_run else declare_spec)(target.store, spec)
    present = summarize_shards(target.shards, target.shards.present(), {})
    work = _pending(feature_set, live_counts(target.shards, present), Windowing(**spec["windowing"]))
    num_videos = pc.count_distinct(work["video_id"]).as_py()
    counts: dict[str, Any] = {"videos": num_videos, "dry_run": dry_run}
    if not dry_run:
        if not read_manifest(target.store):  # from here on readers see no shard of this job before it ends
            commit(target.shards, present)
        if num_videos:
            with connect(address):
                counts = _index_videos(settings, folder, feature_set, target, work, spec)
        commit(target.shards, present)
    return {**counts, **({"note": note} if note else {}), "output": target.store.uri}


def _features_of(folder: RunFolder, run: str, collection: Collection) -> tuple[FeatureSet, str | None]:
    """The feature set that a run was trained on, or its like in this collection, and a line for the user."""
    plan = folder.plan()
    if plan is None:
        raise ValueError(f"run {run!r} has not begun; `prvr train` makes it")
    features = collection.features(plan["features"])
    where = f"features/{plan['features']} of {collection.store.uri}"
    return features, check_encoders(plan.get("encoders"), features.spec(), f"run {run!r}", where)


def _teacher_spec(features: FeatureSet, settings: IndexSettings) -> dict[str, Any]:
    """spec.json of an index of the teacher alone. Its frames are all kept: only cuts, never samples, of long videos."""
    spec = features.spec()
    if not spec.get("teacher", {}).get("dim"):
        raise ValueError(f"{features.store.uri} holds no vectors of a teacher: ingest, or import, with one")
    num_frames = settings.window_frames or WINDOW_FRAMES
    return {
        "made_by": TEACHER,
        "features": features.store.uri.rpartition("/")[2],
        "features_spec": spec,
        "branches": [TEACHER],
        "dim": spec["teacher"]["dim"],
        "windowing": asdict(Windowing("windows", num_frames, settings.overlap_frames)),
    }


def _index_spec(folder: RunFolder, features: FeatureSet, settings: IndexSettings) -> dict[str, Any]:
    """spec.json: everything that decides the vectors and which frames they stand for."""
    config = folder.config()
    num_frames = settings.window_frames or config.student.max_frames
    if num_frames > config.student.max_frames:
        raise ValueError(f"index.window_frames={num_frames}; the run's student takes {config.student.max_frames}")
    return {
        "run": folder.refer_from(features.collection.store.uri),
        **folder.best_weights(),
        "features": features.store.uri.rpartition("/")[2],
        "features_spec": features.spec(),
        "branches": list(config.student.branches),
        "dim": config.student.hidden_dim,
        "windowing": asdict(Windowing(settings.windowing, num_frames, settings.overlap_frames)),
    }


def _pending(features: FeatureSet, windows: pa.Table, windowing: Windowing) -> pa.Table:
    """The segments of complete videos of which a window is not indexed from the same file yet, by shard and row.

    windows: how many are present of each file, as `live_counts` says.
    """
    complete = features.complete().select([*_FILE, "num_frames", "shard", "row"])
    indexed = _indexed(complete, windows, windowing)
    wanted = complete.join(indexed, keys=_FILE, join_type="left anti")
    return wanted.sort_by([("shard", "ascending"), ("row", "ascending")])


def _indexed(segments: pa.Table, windows: pa.Table, windowing: Windowing) -> pa.Table:
    """Return the videos of `segments`, by file, that have all their windows. windows: how many exist, by file."""
    videos = segments.group_by(_FILE).aggregate([("num_frames", "sum")])
    num_windows_V = _num_windows(videos["num_frames_sum"].to_numpy(), windowing)
    videos = videos.append_column("expected", pa.array(num_windows_V))
    found = videos.join(windows, keys=_FILE, join_type="inner")
    return found.filter(pc.greater_equal(found["windows"], found["expected"])).select(_FILE)


def _num_windows(num_frames_V: np.ndarray, windowing: Windowing) -> np.ndarray:
    """How many windows each of some videos is cut into."""
    lengths, place_V = np.unique(num_frames_V, return_inverse=True)
    return np.array([windowing.num_windows(length) for length in lengths.tolist()], np.int64)[place_V]


def _windows_of(work: pa.Table, windowing: Windowing) -> tuple[np.ndarray, np.ndarray]:
    """The video of each segment of some work, numbered as they come, and the number of windows of each video."""
    video_of_row = work["video_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    frames_V = np.bincount(video_of_row, work["num_frames"].to_numpy()).astype(np.int64)
    return video_of_row, _num_windows(frames_V, windowing)


def _divide_work(work: pa.Table, windowing: Windowing, rows_per_shard: int, num_indexers: int) -> list[pa.Table]:
    """Divide the work into tasks of consecutive videos.

    A task has enough videos to fill a shard, or fewer if some indexer would otherwise have no task. It has at most
    about `_SHARDS_PER_TASK` shards of windows, unless a single video has more.
    """
    video_of_row, num_windows_V = _windows_of(work, windowing)
    enough = min(rows_per_shard, num_windows_V.sum() / num_indexers)
    task_V: list[int] = []
    task = num_videos = num_rows = 0
    for num_windows in num_windows_V.tolist():
        task_V.append(task)
        num_videos, num_rows = num_videos + 1, num_rows + num_windows
        if (num_videos >= _VIDEOS_PER_TASK and num_rows >= enough) or num_rows >= _SHARDS_PER_TASK * rows_per_shard:
            task, num_videos, num_rows = task + 1, 0, 0
    task_of_row = np.array(task_V)[video_of_row]
    by_task = work.take(np.argsort(task_of_row, kind="stable"))
    edges = np.cumsum([0, *np.bincount(task_of_row)]).tolist()
    return [by_task.slice(start, stop - start) for start, stop in itertools.pairwise(edges)]


@dataclass(frozen=True)
class _IndexPlan:
    """What an indexing worker needs. name: the start of its shards' names. rows_per_shard: at most."""

    features: FeatureSet
    run: RunFolder | None
    spec: dict[str, Any]
    pass_frames: int
    num_gpus: float
    shards: ShardFolder
    name: str
    rows_per_shard: int

    @property
    def windowing(self) -> Windowing:
        return Windowing(**self.spec["windowing"])


def _make_encoder(plan: _IndexPlan) -> WindowEncoder | TeacherWindows:
    if plan.run is None:
        return TeacherWindows(plan.windowing)
    student = plan.run.load_student(plan.spec)
    return WindowEncoder(student, plan.windowing, plan.pass_frames, choose_device(plan.num_gpus))


class _IndexVideos:
    """Encodes the videos of located feature rows and puts their windows; `raise_put_errors` checks what it yields."""

    def __init__(self, plan: _IndexPlan):
        self._plan = plan
        self._encoder = _make_encoder(plan)
        self._put = PutShard(plan.shards, plan.name)

    def __call__(self, work: pa.Table) -> Iterator[pa.Table]:
        """Put shards of equal size while the next one is encoded; stop at the first that cannot be put."""
        num_rows = int(_windows_of(work, self._plan.windowing)[1].sum())
        num_shards = -(-num_rows // self._plan.rows_per_shard)
        windows = self._encoder.encode(
            self._plan.features.read_videos(work, columns=("student",) if self._plan.run else (TEACHER,))
        )
        shards = _shards_of(windows, -(-num_rows // max(1, num_shards)))
        for acknowledged in prefetch(self._put, shards, depth=1):
            yield acknowledged
            if acknowledged["problem"].null_count < len(acknowledged):
                return


def _shards_of(tables: Iterable[pa.Table], num_rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of num_rows; only the last one may be shorter."""
    waiting = schema.INDEX.empty_table()
    for table in tables:
        waiting = pa.concat_tables([waiting, table])
        while len(waiting) >= num_rows:
            yield waiting.slice(0, num_rows)
            waiting = waiting.slice(num_rows)
    if len(waiting):
        yield waiting


def _index_videos(
    settings: IndexSettings, run: RunFolder | None, features: FeatureSet, target: IndexFolder, work: pa.Table, spec: Any
) -> dict[str, Any]:
    worker = Worker("indexer", settings.indexer_cpus, settings.indexer_gpus, labels=settings.indexer_labels)
    require(worker)
    name = f"shard-{time.time_ns():020d}"
    row_bytes = spec["windowing"]["num_frames"] * spec["dim"] * len(spec["branches"]) * 2
    rows_per_shard = max(1, settings.shard_bytes // row_bytes)
    plan = _IndexPlan(
        features, run, spec, settings.pass_frames, settings.indexer_gpus, target.shards, name, rows_per_shard
    )
    tasks = _divide_work(work, plan.windowing, rows_per_shard, settings.num_indexers)
    put = make_dataset(tasks, _BLOCK_BYTES).map_batches(
        _IndexVideos,
        fn_constructor_args=(plan,),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=choose_pool_size(1, settings.num_indexers, len(tasks))),
        **worker.options,
    )
    num_videos = pc.count_distinct(work["video_id"]).as_py()
    return {"videos": num_videos, **_follow_index(put, num_videos)}


def _follow_index(put: Dataset, num_videos: int) -> dict[str, int]:
    """Drive the pipeline and show its progress."""
    num_windows = num_frames = 0
    seen: set[str] = set()
    with Steps("index", num_videos, "videos") as steps:
        batch: Any
        for batch in put.iter_batches(batch_size=None, batch_format="pyarrow"):
            raise_put_errors(batch)
            new = set(batch["video_id"].to_pylist()) - seen
            seen |= new
            num_windows += len(batch)
            num_frames += pc.sum(batch["num_frames"]).as_py()
            steps.advance(len(new), f"{num_windows} windows")
    return {"windows": num_windows, "frames": num_frames}
