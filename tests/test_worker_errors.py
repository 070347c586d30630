"""Errors of workers, from where they happen to where they are raised again."""

import pytest

from prvr_ray.worker_errors import raise_told, tell


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("student.num_heads=5: use 4"), ValueError),
        (FileNotFoundError("no such file: 'a: b'"), OSError),
        (PermissionError("no permission for s3://bucket/key"), OSError),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), ValueError),
    ],
)
def test_an_error_for_the_user_keeps_its_kind_and_its_words(error, kind):
    told = tell(fail, error)
    assert isinstance(told, str)  # plain text travels through any table and any version of Ray
    with pytest.raises(kind) as raised:
        raise_told(told)
    assert type(raised.value) is kind
    assert str(raised.value) == str(error)


def test_work_without_an_error_tells_nothing():
    done = []
    assert tell(done.append, 1) is None
    assert done == [1]
    raise_told(None)


def test_a_worker_that_a_restart_may_help_raises_what_it_is_not_asked_to_tell():
    fatal = (ValueError, FloatingPointError)
    assert tell(fail, FloatingPointError("not finite"), errors=fatal) == "ValueError: not finite"
    with pytest.raises(OSError, match="busy"):
        tell(fail, OSError("the store is busy"), errors=fatal)


@pytest.mark.parametrize("error", [TypeError("ours"), KeyError("ours"), MemoryError(), KeyboardInterrupt()])
def test_a_fault_of_ours_is_raised_where_it_happens(error):
    with pytest.raises(type(error)):
        tell(fail, error)
