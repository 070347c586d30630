"""How a worker's error reaches the user: the worker returns it as text, and the driver raises it again.

A worker must not raise it: Ray Train and pools of actors would repeat the call, and Ray Data would print a page of text
around it. Tasks and constructors have no value to return. What they raise, `prvr_ray.stages.session.connect` takes out
of Ray's error.
"""

from collections.abc import Callable
from typing import Any

_KINDS = {kind.__name__: kind for kind in (OSError, ValueError)}


def tell(
    work: Callable[..., object], *arguments: Any, errors: tuple[type[Exception], ...] = (OSError, ValueError)
) -> str | None:
    """Do some work on a worker; return the error that a user can act on, or None.

    Args:
        errors: what to return; anything else is raised. OSError stands for what storage, disk or network refuse,
            ValueError for unusable input or settings.
    """
    try:
        work(*arguments)
    except errors as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        return f"{kind.__name__}: {error}"
    return None


def raise_told(told: str | None) -> None:
    """Raise on the driver what `tell` returned on a worker.

    Raises:
        OSError, ValueError: of the same kind and with the same message.
    """
    if told:
        kind, _, message = told.partition(": ")
        raise _KINDS[kind](message)
