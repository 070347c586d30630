"""Measures what ASHA with TPE saves over random search, and what Ray Tune adds to each trial.

Search: on the learning curves of `benchmarks/learning_curves.py`, random search trains every trial to its end; then
ASHA with TPE searches the same space with as many trials, and the epochs of all its trials are summed up to the end of
the first trial that is at least as good as random search's best. Trials are compared by their SumR without noise, which
neither search sees. Both begin with the base configuration. Trials can be stopped after 1 of 27 epochs, about the same
fraction as the default, 5 of 120.

Overhead: trials sleep for a known time, two at a time; the rest of the study's time is divided by the number of trials.

    python benchmarks/tune.py [--seeds 5]
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learning_curves import SPACE, LearningCurve, final_sumr

from prvr_ray.config import Config, resolve
from prvr_ray.stages.resources import Worker
from prvr_ray.stages.session import connect
from prvr_ray.stages.trial_runner import Report, Runner
from prvr_ray.stages.tune import search
from prvr_ray.storage import open_store
from prvr_ray.tuning.study import Study

TRIALS, EPOCHS = 32, 27
SLOTS = 2  # CPUs, and trials at a time
OVERHEAD_TRIALS, OVERHEAD_EPOCHS, EPOCH_S = 20, 5, 0.2
ONE_CPU = Worker("trial", 1.0)


@dataclass(frozen=True)
class Logged:
    """The objective; it also logs each epoch, and the final SumR of each finished trial."""

    log: str

    def __call__(self, config: Config, folder: str, report: Report) -> dict[str, Any]:
        def logged(epoch: int, sumr: float) -> None:
            self._write("epoch")
            report(epoch, sumr)

        outcome = LearningCurve()(config, folder, logged)
        self._write(f"end {final_sumr(config)}")
        return outcome

    def _write(self, line: str) -> None:
        with open(self.log, "a") as log:
            log.write(f"{line}\n")


@dataclass(frozen=True)
class Searched:
    """The result of a search: its total epochs, and for each finished trial the epochs so far and the SumR."""

    num_epochs: int
    found: list[tuple[int, float]]

    @classmethod
    def read(cls, log: Path) -> "Searched":
        """Read the log that `Logged` wrote."""
        num_epochs, found = 0, []
        for kind, *final in map(str.split, log.read_text().splitlines()):
            num_epochs += kind == "epoch"
            found += [(num_epochs, float(value)) for value in final]
        return cls(num_epochs, found)

    @property
    def best(self) -> float:
        """The best SumR of its finished trials."""
        return max(figure for _, figure in self.found)

    def epochs_to(self, figure: float) -> int | None:
        """Count the epochs of all trials until one finished with at least this SumR; None if none did."""
        return next((epochs for epochs, reached in self.found if reached >= figure), None)


def searched(folder: Path, seed: int, sampler: str, scheduler: str) -> Searched:
    """Run one search."""
    log, settings = folder / f"{sampler}-{seed}.log", {"num_trials": TRIALS, "grace_epochs": 1, "space": SPACE}
    tune = {**settings, "sampler": sampler, "scheduler": scheduler, "seed": seed}
    base = resolve({"train": {"num_epochs": EPOCHS}, "tune": tune})
    search(Study.plan(open_store(folder / f"{sampler}-{seed}"), base), Runner(base, Logged(str(log)), ONE_CPU, SLOTS))
    return Searched.read(log)


def compare(folder: Path, seeds: range) -> dict[str, float | None]:
    """Compare the epochs that ASHA with TPE needs to match random search's best with those of random search."""
    shares: list[float] = []
    figures: dict[str, float | None] = {}
    spent, until_best = 0, 0
    for seed in seeds:
        random_search = searched(folder, seed, "random", "none")
        ours = searched(folder, seed, "tpe", "asha")
        epochs = ours.epochs_to(random_search.best)
        share = None if epochs is None else epochs / random_search.num_epochs
        print(
            f"seed {seed}: random search {random_search.best:6.1f} SumR in {random_search.num_epochs} epochs; "
            f"ASHA with TPE as good after {epochs}, at the end {ours.best:6.1f} in {ours.num_epochs}"
        )
        figures[f"seed_{seed}_share_of_epochs"] = share
        shares.append(float("inf") if share is None else share)
        spent += epochs or 0
        until_best += random_search.epochs_to(random_search.best) or 0
    reached_all = all(share < float("inf") for share in shares)
    return figures | {
        "seeds_that_reached_random_best": sum(share < float("inf") for share in shares),
        "median_share_of_epochs": statistics.median(shares) if reached_all else None,
        "largest_share_of_epochs": max(shares) if reached_all else None,
        # Stricter: assume that random search could stop at its best trial.
        "share_of_epochs_to_random_best": spent / until_best if reached_all else None,
    }


def overhead(folder: Path) -> dict[str, float]:
    """Measure the overhead per trial in seconds, including the start of workers."""
    tune = {"num_trials": OVERHEAD_TRIALS, "scheduler": "none", "space": SPACE}
    base = resolve({"train": {"num_epochs": OVERHEAD_EPOCHS}, "tune": tune})
    begun = time.monotonic()
    search(Study.plan(open_store(folder / "overhead"), base), Runner(base, LearningCurve(EPOCH_S), ONE_CPU, SLOTS))
    seconds = (time.monotonic() - begun) * SLOTS / OVERHEAD_TRIALS
    return {"overhead_s_per_trial": seconds - OVERHEAD_EPOCHS * EPOCH_S}


def main() -> None:
    """Print the figures, then the same as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of searches of each kind")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, connect():
        figures = overhead(Path(folder)) | compare(Path(folder), range(arguments.seeds))
    for name, value in figures.items():
        print(f"{name:34s} {'not reached' if value is None else format(value, '8.3f')}")
    print(json.dumps({name: None if value is None else round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
