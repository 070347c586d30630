"""`prvr index`: a run's student encodes a feature set, through Ray Data, into shards of windows.

A worker encodes videos and puts their windows itself. Vectors never leave its process: where indexers hold every CPU no
other worker waits for one, and with a node only the tasks are lost that it had not ended.

Videos whose windows all stand in the index with the same source are left alone: adding videos later adds shards. A
video whose windows came to lie in several shards, of which a killed job put only some, is encoded again as a whole;
readers take one row of each window.
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
from prvr_ray.collection import FeatureSet, ShardFolder, declare_spec, existing_collection
from prvr_ray.config import IndexSettings
from prvr_ray.runs import RunFolder, open_run
from prvr_ray.stages.committing import PutShard, check_put
from prvr_ray.stages.datasets import dataset_of
from prvr_ray.stages.devices import device_of
from prvr_ray.stages.index_folder import IndexFolder
from prvr_ray.stages.progress import Steps
from prvr_ray.stages.resources import Worker, pool_size, require
from prvr_ray.stages.session import connect
from prvr_ray.stages.student_vectors import WindowEncoder, Windowing
from prvr_ray.student.batching import prefetch

_VIDEOS_PER_TASK = 256  # or more, until they fill a shard
_SHARDS_PER_TASK = 8  # and no more videos than that: they are what a node's death costs
_BLOCK_BYTES = 2**14  # less than what one full shard's acknowledgement takes, so that each comes at once
_FILE = ["video_id", "added_at"]  # one version of a video


def index(
    settings: IndexSettings, *, root: str, run: str, index: str, address: str | None = None, dry_run: bool = False
) -> dict[str, Any]:
    """Bring an index up to date with the feature set that its run was trained on.

    Args:
        root: the collection.
        run: a training run; its best student encodes.
        index: name of the index.
        address: of a Ray cluster; None: embedded.
        dry_run: only say what would be done.

    Returns:
        Counts of videos, windows and frames that were added.

    Raises:
        ValueError: no such run or feature set, or the index stands with another student or windowing.
    """
    collection, folder = existing_collection(root), open_run(root, run)
    plan = folder.plan()
    if plan is None:
        raise ValueError(f"run {run!r} has not begun; `prvr train` makes it")
    features = collection.features(plan["features"])
    spec = _spec(folder, features, settings)
    target = IndexFolder(collection, index)
    if not dry_run:
        declare_spec(target.store, spec)
    work = _missing(features, target, Windowing(**spec["windowing"]))
    num_videos = pc.count_distinct(work["video_id"]).as_py()
    counts: dict[str, Any] = {"videos": num_videos, "dry_run": dry_run}
    if not dry_run:
        if num_videos:
            with connect(address):
                counts = _index_videos(settings, folder, features, target, work, spec)
        target.note_shards()
    return {**counts, "output": target.store.uri}


def _spec(folder: RunFolder, features: FeatureSet, settings: IndexSettings) -> dict[str, Any]:
    """spec.json: everything that decides the vectors and which frames they stand for."""
    config = folder.config()
    num_frames = settings.window_frames or config.student.max_frames
    if num_frames > config.student.max_frames:
        raise ValueError(f"index.window_frames={num_frames}; the run's student takes {config.student.max_frames}")
    return {
        "run": folder.store.uri.rpartition("/")[2],
        **folder.best_weights(),
        "features": features.store.uri.rpartition("/")[2],
        "features_spec": features.spec(),
        "branches": list(config.student.branches),
        "dim": config.student.hidden_dim,
        "windowing": asdict(Windowing(settings.windowing, num_frames, settings.overlap_frames)),
    }


def _missing(features: FeatureSet, target: IndexFolder, windowing: Windowing) -> pa.Table:
    """The segments of complete videos of which a window is not indexed from the same source yet, by shard and row."""
    complete = features.complete().select([*_FILE, "num_frames", "shard", "row"])
    indexed = _indexed(complete, target.count_windows(), windowing)
    wanted = complete.join(indexed, keys=_FILE, join_type="left anti")
    return wanted.sort_by([("shard", "ascending"), ("row", "ascending")])


def _indexed(segments: pa.Table, windows: pa.Table, windowing: Windowing) -> pa.Table:
    """The videos of `segments`, by file, of which all windows stand; windows: how many do, by file."""
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


def _tasks(work: pa.Table, windowing: Windowing, rows_per_shard: int, num_indexers: int) -> list[pa.Table]:
    """Cut the work into tasks of some videos each, which lie near one another.

    A task has enough videos to fill a shard, fewer where an indexer would be left with none, and no more than some
    shards' worth: a single video may exceed that.
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
    run: RunFolder
    spec: dict[str, Any]
    pass_frames: int
    num_gpus: float
    shards: ShardFolder
    name: str
    rows_per_shard: int

    @property
    def windowing(self) -> Windowing:
        return Windowing(**self.spec["windowing"])


class _IndexVideos:
    """Encodes the videos of located feature rows and puts their windows; what comes is for `check_put`."""

    def __init__(self, plan: _IndexPlan):
        self._plan, student = plan, plan.run.load_student(plan.spec)
        self._encoder = WindowEncoder(student, plan.windowing, plan.pass_frames, device_of(plan.num_gpus))
        self._put = PutShard(plan.shards, plan.name)

    def __call__(self, work: pa.Table) -> Iterator[pa.Table]:
        """Put shards of one size, the next one being encoded meanwhile; the first that cannot be put is the last."""
        num_rows = int(_windows_of(work, self._plan.windowing)[1].sum())
        num_shards = -(-num_rows // self._plan.rows_per_shard)
        windows = self._encoder.encode(self._plan.features.read_videos(work, columns=("student",)))
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
    settings: IndexSettings, run: RunFolder, features: FeatureSet, target: IndexFolder, work: pa.Table, spec: Any
) -> dict[str, Any]:
    worker = Worker("indexer", settings.indexer_cpus, settings.indexer_gpus, labels=settings.indexer_labels)
    require(worker)
    name = f"shard-{time.time_ns():020d}"
    row_bytes = spec["windowing"]["num_frames"] * spec["dim"] * len(spec["branches"]) * 2
    rows_per_shard = max(1, settings.shard_bytes // row_bytes)
    plan = _IndexPlan(
        features, run, spec, settings.pass_frames, settings.indexer_gpus, target.shards, name, rows_per_shard
    )
    tasks = _tasks(work, plan.windowing, rows_per_shard, settings.num_indexers)
    put = dataset_of(tasks, _BLOCK_BYTES).map_batches(
        _IndexVideos,
        fn_constructor_args=(plan,),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=pool_size(1, settings.num_indexers, len(tasks))),
        **worker.options,
    )
    num_videos = pc.count_distinct(work["video_id"]).as_py()
    return {"videos": num_videos, **_follow(put, num_videos)}


def _follow(put: Dataset, num_videos: int) -> dict[str, int]:
    """Drive the pipeline and show its progress."""
    num_windows = num_frames = 0
    seen: set[str] = set()
    with Steps("index", num_videos, "videos") as steps:
        batch: Any
        for batch in put.iter_batches(batch_size=None, batch_format="pyarrow"):
            check_put(batch)
            new = set(batch["video_id"].to_pylist()) - seen
            seen |= new
            num_windows += len(batch)
            num_frames += pc.sum(batch["num_frames"]).as_py()
            steps.advance(len(new), f"{num_windows} windows")
    return {"windows": num_windows, "frames": num_frames}
