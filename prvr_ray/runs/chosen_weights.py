"""The branch weights that validation chose for a run, kept beside it, one file a choice.

runs/<run>/weights/00001.json, 00002.json, ...: the last one counts, none is ever changed.
"""

from typing import Any

from prvr_ray.runs.run import RunFolder
from prvr_ray.schema import FORMAT_VERSION
from prvr_ray.storage import get_json, put_json_if_absent

_FOLDER = "weights"

Json = dict[str, Any]


def keep_choice(run: RunFolder, choice: Json) -> str:
    """Keep a choice as the newest one of a run.

    Args:
        choice: `weights` (branch -> weight), and what they were chosen from: `features`, `weights_sha256` of the
            student, and whatever else is worth knowing.

    Returns:
        The key of its file.
    """
    number = len(run.store.list(f"{_FOLDER}/"))
    kept = None
    while kept != choice:
        number += 1
        choice = {"format_version": FORMAT_VERSION, **choice, "number": number}
        kept = put_json_if_absent(run.store, _key(number), choice)  # another call's choice stays: take the next number
    return _key(number)


def read_choice(run: RunFolder) -> Json | None:
    """The newest choice that fits the run's best student and its features; None where there is none.

    Weights that were chosen for an earlier student, or on another feature set, say nothing about this one.
    """
    kept = run.store.list(f"{_FOLDER}/")
    if not kept:
        return None
    choice = get_json(run.store, kept[-1].key)
    plan, best = run.plan() or {}, run.best_weights()
    fits = choice["features"] == plan.get("features") and choice["weights_sha256"] == best["weights_sha256"]
    return choice if fits else None


def _key(number: int) -> str:
    return f"{_FOLDER}/{number:05d}.json"
