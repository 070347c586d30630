"""The loop: it learns, resumes bit for bit, and several workers do what one does."""

import io
import math
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from support.student_splits import QUIET, STUDENT, TRAIN, make_split

from prvr_ray.config import TrainSettings
from prvr_ray.student.batching import BatchReader, draw_batches
from prvr_ray.student.cache import FeatureCache, read_cache
from prvr_ray.student.checkpoints import Progress, TrainingState, student_from_bytes, student_to_bytes
from prvr_ray.student.exchange import Exchange
from prvr_ray.student.model import SelfAttention
from prvr_ray.student.objective import EpochWeights, batch_losses
from prvr_ray.student.training import create_state, fit, is_untrained, train_step


@pytest.fixture
def splits(tmp_path: Path) -> tuple[FeatureCache, FeatureCache]:
    """Eleven training videos, batches of four with a ragged last one; six for validation."""
    return make_split(tmp_path / "train", 11), make_split(tmp_path / "val", 6, seed=1)


class RunKilledError(Exception):
    """A run that is killed."""


def _kill_after(num_updates: int, kept: list[bytes]) -> Callable[[TrainingState], None]:
    def on_step(state: TrainingState) -> None:
        if state.progress.num_updates == num_updates:
            kept.append(state.to_bytes())
            raise RunKilledError

    return on_step


@pytest.mark.parametrize("branches", [["inheritance", "exploration"], ["inheritance"], ["exploration"]])
def test_training_learns(tmp_path, branches):
    train, validation = make_split(tmp_path / "train", 40), make_split(tmp_path / "val", 20, seed=1)
    student = STUDENT.model_copy(update={"branches": branches})
    epochs = []
    settings = QUIET.model_copy(update={"num_epochs": 15, "videos_per_batch": 8})
    state = fit(train, validation, student, settings, on_epoch=lambda metrics, state: epochs.append(metrics))
    assert epochs[-1]["loss/total"] < 0.8 * epochs[0]["loss/total"]
    assert state.progress.best_sumr > 215  # chance among 20 videos: 5 + 25 + 50 + 100
    for branch in branches:
        assert f"{branch}/sumr" in epochs[-1]


def test_every_epoch_reports_losses_schedules_recalls_and_speed(splits):
    epochs = []
    fit(*splits, STUDENT, TRAIN, on_epoch=lambda metrics, state: epochs.append(metrics))
    assert [metrics["epoch"] for metrics in epochs] == [0, 1, 2]
    parts = ["inheritance_triplet", "inheritance_nce", "exploration_triplet", "exploration_nce", "distillation"]
    for metrics in epochs:
        assert all(math.isfinite(value) for value in metrics.values())
        assert metrics["loss/total"] == pytest.approx(sum(metrics[f"loss/{part}"] for part in parts))
        assert metrics["schedule/distillation"] == pytest.approx(0.95 ** metrics["epoch"])
        assert {"schedule/alpha", "schedule/beta", "lr", "speed/videos_per_s", "speed/data_wait_share"} <= set(metrics)
        rows = ("teacher", "inheritance", "exploration", "fused")
        assert all(f"{row}/{name}" in metrics for row in rows for name in ("r1", "r5", "r10", "r100", "sumr", "medr"))


@pytest.mark.parametrize("killed_after", [1, 2, 3, 7])
def test_a_resumed_run_ends_bit_equal_to_an_uninterrupted_one_with_dropout(splits, killed_after):
    whole_epochs, resumed_epochs = [], []
    whole = fit(*splits, STUDENT, TRAIN, on_epoch=lambda metrics, state: whole_epochs.append(metrics))

    kept: list[bytes] = []
    if killed_after == 3:  # an epoch's end
        with pytest.raises(RunKilledError):
            fit(*splits, STUDENT, TRAIN, on_epoch=lambda metrics, state: _kill_after(3, kept)(state))
    else:
        with pytest.raises(RunKilledError):
            fit(*splits, STUDENT, TRAIN, on_step=_kill_after(killed_after, kept))
    torch.manual_seed(999)  # a new process
    resumed = fit(
        *splits, STUDENT, TRAIN, resume=kept[0], on_epoch=lambda metrics, state: resumed_epochs.append(metrics)
    )

    assert resumed.to_bytes() == whole.to_bytes()
    timeless = [{k: v for k, v in metrics.items() if not k.startswith("speed/")} for metrics in whole_epochs]
    assert [{k: v for k, v in m.items() if not k.startswith("speed/")} for m in resumed_epochs] == timeless[
        killed_after // 3 :
    ]


def test_a_finished_run_stays_finished(splits):
    done = fit(*splits, STUDENT, TRAIN)
    again = fit(*splits, STUDENT, TRAIN, resume=done.to_bytes(), on_step=lambda state: pytest.fail("a step"))
    assert again.to_bytes() == done.to_bytes()


def test_training_stops_after_patience_epochs_without_a_better_sumr(splits):
    frozen = TRAIN.model_copy(update={"lr": 1e-12, "num_epochs": 50, "patience": 2})
    state = fit(*splits, STUDENT, frozen)
    assert (state.progress.improved_epoch, state.progress.epoch) == (0, 3)
    assert state.progress.best_epoch == 2  # of equal epochs the latest: the first step has learning rate 0


def test_a_checkpoint_of_an_earlier_version_goes_on_with_its_own_best_epoch():
    progress = Progress(**{"epoch": 4, "step": 0, "num_updates": 9, "sums": {}, "best_sumr": 50.0, "best_epoch": 1})
    assert progress.epochs_without_gain == 2
    assert progress.end_epoch(50.0)
    assert (progress.best_epoch, progress.epochs_without_gain) == (4, 3)
    assert progress.end_epoch(51.0)
    assert (progress.best_epoch, progress.epochs_without_gain) == (5, 0)
    assert not progress.end_epoch(50.0)


def test_a_student_that_learnt_nothing_is_known(splits):
    still = TRAIN.model_copy(update={"num_epochs": 1, "videos_per_batch": 11})  # one step, with learning rate 0
    assert is_untrained(fit(*splits, STUDENT, still).model, still)
    assert not is_untrained(fit(*splits, STUDENT, still.model_copy(update={"num_epochs": 2})).model, still)


def test_a_student_below_its_teacher_is_warned_of(splits, caplog):
    train, validation = splits
    fit(train, validation, STUDENT, TRAIN.model_copy(update={"lr": 1e-12, "num_epochs": 1}))
    assert "below its teacher's" in caplog.text


def test_a_loss_that_is_not_finite_stops_before_the_update_and_is_named(splits):
    train, _ = splits
    state = create_state(train, STUDENT, QUIET, 3, "cpu")
    with torch.no_grad():
        state.model.branches["exploration"].video_output.bias[0] = torch.nan
    before = {name: p.clone() for name, p in state.model.named_parameters()}
    batch = BatchReader(train).read(np.arange(4))
    with pytest.raises(FloatingPointError, match="exploration_triplet is nan at epoch 0, step 0"):
        train_step(state, batch, QUIET, EpochWeights.of(QUIET, 0), Exchange())
    assert all(torch.equal(p, before[name]) or p.isnan().any() for name, p in state.model.named_parameters())
    assert not state.optimizer.state


def test_each_worker_draws_its_own_dropout_and_all_the_same_negatives(splits, monkeypatch):
    train, _ = splits
    state, drawn = create_state(train, STUDENT, TRAIN, 1, "cpu"), []

    def draw(model, batch, settings, weights, exchange, negatives):
        drawn.append((exchange.rank, torch.rand(1).item(), torch.rand(1, generator=negatives).item()))
        raise StopIteration

    monkeypatch.setattr("prvr_ray.student.training.batch_losses", draw)
    for rank in (0, 1, 0):
        exchange = Exchange()
        exchange.rank = rank
        with pytest.raises(StopIteration):
            train_step(state, None, TRAIN, None, exchange)
    (_, dropout, negatives), (_, other_dropout, other_negatives), again = drawn
    assert dropout != other_dropout
    assert negatives == other_negatives
    assert again == drawn[0]


def test_bf16_autocast_stays_close_to_float32(splits):
    train, _ = splits
    losses = {}
    for precision in ("float32", "bf16"):
        settings = QUIET.model_copy(update={"precision": precision})
        state = create_state(train, STUDENT, settings, 3, "cpu")
        batch = BatchReader(train).read(np.arange(4))
        losses[precision] = train_step(state, batch, settings, EpochWeights.of(settings, 0), Exchange())["total"]
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bf16"] != losses["float32"]


def test_a_student_comes_back_from_its_bytes_alone(splits):
    state = fit(*splits, STUDENT, TRAIN.model_copy(update={"num_epochs": 1}))
    tokens, mask = torch.randn(2, 3, 10), torch.ones(2, 3)
    expected = state.model.eval().encode_queries(tokens, mask)
    for data in (student_to_bytes(state.model), state.to_bytes()):
        for name, vectors in student_from_bytes(data).encode_queries(tokens, mask).items():
            assert torch.equal(vectors, expected[name])


def test_damaged_and_foreign_checkpoints_are_refused(splits):
    state = create_state(splits[0], STUDENT, TRAIN, 3, "cpu")
    data = state.to_bytes()
    with pytest.raises(ValueError, match="not a checkpoint"):
        state.load_bytes(data[: len(data) // 2])
    other = create_state(splits[0], STUDENT.model_copy(update={"hidden_dim": 32}), TRAIN, 3, "cpu")
    with pytest.raises(ValueError, match="another student"):
        other.load_bytes(data)


def test_a_member_of_a_population_goes_on_from_another_s_weights_with_its_own_dropout_and_rate(splits):
    theirs = fit(*splits, STUDENT, TRAIN.model_copy(update={"num_epochs": 1}))
    mine = TRAIN.model_copy(update={"dropout": 0.4, "input_dropout": 0.0, "lr": 7e-3})
    state = create_state(splits[0], STUDENT, mine, 3, "cpu")
    state.load_bytes(theirs.to_bytes())
    assert all(torch.equal(a, b) for a, b in zip(state.model.parameters(), theirs.model.parameters(), strict=True))
    assert {module.dropout for module in state.model.modules() if isinstance(module, SelfAttention)} == {0.4}
    assert {module.p for module in state.model.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}
    assert {group["lr"] for group in state.optimizer.param_groups} == {7e-3}


def test_a_pickle_in_place_of_a_checkpoint_is_refused_and_not_run(splits, tmp_path):
    """The published checkpoints are pickles, which run code when they are loaded."""
    mark = tmp_path / "ran"
    buffer = io.BytesIO()
    torch.save(_Touches(mark), buffer)
    state = create_state(splits[0], STUDENT, TRAIN, 3, "cpu")
    for data in (pickle.dumps(_Touches(mark)), buffer.getvalue()):
        for load in (state.load_bytes, student_from_bytes):
            with pytest.raises(ValueError, match="not a checkpoint"):
                load(data)
    assert not mark.exists()


class _Touches:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_hard_labels_go_to_caption_rich_videos_or_by_a_setting_to_random_ones(splits):
    losses = {}
    for rows in ("batch_order", "random"):
        settings = QUIET.model_copy(update={"soft_target_rows": rows, "num_epochs": 1, "lr": 1e-12, "alpha": 0.5})
        fit(*splits, STUDENT, settings, on_epoch=lambda metrics, state, rows=rows: losses.update({rows: metrics}))
    for name in ("inheritance_nce", "exploration_nce"):
        assert losses["batch_order"][f"loss/{name}"] != pytest.approx(losses["random"][f"loss/{name}"], rel=1e-4)
    assert losses["batch_order"]["loss/distillation"] == pytest.approx(losses["random"]["loss/distillation"], rel=1e-4)


def _steps(train: FeatureCache, settings: TrainSettings, count: int) -> tuple[dict[str, torch.Tensor], list[float]]:
    """`count` steps from the start, across epochs; all weights, and each step's loss."""
    exchange = Exchange()
    state = create_state(train, STUDENT, settings, 3, "cpu")
    reader = BatchReader(
        train, rank=exchange.rank, world_size=exchange.world_size, dtype=next(state.model.parameters()).dtype
    )
    batches = [b for e in range(count) for b in draw_batches(train.captioned_videos(), 4, settings.seed, e)]
    losses = [
        train_step(state, reader.read(videos), settings, EpochWeights.of(settings, i // 3), exchange)["total"]
        for i, videos in enumerate(batches[:count])
    ]
    return dict(state.model.state_dict()), losses


def _gradient(train: FeatureCache, settings: TrainSettings, videos: np.ndarray) -> tuple[torch.Tensor, float]:
    """The gradient of one batch, as one vector, and its loss."""
    exchange = Exchange()
    state = create_state(train, STUDENT, settings, 3, "cpu")
    batch = BatchReader(train, rank=exchange.rank, world_size=exchange.world_size).read(videos)
    generator = torch.Generator().manual_seed(0)
    loss, parts = batch_losses(state.model, batch, settings, EpochWeights.of(settings, 0), exchange, generator)
    loss.backward()
    exchange.sum_gradients(state.model)
    total = torch.stack(list(parts.values())).sum()
    return torch.cat([p.grad.flatten() for p in state.model.parameters()]), total.item()


def _worker(rank: int, folder: Path) -> None:
    """Be one of three workers, then one of two."""
    torch.set_num_threads(1)
    train, validation = read_cache(folder / "train"), read_cache(folder / "val")
    for world_size in (3, 2):
        if rank < world_size:
            rendezvous = f"file://{folder}/rendezvous-{world_size}"
            dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
            torch.save(_results(train, validation), folder / f"{world_size}-workers-{rank}.pt")
            dist.destroy_process_group()


def _results(train: FeatureCache, validation: FeatureCache) -> dict[str, Any]:
    return {
        "gradients": [_gradient(train, QUIET, np.arange(count)) for count in (4, 2, 1)],
        "steps": _steps(train, QUIET.model_copy(update={"precision": "float64"}), 20),
        "metrics": _validated(train, validation),
    }


def _validated(train: FeatureCache, validation: FeatureCache) -> dict[str, float]:
    """What the last of three epochs reports of the validation split."""
    epochs: list[dict[str, float]] = []
    fit(train, validation, STUDENT, QUIET, on_epoch=lambda metrics, state: epochs.append(metrics))
    return {name: value for name, value in epochs[-1].items() if name.endswith(("sumr", "r1", "medr", "map"))}


@pytest.fixture(scope="module")
def workers_folder(tmp_path_factory) -> Path:
    """What three and two workers computed, and the splits that they did it on."""
    folder = tmp_path_factory.mktemp("workers")
    make_split(folder / "train", 11)
    make_split(folder / "val", 6, seed=1)
    multiprocessing.set_forkserver_preload(["prvr_ray.student.training"])  # torch is imported once, not three times
    mp.start_processes(_worker, (folder,), nprocs=3, start_method="forkserver")
    return folder


@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_give_the_loss_and_gradient_of_one_process(workers_folder, world_size):
    """Batches of 4, 2 and 1 videos: with three workers, some have no video; 11 videos leave a ragged last batch."""
    alone = _results(read_cache(workers_folder / "train"), read_cache(workers_folder / "val"))
    for rank in range(world_size):
        worker = torch.load(workers_folder / f"{world_size}-workers-{rank}.pt", weights_only=True)
        for (gradient, loss), (expected_gradient, expected_loss) in zip(
            worker["gradients"], alone["gradients"], strict=True
        ):
            assert loss == pytest.approx(expected_loss, rel=1e-5)
            tolerance = 1e-5 * expected_gradient.abs().max().item()
            torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=tolerance)
        (weights, losses), (expected_weights, expected_losses) = worker["steps"], alone["steps"]
        assert losses == pytest.approx(expected_losses, rel=1e-8)
        for name, expected in expected_weights.items():
            torch.testing.assert_close(weights[name], expected, rtol=1e-8, atol=1e-8)
        assert worker["metrics"] == pytest.approx(alone["metrics"])
        assert len(worker["metrics"]) == 4 * 4
