"""What a stage raises when a worker fails: the worker's own word where it is meant for users, else Ray's."""

import os

import pytest
from ray.exceptions import RayTaskError

from prvr_ray.stages.session import _workers_own_errors, hide_core_log

TRACEBACK = """Traceback (most recent call last):
  File "worker.py", line 1, in task
KeyError: 'x'
"""


def failed_with(cause: Exception) -> RayTaskError:
    """What `ray.get` raises for it."""
    report = RayTaskError("task", TRACEBACK, cause, proctitle="p", pid=1, ip="127.0.0.1")
    return report.as_instanceof_cause()


@pytest.mark.parametrize("cause", [OSError(28, "No space left on device", "/root/a"), ValueError("no such run")])
def test_what_a_worker_says_to_users_is_raised_without_its_traceback(cause):
    with pytest.raises(type(cause)) as raised, _workers_own_errors():
        raise failed_with(cause)
    assert raised.value is cause
    assert "worker.py" not in str(raised.value)


def test_a_worker_s_mistake_keeps_its_traceback():
    with pytest.raises(RayTaskError, match=r"worker\.py"), _workers_own_errors():
        raise failed_with(KeyError("x"))


def test_lines_of_rays_core_are_hidden_while_it_starts_and_all_others_are_printed(capfd):
    def fail_to_start() -> None:
        with hide_core_log():
            os.write(2, b"[2026-12-01 00:07:22,735 I 30163 30163] logging.cc:303: Set ray log level to 3\n")
            os.write(2, b"a line of another library\n")
            raise ValueError("no cluster")

    with pytest.raises(ValueError, match="no cluster"):
        fail_to_start()
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err.splitlines() == ["a line of another library", "afterwards"]
