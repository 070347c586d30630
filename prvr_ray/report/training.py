"""The section about a run's training: losses, recall on the validation split, schedules, speed."""

import math
from collections.abc import Sequence

from prvr_ray.report.canvas import LOOKS
from prvr_ray.report.figures import Chart, Line, draw_lines
from prvr_ray.report.page import Facts, Figure, Figures, Section, Text

Metrics = dict[str, float]

ANCHOR, TITLE = "training", "Training"


def training_section(epochs: Sequence[Metrics]) -> Section:
    """Build the section.

    Args:
        epochs: metrics of each epoch, named as in `prvr_ray.student.training.epoch_metrics`, and `is_best`.
    """
    if not epochs:
        return Section(ANCHOR, TITLE, missing="The run has no metrics yet: `prvr train` writes them after each epoch.")
    best = best_epoch(epochs)
    figures = [_recall_figure(epochs, best), _loss_figure(epochs, best), _schedule_figure(epochs, best)]
    return Section(ANCHOR, TITLE, [Text(_summary(epochs, best)), Figures(figures), Facts(_speed(epochs))])


def best_epoch(epochs: Sequence[Metrics]) -> Metrics:
    """Return the epoch whose checkpoint is kept: the last one that was better than all before it."""
    return next(metrics for metrics in reversed(epochs) if metrics["is_best"])


def _summary(epochs: Sequence[Metrics], best: Metrics) -> str:
    gap = best["fused/sumr"] - best["teacher/sumr"]
    side = "above" if gap >= 0 else "below"
    return (
        f"Of {len(epochs)} epochs, epoch {best['epoch']:.0f} was best on the validation split: fused SumR "
        f"{best['fused/sumr']:.1f}, {abs(gap):.1f} {side} the teacher's {best['teacher/sumr']:.1f}."
    )


def _recall_figure(epochs: Sequence[Metrics], best: Metrics) -> Figure:
    rows = [row for row in ("inheritance", "exploration", "fused") if f"{row}/sumr" in best]
    lines = [Line(row, _column(epochs, "epoch"), _column(epochs, f"{row}/sumr"), LOOKS[row]) for row in rows]
    chart = Chart("epoch", "SumR", mark=_mark(best), levels={"teacher": best["teacher/sumr"]})
    caption = "SumR on the validation split. The teacher's line is its zero-shot recall, without training."
    return Figure(
        draw_lines(lines, chart), caption, f"Line chart of SumR over the epochs; best {best['fused/sumr']:.1f}"
    )


def _loss_figure(epochs: Sequence[Metrics], best: Metrics) -> Figure:
    parts = sorted({name for metrics in epochs for name in metrics if name.startswith("loss/")})
    lines = [
        Line(part.removeprefix("loss/").replace("_", " "), _column(epochs, "epoch"), _column(epochs, part))
        for part in parts
    ]
    chart = Chart("epoch", "loss, weighted", mark=_mark(best), log_y=True)
    caption = "Weighted parts of the training loss, mean over the steps of an epoch; logarithmic scale."
    return Figure(draw_lines(lines, chart), caption, f"Line chart of {len(parts)} loss parts over the epochs")


def _schedule_figure(epochs: Sequence[Metrics], best: Metrics) -> Figure:
    names = {"schedule/distillation": "distillation", "schedule/alpha": "alpha", "schedule/beta": "beta"}
    lines = [Line(label, _column(epochs, "epoch"), _column(epochs, name)) for name, label in names.items()]
    caption = (
        "The decays: distillation weight, fraction of hard labels (alpha), hard fraction of a softened label (beta)."
    )
    chart = Chart("epoch", "factor", mark=_mark(best))
    return Figure(draw_lines(lines, chart), caption, "Line chart of the three schedules over the epochs")


def _speed(epochs: Sequence[Metrics]) -> list[tuple[str, str]]:
    def mean(name: str) -> float:
        return sum(_column(epochs, name)) / len(epochs)

    return [
        ("videos per second, mean over epochs", f"{mean('speed/videos_per_s'):,.0f}"),
        ("time per step, mean over epochs", f"{1000 * mean('speed/step_s'):.0f} ms"),
        ("fraction of it spent waiting for data", f"{100 * mean('speed/data_wait_share'):.1f} %"),
    ]


def _mark(best: Metrics) -> tuple[float, str]:
    return best["epoch"], "best epoch"


def _column(epochs: Sequence[Metrics], name: str) -> list[float]:
    return [metrics.get(name, math.nan) for metrics in epochs]
