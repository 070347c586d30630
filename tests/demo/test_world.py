"""The demo world, checked on decoded files: shapes against pictures that PIL draws, motions by where the pixels go."""

import re

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw

from prvr_ray.demo.shapes import COLORS, SHAPES
from prvr_ray.demo.world import MOTIONS, plan_world, queries_of, render, still

SIDE = 60
DIRECTION = {  # what a phrase says, as the sign of the change of (x, y, area)
    "moves to the left": (-1, 0, 0), "slides left": (-1, 0, 0), "moves to the right": (1, 0, 0),
    "slides right": (1, 0, 0), "rises": (0, -1, 0), "moves up": (0, -1, 0), "falls": (0, 1, 0),
    "moves down": (0, 1, 0), "grows": (0, 0, 1), "gets bigger": (0, 0, 1), "shrinks": (0, 0, -1),
    "gets smaller": (0, 0, -1),
}  # fmt: skip


def star(size):
    tips = [(-np.pi / 2 + k * np.pi / 5, 1 if k % 2 == 0 else 0.42) for k in range(10)]
    return [(size / 2 * (1 + r * np.cos(a)), size / 2 * (1 + r * np.sin(a))) for a, r in tips]


def template(shape):
    """A shape as PIL draws it, (SIDE, SIDE) bool."""
    image = Image.new("L", (SIDE, SIDE))
    pen, s = ImageDraw.Draw(image), SIDE - 1
    full, third = (0, 0, s, s), s / 3
    match shape:
        case "circle":
            pen.ellipse(full, 255)
        case "square":
            pen.rectangle(full, 255)
        case "diamond":
            pen.polygon([(s / 2, 0), (s, s / 2), (s / 2, s), (0, s / 2)], 255)
        case "bar":
            pen.rectangle((0, third, s, 2 * third), 255)
        case "triangle":
            pen.polygon([(0, s * 0.93), (s, s * 0.93), (s / 2, s * 0.07)], 255)
        case "star":
            pen.polygon(star(s), 255)
        case "cross":
            pen.rectangle((third, 0, 2 * third, s), 255)
            pen.rectangle((0, third, s, 2 * third), 255)
        case "ring":
            pen.ellipse(full, 255)
            pen.ellipse((s / 4, s / 4, 3 * s / 4, 3 * s / 4), 0)
        case "moon":
            pen.ellipse((0, 0, s, s), 255)
            pen.ellipse((0.4 * s, 0.1 * s, 1.15 * s, 0.9 * s), 0)
        case "heart":
            pen.ellipse((0, 0, s * 0.52, s * 0.55), 255)
            pen.ellipse((s * 0.48, 0, s, s * 0.55), 255)
            pen.polygon([(s * 0.03, s * 0.4), (s * 0.97, s * 0.4), (s / 2, s)], 255)
    return np.asarray(image) > 127


def fitted(mask):
    """A mask's bounding box, scaled to SIDE along its longer side and centred."""
    rows, columns = np.nonzero(mask)
    box = Image.fromarray(mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])
    scale = SIDE / max(box.size)
    box = box.resize((max(1, round(box.width * scale)), max(1, round(box.height * scale))), Image.Resampling.NEAREST)
    canvas = Image.new("1", (SIDE, SIDE))
    canvas.paste(box, ((SIDE - box.width) // 2, (SIDE - box.height) // 2))
    return np.asarray(canvas)


def most_alike(mask):
    """The name of the shape whose template overlaps the mask best."""
    candidates = {shape: fitted(template(shape)) for shape in SHAPES}
    overlap = {name: (mask & other).sum() / (mask | other).sum() for name, other in candidates.items()}
    return max(overlap, key=overlap.get)


def decode(path):
    """Times in seconds and frames (F, H, W, 3) of a file."""
    with av.open(str(path)) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return np.array([time for time, _ in frames]), np.stack([image for _, image in frames]).astype(np.int16)


def appeared(frames, times, start_s, end_s):
    """Masks of what an event adds: where its frames differ from the median over time, the background."""
    background = np.median(frames[::4], axis=0)
    inside = (times > start_s) & (times < end_s)
    return np.abs(frames[inside] - background).max(-1) > 40


def seen_color(frame, mask):
    """The color whose hue and lightness the masked pixels have."""
    pixel = np.median(frame[mask], axis=0)
    return min(COLORS, key=lambda name: np.abs(pixel - 0.93 * np.array(COLORS[name])).sum())


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """Scripts and decoded frames of a few videos."""
    scripts = plan_world(5, {"train": 14})
    folder = str(tmp_path_factory.mktemp("world"))
    return [(script, *decode(render(script, folder))) for script in scripts]


def described(rendered):
    for script, times, frames in rendered:
        for moment in script.moments:
            words = re.fullmatch(r"an? (\w+) (\w+) (.*)", moment.caption).groups()
            yield *words, appeared(frames, times, moment.start_s, moment.end_s), frames, times, moment


def test_decoded_frames_show_the_described_shape_and_color_at_its_time(rendered):
    right_shape, right_color, seen = [], [], set()
    for color, shape, _, masks_FHW, frames, times, moment in described(rendered):
        middle = len(masks_FHW) // 2
        number = np.nonzero(times > moment.start_s)[0][0] + middle
        mask = masks_FHW[middle]
        if mask.sum() < 60:  # as dull as its background
            continue
        right_shape.append(most_alike(fitted(mask)) == shape)
        right_color.append(seen_color(frames[number], mask) == color)
        seen.add((color, shape))
    assert len(right_shape) > 30
    assert np.mean(right_shape) > 0.85
    assert np.mean(right_color) > 0.9


def test_decoded_frames_move_as_the_caption_says(rendered):
    right = []
    for _, _, phrase, masks_FHW, *_ in described(rendered):
        first, last = masks_FHW[1], masks_FHW[-2]
        if min(first.sum(), last.sum()) < 15:
            continue
        (y0, x0), (y1, x1) = (np.argwhere(mask).mean(0) for mask in (first, last))
        change = (x1 - x0) / 128, (y1 - y0) / 96, np.log(last.sum() / first.sum()) / 2
        strongest = int(np.argmax(np.abs(change)))
        right.append(np.sign(change[strongest]) == DIRECTION[phrase][strongest])
    assert len(right) > 25
    assert np.mean(right) > 0.9
    assert set(DIRECTION) == {phrase for motion in MOTIONS for phrase in motion.phrases}


def test_files_are_h264_of_the_planned_length_with_a_keyframe_every_two_seconds(tmp_path):
    (script,) = plan_world(1, {"val": 1})
    with av.open(str(render(script, str(tmp_path)))) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        keys = [float(packet.pts * stream.time_base) for packet in container.demux(stream) if packet.is_keyframe]
        assert float(stream.duration * stream.time_base) == pytest.approx(script.duration_s, abs=0.2)
    np.testing.assert_allclose(np.diff(keys), 2.0)


def test_rendering_again_leaves_the_file_and_a_broken_attempt_leaves_none(tmp_path, monkeypatch):
    (script,) = plan_world(1, {"val": 1})
    path = render(script, str(tmp_path))
    before = path.stat().st_mtime_ns
    assert render(script, str(tmp_path)) == path
    assert path.stat().st_mtime_ns == before
    path.unlink()
    monkeypatch.setattr("prvr_ray.demo.world.frames_of", lambda script: iter([np.zeros((96, 128, 3)), None]))
    with pytest.raises((ValueError, AttributeError, TypeError)):
        render(script, str(tmp_path))
    assert not list(tmp_path.rglob("*.mp4"))


def test_the_seed_decides_everything_and_splits_do_not_touch_each_other(tmp_path):
    one, again, other = plan_world(3, {"train": 4, "test": 3}), plan_world(3, {"test": 3}), plan_world(4, {"test": 3})
    assert one[4:] == again
    assert again != other
    paths = [
        render(script, str(tmp_path / name)) for name, scripts in (("a", one[4:]), ("b", again)) for script in scripts
    ]
    assert [path.read_bytes() for path in paths[:3]] == [path.read_bytes() for path in paths[3:]]


def test_queries_are_unique_within_a_split_and_their_moments_do_not_overlap():
    scripts = plan_world(0, {"train": 50, "val": 20, "test": 160})
    assert len({script.video_id for script in scripts}) == 230
    queries = queries_of(scripts)
    assert len({query["query_id"] for query in queries}) == len(queries) == 3 * 230
    said = [[*query["text"].split()[1:3], DIRECTION[query["text"].split(" ", 3)[3]]] for query in queries]
    test = [str(words) for words, query in zip(said, queries, strict=True) if query["split"] == "test"]
    assert len(set(test)) == len(test) == 480  # no description fits two videos of the test split
    for script in scripts:
        times = [time for event in script.events for time in (event.start_s, event.end_s)]
        assert times == sorted(times)
        assert times[-1] <= script.duration_s
    for query in queries:
        (moment,) = query["moments"]
        assert query["video_ids"] == [moment["video_id"]]
        assert query["video_ids"][0].startswith(query["split"])


def test_stills_look_unlike_the_videos_and_their_captions_are_true(rendered):
    rng = np.random.default_rng(2)
    pictures = [still(rng, 64) for _ in range(60)]
    borders = [np.median(picture.reshape(-1, 3), axis=0).mean() for picture, _ in pictures]
    assert np.mean(borders) > np.mean([np.median(frames) for _, _, frames in rendered]) + 30
    right = []
    for picture, caption in pictures:
        color, shape, place = re.fullmatch(r"an? (\w+) (\w+)(.*)", caption).groups()
        mask = np.abs(picture - np.median(picture.reshape(-1, 3), axis=0)).max(-1) > 60
        if mask.sum() < 40:
            continue
        y, x = np.argwhere(mask).mean(0) / 64
        true_place = {"left": x < 0.45, "right": x > 0.55, "top": y < 0.45, "bottom": y > 0.55}
        right.append(true_place.get(place.rpartition(" ")[2], True) and seen_color(picture, mask) == color)
        assert shape in SHAPES
    assert np.mean(right) > 0.85
