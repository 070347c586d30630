"""The records of trials in storage: a study resumes from them, and the report reads them.

`NAME/config.yaml` is put when a trial starts, `NAME/trial.json` when it ends; what else lies in its folder
is the objective's.
"""

import contextlib
from dataclasses import dataclass

from prvr_ray.config import Config
from prvr_ray.runs.run import CONFIG, settings_from_yaml, settings_to_yaml
from prvr_ray.storage import Store, StoredObject, get_json, put_json
from prvr_ray.tuning.space import Point, point_of
from prvr_ray.tuning.trial import Trial

_RECORD = "trial.json"


@dataclass(frozen=True)
class TrialFolder:
    """The records of a folder of trials."""

    store: Store

    def uri(self, name: str) -> str:
        """Where a trial may keep its files."""
        return self.store.child(name).uri

    def put_start(self, name: str, config: Config) -> None:
        """Record the configuration that a trial runs, in a form that `prvr train --config` takes."""
        self.store.put(f"{name}/{CONFIG}", settings_to_yaml(config))

    def put_end(self, trial: Trial) -> None:
        """Record how a trial ended; from then on it never runs again."""
        put_json(self.store, f"{trial.name}/{_RECORD}", trial.to_json())

    def ended(self) -> dict[str, Trial]:
        """The trials that have ended, by name."""
        keys = [item.key for item in self.store.list() if item.key.endswith(f"/{_RECORD}")]
        trials = [Trial.from_json(get_json(self.store, key)) for key in keys]
        return {trial.name: trial for trial in trials}

    def interrupted(self, paths: list[str]) -> dict[str, Point]:
        """The points of the trials that have started and not ended, by name."""
        keys = {item.key for item in self.store.list()}
        started = [key.removesuffix(f"/{CONFIG}") for key in sorted(keys) if key.endswith(f"/{CONFIG}")]
        names = [name for name in started if f"{name}/{_RECORD}" not in keys]
        configs = {name: settings_from_yaml(self.store.get(f"{name}/{CONFIG}")) for name in names}
        return {name: point_of(config, paths) for name, config in configs.items()}


def adopt(theirs: Store, mine: Store) -> None:
    """Put another trial's files in place of one's own, records excepted."""
    for item in _list_files(mine):
        mine.delete(item.key)
    for item in reversed(_list_files(theirs)):  # newest checkpoint first: the other trial drops old ones meanwhile
        with contextlib.suppress(FileNotFoundError):
            mine.put(item.key, theirs.get(item.key))


def _list_files(store: Store) -> list[StoredObject]:
    return [item for item in store.list() if item.key not in (CONFIG, _RECORD)]
