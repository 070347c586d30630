"""What becomes of the tasks of a score job when scorers are lost."""

import os
import sys
from pathlib import Path

import pytest

from prvr_ray.progress import Steps
from prvr_ray.stages import score as score_stage
from prvr_ray.stages.score import _MOST_LOSSES, run_on_pool


class Fragile:
    """A scorer whose process ends in the middle of a task: of every one, or of the first that any of them gets."""

    def ready(self) -> None:
        pass

    def die(self, folder: str) -> str | None:
        Path(folder, str(os.getpid())).touch()
        os._exit(1)

    def die_first(self, folder: str, name: str) -> str | None:
        try:
            Path(folder, "first").touch(exist_ok=False)
        except FileExistsError:
            Path(folder, name).touch()
            return None
        os._exit(1)


def start(count: int) -> list:
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module
    actor = ray.remote(Fragile).options(max_restarts=-1, max_task_retries=-1, num_cpus=0)
    return [actor.remote() for _ in range(count)]


def test_the_task_of_a_lost_scorer_is_done_by_another(local_ray, tmp_path):
    tasks = [(str(tmp_path), f"task-{number}") for number in range(5)]
    run_on_pool(start(2), "die_first", tasks, "units")
    assert {path.name for path in tmp_path.glob("task-*")} == {name for _, name in tasks}


def test_a_task_that_ends_its_scorers_ends_the_job(local_ray, tmp_path):
    with pytest.raises(ValueError, match=rf"one task of 'die' lost {_MOST_LOSSES + 1} scorers; the last: "):
        run_on_pool(start(1), "die", [(str(tmp_path),)], "units")
    assert len(list(tmp_path.iterdir())) == _MOST_LOSSES + 1


def test_a_pool_that_never_starts_is_said_after_a_minute_then_every_three(monkeypatch, capsys):
    answers = iter([[], [], ["call"]])
    timeouts = []

    def wait(calls, timeout):
        timeouts.append(timeout)
        return next(answers), calls

    monkeypatch.delenv("PRVR_QUIET", raising=False)
    monkeypatch.setattr(score_stage.ray, "wait", wait)
    with Steps("score", 1, "units") as steps:
        assert score_stage._wait({"call": ("scorer", None)}, "score", steps) == "call"
    said = capsys.readouterr().err.splitlines()
    assert timeouts == [60, 180, 180]
    assert [line.partition(";")[0] for line in said] == [
        "score: none of 1 scorer(s) has started after 60 s",
        "score: none of 1 scorer(s) has started after 240 s",
    ]
