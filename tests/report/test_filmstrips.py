"""Filmstrips show the frames of the moment that was asked for."""

import base64
import io

import av
import numpy as np
import pytest
from PIL import Image
from support.rendering import read_number, render

from prvr_ray.report.figures import Span
from prvr_ray.report.filmstrips import Projector
from prvr_ray.video.errors import VideoError

COLOURS = ((220, 30, 30), (30, 200, 30), (40, 60, 220), (220, 220, 40))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Eight seconds, each colour for two of them."""
    path = tmp_path_factory.mktemp("strip") / "four colours #1.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for colour in np.repeat(COLOURS, 10, axis=0).astype(np.uint8):
            picture = np.broadcast_to(colour, (96, 128, 3)).copy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_moment_of_a_video_that_starts_behind_its_sound_is_where_a_player_shows_it(projector, tmp_path):
    """Numbered pictures from 5.5 s on: the one at 6.5 s is the tenth, 12 tiles in black and white."""
    path = render(tmp_path / "v.mp4", 80, times=[5_500 + 100 * n for n in range(80)], b_frames=0, sound_s=(0, 14))
    strip = projector.strip(str(path), 13.5, Span(6.4, 6.6), 1, (48, 64))
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(strip.partition(",")[2]))))
    assert read_number(picture.transpose(2, 0, 1)) in (9, 10)


@pytest.fixture(scope="module")
def projector():
    with Projector() as projector:
        yield projector


def cells(uri: str, num_frames: int) -> list[int]:
    """The number of the colour that each cell's middle shows."""
    assert uri.startswith("data:image/jpeg;base64,")
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), dtype=float)
    assert picture.shape == (54, 72 * num_frames, 3)  # 4:3, without the borders of a wider frame
    middles = picture[27, 36::72]
    return np.abs(middles[:, None] - np.array(COLOURS)).sum(-1).argmin(-1).tolist()


@pytest.mark.parametrize(
    ("start_s", "end_s", "expected"),
    [
        (0, 8, [0, 1, 2, 3]),
        (3, 5, [1, 1, 2, 2]),
        (6, 8, [3, 3, 3, 3]),
        (3.9, 4.1, [1, 1, 2, 2]),  # shorter than a frame lasts: the one that is shown then
    ],
)
def test_each_cell_shows_the_frame_of_its_time(projector, video, start_s, end_s, expected):
    strip = projector.strip(str(video), 8.0, Span(start_s, end_s), 4, (54, 96))
    assert cells(strip, 4) == expected


def test_a_moment_past_the_end_is_an_error_that_names_it(projector, video):
    with pytest.raises(VideoError, match=r"no frame between 20.0 s and 21.0 s"):
        projector.strip(str(video), 30.0, Span(20, 21), 4, (54, 96))


def test_a_damaged_or_absent_video_is_an_error_and_the_next_one_is_shown(projector, video, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(video.read_bytes()[:500])
    with pytest.raises(VideoError):
        projector.strip(str(broken), 8.0, Span(0, 8), 4, (54, 96))
    with pytest.raises((VideoError, OSError)):
        projector.strip(str(tmp_path / "absent.mp4"), 8.0, Span(0, 8), 4, (54, 96))
    assert cells(projector.strip(str(video), 8.0, Span(0, 8), 4, (54, 96)), 4) == [0, 1, 2, 3]
