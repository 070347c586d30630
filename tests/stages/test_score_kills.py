"""A score job that is killed, anywhere: it goes on from what was put, and its answers are the same bytes."""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest
import safetensors.numpy
from support.score_world import SETTINGS, answers, expected_answers, make_world

from prvr_ray.collection.maintenance import remove
from prvr_ray.scores import job, plan
from prvr_ray.scores.partial import unpack_names
from prvr_ray.stages import score as stage
from prvr_ray.stages.score import Scorer, score
from prvr_ray.storage import LocalStore


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("root"))


SLOW = """
import os, sys, time
import ray
from prvr_ray.config import ScoreSettings
from prvr_ray.stages.score import score

root, output, log = sys.argv[1:]

def slow_down():
    from prvr_ray.scores.job import ScoreJob
    work = ScoreJob.score
    def noted(self, unit, queries):
        with open(log, "a") as lines:
            lines.write(f"{os.getpid()} {unit}\\n")
        time.sleep(0.5)
        return work(self, unit, queries)
    ScoreJob.score = noted

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=2**27,
         runtime_env={"worker_process_setup_hook": slow_down})
score(ScoreSettings(top_k=7, num_moments=3, unit_bytes=1), root=root, index="i", queries="test", output=output)
"""


class SlowJob:
    """`score` in a process and a Ray of its own, each unit taking half a second."""

    def __init__(self, root, output, log):
        self.folder, self._log = root / "scores" / output, log
        command = [sys.executable, "-c", SLOW, str(root), output, str(log)]
        self.process = subprocess.Popen(command, start_new_session=True)

    def calls(self):
        """(process, unit) of every unit that a worker began."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [tuple(map(int, line.split())) for line in lines]

    def standing(self):
        return sorted(path.name for path in self.folder.glob("partials/*") if path.suffix == ".safetensors")

    def wait_for_units(self, count):
        deadline = time.monotonic() + 120
        while len(self.standing()) < count or len(self.calls()) <= count:
            assert time.monotonic() < deadline
            assert self.process.poll() is None
            time.sleep(0.02)

    def kill_everything(self):
        workers = {process for process, _ in self.calls()}
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(worker)
                process.kill()
                process.wait(timeout=10)


@pytest.fixture
def slow_job(world, tmp_path):
    started = []

    def start(output):
        started.append(SlowJob(world[0], output, tmp_path / output))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.kill_everything()


@pytest.fixture(scope="module")
def whole(world, local_ray):
    """What an undisturbed job says: units, and name -> bytes of its parts."""
    settings = SETTINGS.model_copy(update={"unit_bytes": 1})
    summary = score(settings, root=str(world[0]), index="i", queries="test", output="whole")
    return summary["units"], parts_of(world[0] / "scores/whole")


def parts_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("part-*")}


@pytest.mark.slow
def test_a_killed_job_goes_on_and_ends_byte_for_byte_the_same(world, whole, slow_job):
    """SIGKILL to the driver and all its workers once some partials stand; those are not made again."""
    num_units, expected = whole
    job = slow_job("killed")
    job.wait_for_units(2)
    job.kill_everything()
    before = {name: (job.folder / "partials" / name).stat().st_mtime_ns for name in job.standing()}
    assert 2 <= len(before) < num_units
    assert not parts_of(job.folder)
    settings = SETTINGS.model_copy(update={"unit_bytes": 1})
    resumed = score(settings, root=str(world[0]), index="i", queries="test", output="killed")
    assert resumed["units_scored"] == num_units - len(before)
    assert parts_of(job.folder) == expected
    assert not job.standing()


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_unit_alone_is_scored_again(whole, slow_job):
    num_units, expected = whole
    job = slow_job("worker-killed")
    job.wait_for_units(1)
    worker, in_hand = job.calls()[-1]
    os.kill(worker, signal.SIGKILL)
    assert job.process.wait(timeout=120) == 0
    assert parts_of(job.folder) == expected
    calls = job.calls()
    assert len({process for process, _ in calls}) == 2
    assert Counter(unit for _, unit in calls) == Counter(range(num_units)) + Counter([in_hand])


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def small_files(monkeypatch):
    """Ten queries a file, five a part."""
    for module in (job, plan, stage):
        monkeypatch.setattr(module, "QUERIES_PER_FILE", 10)
    monkeypatch.setattr(job, "_ANSWERS_PER_PART", 35)


def finish(root, output):
    """All of a job, or what is left of it: (its units, as often as each was scored), and whether it ended."""
    calls, work = Counter(), Scorer._score

    def counted(self, block, unit):
        calls[block, unit] += 1
        work(self, block, unit)

    settings = SETTINGS.model_copy(update={"query_block": 10, "unit_bytes": 60_000})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "_score", counted)
        try:
            score(settings, root=str(root), index="i", queries="test", output=output)
        except Killed:
            return calls, False
    return calls, True


@pytest.mark.parametrize("stride", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_a_job_killed_at_any_step_goes_on_and_ends_byte_for_byte_the_same(
    world, without_ray, small_files, monkeypatch, stride
):
    """Three blocks of queries, parts of five queries. The process ends before an object is put or deleted, and so after
    the one before: before every one, or every sixth."""
    root, student = world
    finish(root, f"undisturbed-{stride}")
    expected, found = parts_of(root / f"scores/undisturbed-{stride}"), answers(root, f"undisturbed-{stride}")
    assert len(expected) == 5
    brute = expected_answers(root, student, 7)
    assert {query_id: [row["video_id"] for row in rows] for query_id, rows in found.items()} == {
        query_id: [video_id for _, video_id, _, _ in rows] for query_id, rows in brute.items()
    }
    for fatal in itertools.count(1, stride):
        folder = root / f"scores/fatal-{stride}-{fatal}"
        with monkeypatch.context() as patch:
            kill_before_step(patch, fatal)
            first, is_finished = finish(root, folder.name)
        standing = {path.name for path in folder.glob("partials/*")}
        second, _ = finish(root, folder.name)
        assert parts_of(folder) == expected
        assert not any(f"{block:05d}-{unit:05d}.safetensors" in standing for block, unit in second)
        assert max((first + second).values()) <= 2
        if is_finished:
            break
    assert fatal > 20


def test_a_video_that_is_removed_after_a_kill_is_in_no_answer_of_the_resumed_job(
    world, without_ray, small_files, monkeypatch, tmp_path
):
    """Then killed again, while what names the video is dropped or made anew."""
    finish(world[0], "known")
    removed = answers(world[0], "known")["q03"][0]["video_id"]
    num_named = Counter()
    for fatal in (10, 16, 20):  # before the fifth partial, the second part, the summary
        root = tmp_path / str(fatal)
        shutil.copytree(world[0], root, ignore=shutil.ignore_patterns("scores"))
        folder = root / "scores/job"
        with monkeypatch.context() as patch:
            kill_before_step(patch, fatal)
            assert not finish(root, "job")[1]
        remove(str(root), removed)
        named = {path.name for path in folder.glob("partials/*") if removed in names_of(path)}
        untouched = {path.name for path in folder.glob("partials/*")} - named
        num_named.update(partials=len(named), parts=len(parts_of(folder)))
        with monkeypatch.context() as patch:
            kill_before_step(patch, 4)
            second, _ = finish(root, "job")
        third, is_finished = finish(root, "job")
        assert is_finished
        assert untouched.isdisjoint(f"{block:05d}-{unit:05d}.safetensors" for block, unit in second + third)
        finish(root, "begun-later")
        assert parts_of(folder) == parts_of(root / "scores/begun-later")
        assert all(row["video_id"] != removed for rows in answers(root).values() for row in rows)
    assert min(num_named["partials"], num_named["parts"]) > 0


def names_of(partial):
    return unpack_names(safetensors.numpy.load_file(partial)["names"])


def test_a_finished_job_stays_as_it_is_when_a_video_is_removed(world, without_ray, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(world[0], root, ignore=shutil.ignore_patterns("scores"))
    finish(root, "job")
    before = parts_of(root / "scores/job")
    remove(str(root), answers(root)["q03"][0]["video_id"])
    assert finish(root, "job") == (Counter(), True)
    assert parts_of(root / "scores/job") == before


def kill_before_step(patch, fatal):
    """End the process before the store's change of that number."""
    count = itertools.count(1)

    def mortal(change):
        def change_or_die(*arguments):
            if next(count) == fatal:
                raise Killed
            return change(*arguments)

        return change_or_die

    for name in ("put", "put_if_absent", "delete"):
        patch.setattr(LocalStore, name, mortal(getattr(LocalStore, name)))
