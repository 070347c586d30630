"""Draws the figures of the documentation: `python docs/draw_figures.py` writes docs/figures/*.svg.

The figures follow the reader's colour scheme: colours here are stand-ins for the CSS variables of a small style sheet.
The schedules in the figure of the method are computed by `prvr_ray.student.schedules`; its frame scores are a sketch.
"""

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from prvr_ray.student.schedules import distillation_weight, soft_target_factor

FOLDER = Path(__file__).parent / "figures"
COLORS = {  # name -> light, dark
    "ink": ("#16181d", "#e8eaf0"),
    "soft": ("#5b6270", "#a3aab8"),
    "box": ("#eef1f5", "#232833"),
    "teacher": ("#6b7280", "#a3aab8"),
    "inheritance": ("#2563eb", "#7aa7ff"),
    "exploration": ("#c2410c", "#ff9d5c"),
    "fused": ("#047857", "#4ade9f"),
}
STAND_INS = {name: f"#0f{index:02x}f0" for index, name in enumerate(COLORS)}


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Create a figure with frameless axes in inches."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    return figure, axes


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, color: str = "ink") -> None:
    """Draw a rounded box with its lower left corner at (x, y); the first line of its text is bold."""
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, style, fc=STAND_INS["box"], ec=STAND_INS[color], linewidth=1.3)
    )
    title, _, rest = text.partition("\n")
    lift = 0.075 * (rest.count("\n") + 1) if rest else 0
    center, middle = x + width / 2, y + height / 2
    axes.text(center, middle + lift, title, ha="center", va="center", weight="bold", size=9, color=STAND_INS[color])
    axes.text(center, middle - 0.1, rest, ha="center", va="center", size=7.5, color=STAND_INS["ink"])


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "", color: str = "soft"
) -> None:
    """Draw an arrow with a note above its middle."""
    look = {"arrowstyle": "-|>", "color": STAND_INS[color], "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=look)
    middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.1
    axes.text(*middle, text, ha="center", va="bottom", size=7.5, color=STAND_INS[color])


def curve(figure: Figure, place: tuple[float, float, float, float], title: str) -> Axes:
    """Add small axes at (x, y, width, height) in inches."""
    width, height = figure.get_size_inches()
    x, y, wide, high = place
    axes = figure.add_axes((x / width, y / height, wide / width, high / height))
    axes.set_title(title, size=7.5, color=STAND_INS["ink"], loc="left")
    axes.tick_params(colors=STAND_INS["soft"], labelsize=6.5, length=2)
    axes.patch.set_alpha(0)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), edgecolor=STAND_INS["soft"])
    return axes


def frame_curves(axes: Axes) -> None:
    """Sketch what frame distillation compares: one query's similarity to every frame of its video."""
    frames = np.arange(24)
    rng = np.random.default_rng(3)
    teacher = 0.2 + 0.12 * np.exp(-(((frames - 14) / 3.0) ** 2)) + rng.normal(0, 0.015, len(frames))
    student = 0.2 + 0.10 * np.exp(-(((frames - 14.5) / 3.5) ** 2)) + rng.normal(0, 0.006, len(frames))
    axes.step(frames, teacher, "--", where="mid", color=STAND_INS["teacher"], linewidth=1.2)
    axes.step(frames, student, where="mid", color=STAND_INS["inheritance"], linewidth=1.4)
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel("frames of the video", size=6.5, color=STAND_INS["soft"], labelpad=2)


def schedules(axes: Axes, num_epochs: int = 120) -> None:
    """Plot the default decays over the epochs."""
    epochs = range(num_epochs)
    looks = {
        "distillation weight": ("-", [distillation_weight("exp", e, num_epochs) for e in epochs]),
        "alpha": ("--", [soft_target_factor("sigmoid", 0.8, 0.0, e, num_epochs) for e in epochs]),
        "beta": (":", [soft_target_factor("sigmoid", 0.8, 0.5, e, num_epochs) for e in epochs]),
    }
    for label, (dash, values) in looks.items():
        axes.plot(epochs, values, dash, color=STAND_INS["ink"], linewidth=1.2, label=label)
    axes.set(ylim=(0, 1.05), xticks=[0, 60, 120], yticks=[0, 0.5, 1])
    axes.set_xlabel("epoch", size=6.5, color=STAND_INS["soft"], labelpad=1)
    axes.legend(frameon=False, fontsize=6.5, labelcolor=STAND_INS["ink"], loc="upper right")


def line(axes: Axes, points: list[tuple[float, float]], color: str = "soft") -> None:
    """Draw a line through points; an arrow may continue from its end."""
    axes.plot(*zip(*points, strict=True), color=STAND_INS[color], linewidth=1.3, solid_capstyle="round")


def method() -> Figure:
    """Draw the method: a frozen teacher, two branches, the losses, and the score at search."""
    figure, axes = canvas(9.6, 4.75)
    box(axes, 0.15, 3.0, 1.4, 0.9, "Caption\n“a person opens\na fridge”")
    box(axes, 0.15, 1.6, 1.4, 0.9, "Untrimmed video\nframes f = 1 … F")
    box(axes, 2.25, 3.7, 1.95, 0.8, "Teacher: CLIP\nfrozen, one vector a frame", "teacher")
    box(axes, 2.25, 2.25, 1.95, 0.9, "Inheritance branch\nlearns the teacher's view\nof text and frames", "inheritance")
    box(axes, 2.25, 0.8, 1.95, 0.9, "Exploration branch\nsame form, own weights,\nlabels only", "exploration")
    line(axes, [(1.55, 3.45), (1.85, 3.45), (1.85, 2.05), (1.55, 2.05)])
    line(axes, [(1.85, 4.1), (1.85, 1.25)])
    for height in (4.1, 2.7, 1.25):
        arrow(axes, (1.85, height), (2.25, height))
    frame_curves(curve(figure, (4.85, 3.4, 1.75, 0.85), "frame distillation: KL of the two curves"))
    box(axes, 4.8, 2.3, 1.85, 0.8, "Soft-target NCE\nthe teacher's scores\nsoften the labels", "inheritance")
    box(axes, 4.8, 1.4, 1.85, 0.8, "Soft-target NCE\nits own scores\nsoften the labels", "exploration")
    box(axes, 4.8, 0.6, 1.85, 0.7, "Triplet loss\neach branch, hard negatives")
    arrow(axes, (4.2, 4.1), (4.8, 3.95), color="teacher")
    arrow(axes, (4.2, 3.0), (4.8, 3.5), color="inheritance")
    arrow(axes, (4.2, 2.7), (4.8, 2.7), color="inheritance")
    arrow(axes, (4.2, 1.45), (4.8, 1.75), color="exploration")
    arrow(axes, (4.2, 1.0), (4.8, 1.0), color="exploration")
    arrow(axes, (4.2, 2.4), (4.8, 1.15), color="inheritance")
    schedules(curve(figure, (7.35, 2.95, 2.05, 1.3), "dynamic: decays over training"))
    box(
        axes,
        7.15,
        1.0,
        2.3,
        1.15,
        "Score of a video\n0.7 · max over frames, inheritance\n+ 0.3 · max over frames, exploration\n ",
        "fused",
    )
    axes.text(8.3, 1.17, "the best frames say where the moment is", ha="center", size=7, color=STAND_INS["soft"])
    line(axes, [(3.22, 0.8), (3.22, 0.25), (8.3, 0.25)], "fused")
    arrow(axes, (8.3, 0.25), (8.3, 1.0), color="fused")
    axes.text(5.75, 0.3, "at search: both branches, no teacher", ha="center", size=7.5, color=STAND_INS["fused"])
    return figure


def architecture() -> Figure:
    """Draw the stages, the Ray library that runs each, and what each writes below ROOT."""
    figure, axes = canvas(9.6, 3.2)
    stages = [
        ("ingest", "decode on CPUs,\nencode on GPUs", "Ray Data", "features/"),
        ("train, tune", "distil the student,\nsearch its settings", "Ray Train, Ray Tune", "runs/, tune/"),
        ("index", "the student encodes\nevery video", "Ray Data", "index/"),
        ("score, evaluate", "exact top-k with\nmoments; recall", "Ray tasks", "scores/"),
        ("report", "one HTML page\nto look at", "no Ray", "reports/"),
    ]
    axes.text(0.2, 2.2, "prvr", weight="bold", size=11, va="center", color=STAND_INS["ink"])
    for number, (name, work, engine, output) in enumerate(stages):
        x = 1.0 + 1.74 * number
        color = "teacher" if engine == "no Ray" else "inheritance"
        box(axes, x, 1.7, 1.5, 1.0, f"{name}\n{work}", color)
        axes.text(x + 0.75, 2.8, engine, ha="center", va="bottom", size=8, color=STAND_INS[color])
        arrow(axes, (x + 0.5, 1.7), (x + 0.5, 0.98))
        axes.text(x + 0.5, 0.8, output, ha="center", va="center", size=8.5, family="monospace", color=STAND_INS["ink"])
        if number + 1 < len(stages):
            arrow(axes, (x + 1.1, 0.9), (x + 2.05, 1.7))
    axes.text(0.2, 0.8, "videos/\nqueries/", va="center", size=8.5, family="monospace", color=STAND_INS["ink"])
    arrow(axes, (0.75, 0.98), (1.2, 1.7))
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((0.1, 0.5), 9.4, 0.55, style, fc="none", ec=STAND_INS["soft"], linestyle="--"))
    note = "ROOT: a folder or s3://bucket/prefix. Shards are written whole, once; finished work is not repeated."
    axes.text(4.8, 0.25, note, ha="center", va="center", size=8, color=STAND_INS["soft"])
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write an SVG that follows the light or dark mode of the reader's system."""
    sink = io.StringIO()
    figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = sink.getvalue()
    for color, stand_in in STAND_INS.items():
        text = text.replace(stand_in, f"var(--{color})")
    light, dark = ("".join(f"--{name}: {pair[scheme]}; " for name, pair in COLORS.items()) for scheme in (0, 1))
    style = f"<style>:root {{ {light}}} @media (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}</style>"
    head, rest = text[text.index("<svg") :].split(">", 1)
    path.write_text(f"{head}>{style}{rest}", encoding="utf-8")


def main(folder: Path = FOLDER) -> None:
    """Draw all figures."""
    with mpl.rc_context({"svg.hashsalt": "prvr_ray", "font.family": "DejaVu Sans"}):
        save(method(), folder / "method.svg")
        save(architecture(), folder / "architecture.svg")


if __name__ == "__main__":
    main()
