"""Videos as windows of a student's vectors."""

import numpy as np
import pytest
import torch

from prvr_ray.collection import VideoFeatures
from prvr_ray.index.student_encoder import WindowEncoder, Windowing
from prvr_ray.student.model import Student


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused_by_the_videos_name(value):
    torch.manual_seed(0)
    frames = np.ones((3, 4), np.float16)
    frames[1, 2] = value
    video = VideoFeatures("kitchen/a.mp4", "e", 1.0, 3.0, np.arange(3.0), frames, frames)
    encoder = WindowEncoder(Student(4, 4, hidden_dim=8), Windowing("whole", 8, 0), 64)
    with pytest.raises(ValueError, match=r"'kitchen/a\.mp4' are not finite"):
        list(encoder.encode([video]))
