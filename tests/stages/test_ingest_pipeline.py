"""How the work of ingest is cut and counted; what its workers do is tested where they stand."""

import time
from collections import defaultdict
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from support.small_clip import write_small_clip

from prvr_ray import schema
from prvr_ray.config import IngestSettings
from prvr_ray.encoders import describe_encoder
from prvr_ray.features.pending import WORK
from prvr_ray.stages import ingest_pipeline as stage


class Recorded:
    """Stands for ray.util.metrics.Counter."""

    totals: ClassVar[defaultdict[tuple, float]] = defaultdict(float)

    def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] = ()):
        assert description
        self._name, self._tag_keys = name, tag_keys

    def inc(self, value: float, tags: dict[str, str] | None = None) -> None:
        assert value > 0  # Ray refuses others
        assert set(tags or {}) == set(self._tag_keys)
        Recorded.totals[(self._name, *(tags or {}).values())] += value


class Batches:
    """Stands for the dataset of what has been put."""

    def __init__(self, *batches: list[dict[str, Any]]):
        self._batches = batches

    def iter_batches(self, **options: object):
        names = ("video_id", "is_last", "num_frames", "error_class")
        shape = pa.schema([*map(schema.FEATURE_VIDEOS.field, names), ("problem", pa.string())])
        return (pa.Table.from_pylist(rows, shape) for rows in self._batches)


def row(video_id: str, num_frames: int, is_last: bool = True, error_class: str | None = None) -> dict[str, Any]:
    return {"video_id": video_id, "is_last": is_last, "num_frames": num_frames, "error_class": error_class}


def test_what_is_committed_is_counted_for_a_dashboard(monkeypatch):
    monkeypatch.setattr(stage.metrics, "Counter", Recorded)
    monkeypatch.setattr(Recorded, "totals", defaultdict(float))
    put = Batches(
        [row("a", 4, is_last=False), row("a", 3), row("b", 0, error_class="decode")],
        [row("c", 5), row("d", 0, error_class="timeout"), row("e", 0, error_class="decode")],
        [row("f", 2, is_last=False)],
    )
    assert stage._follow_ingest(put, 6) == 14
    assert Recorded.totals == {
        ("prvr_ingest_videos",): 5,
        ("prvr_ingest_frames",): 14,
        ("prvr_ingest_failures", "decode"): 2,
        ("prvr_ingest_failures", "timeout"): 1,
    }


@pytest.mark.parametrize(("count", "num_decoders", "most"), [(1, 2, 1), (7, 2, 1), (10_000, 2, 64), (800, 4, 6)])
def test_every_decoder_gets_several_tasks_and_each_video_is_in_one(count, num_decoders, most):
    work = pa.Table.from_pylist([{"video_id": f"v{n}", "size": 10} for n in range(count)], WORK)
    tasks = stage._cut_tasks(work, num_decoders)
    assert pa.concat_tables(tasks)["video_id"].to_pylist() == work["video_id"].to_pylist()
    assert max(map(len, tasks)) == most


def test_large_files_are_a_task_each():
    sizes = [1, 200, 100, 300, 1, 1]
    work = pa.Table.from_pylist(
        [{"video_id": f"v{n}", "size": size * 2**20} for n, size in enumerate(sizes * 20)], WORK
    )
    for task in stage._cut_tasks(work, 1):
        assert len(task) == 1 or sum(task["size"].to_pylist()) <= 256 * 2**20


@pytest.mark.parametrize("held", [0, 1])
def test_the_workers_of_ingest_fit_into_the_cpus_that_other_work_leaves(held, local_ray, tmp_path):
    """With one CPU left of two, decoder 0.5 + encoder 0.5 + put 0.1 would keep one of them out for ever."""
    import ray

    name, _ = write_small_clip(tmp_path)
    group = ray.util.placement_group([{"CPU": held}]) if held else None
    assert group is None or group.wait(30)
    while ray.available_resources().get("CPU", 0) > 2 - held:  # reports lag behind
        time.sleep(0.05)
    try:
        pipeline = stage.plan_pipeline(IngestSettings(encoder=name), [describe_encoder(name)])
        decoder, num_decoders, (least, most) = pipeline.fit_workers()
    finally:
        if group:
            ray.util.remove_placement_group(group)
    assert least == most == 1
    assert num_decoders == (2, 1)[held]
    assert num_decoders * decoder.cpus + most * pipeline.encoder.cpus + stage._PUT_CPUS <= 2 - held
