"""Encoder inputs against open_clip's own evaluation transform, pixel by pixel."""

from fractions import Fraction

import av
import numpy as np
import open_clip
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import Normalize

from prvr_ray.video.errors import VideoError
from prvr_ray.video.frames import FrameConverter, FrameSpec

SIZES = [(64, 48), (48, 64), (33, 57), (31, 31), (1, 1), (7, 400), (401, 9), (30, 40), (640, 360)]  # width, height


def open_clip_pixels(picture: Image.Image, spec: FrameSpec) -> np.ndarray:
    config = PreprocessCfg(
        spec.image_size, interpolation=spec.interpolation, resize_mode=spec.resize_mode, fill_color=spec.fill_color
    )
    transform = image_transform_v2(config, is_train=False)
    transform.transforms = [step for step in transform.transforms if not isinstance(step, Normalize)]
    return (transform(picture).numpy() * 255).round().astype(np.uint8)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("image_size", [(30, 30), (30, 40), (41, 30)], ids=str)
def test_pixels_are_open_clip_s(size, resize_mode, interpolation, image_size):
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    spec = FrameSpec(image_size, resize_mode, interpolation, fill_color=7)
    ours = FrameConverter(None, 10**9).fit(Image.fromarray(pixels), spec)
    assert ours.dtype == np.uint8
    assert np.array_equal(ours, open_clip_pixels(Image.fromarray(pixels), spec))


def test_the_transform_of_a_registered_model_is_met():
    config = open_clip.get_pretrained_cfg("ViT-B-16-SigLIP", "webli")
    spec = FrameSpec((224, 224), config["resize_mode"], config["interpolation"])
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 256, (90, 160, 3), dtype=np.uint8))
    assert spec.resize_mode == "squash"
    assert np.array_equal(FrameConverter(None, 10**9).fit(picture, spec), open_clip_pixels(picture, spec))


@pytest.mark.parametrize(
    ("aspect", "expected"),
    [(None, (40, 30)), (Fraction(1), (40, 30)), (Fraction(2, 3), (27, 30)), (Fraction(16, 15), (43, 30))],
)
def test_pixels_are_made_square(aspect, expected):
    frame = av.VideoFrame.from_ndarray(np.zeros((30, 40, 3), np.uint8), format="rgb24")
    assert FrameConverter(aspect, 10**6).picture(frame).size == expected


def test_an_absurd_aspect_is_too_large():
    frame = av.VideoFrame.from_ndarray(np.zeros((30, 40, 3), np.uint8), format="rgb24")
    with pytest.raises(VideoError) as failure:
        FrameConverter(Fraction(10**6), 10**6).picture(frame)
    assert failure.value.error_class == "too_large"


@pytest.mark.parametrize("field", [{"resize_mode": "stretch"}, {"interpolation": "cubic"}])
def test_an_unknown_spec_names_the_valid_values(field):
    with pytest.raises(ValueError, match=r"use one of .*(squash|bicubic)"):
        FrameSpec((8, 8), **field)
