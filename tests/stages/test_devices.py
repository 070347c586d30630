"""Workers that were given no GPU stay off those that torch sees on their node."""

import re
from pathlib import Path

import pytest
import torch
from small_clip import write_small_clip

import prvr_ray.stages
from prvr_ray.config import IngestSettings
from prvr_ray.encoders import describe_encoder
from prvr_ray.stages import encoding
from prvr_ray.stages.devices import device_of
from prvr_ray.stages.ingest_pipeline import plan_pipeline


@pytest.mark.parametrize(
    ("num_gpus", "has_gpu", "expected"),
    [(0.0, True, "cpu"), (0.25, True, "cuda"), (1.0, True, "cuda"), (1.0, False, "cpu"), (0.0, False, "cpu")],
)
def test_a_worker_computes_on_a_gpu_only_if_it_was_given_one(num_gpus, has_gpu, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert device_of(num_gpus) == expected


@pytest.mark.parametrize(("settings", "expected"), [({}, "cpu"), ({"encoder_gpus": 0.5}, "cuda")])
def test_encoders_of_ingest_go_where_their_settings_say(settings, expected, monkeypatch, local_ray, tmp_path):
    name, _ = write_small_clip(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(encoding, "load_encoder", lambda name, device, micro_batch: device)
    encode = plan_pipeline(IngestSettings(encoder=name, **settings), [describe_encoder(name)]).encode
    num_threads = torch.get_num_threads()
    assert encode.load() == [expected]
    torch.set_num_threads(num_threads)


def test_no_stage_takes_the_gpu_that_torch_sees():
    """Beside `device_of`, a stage may only count GPUs; `load_encoder` without a device would take one."""
    for path in Path(prvr_ray.stages.__file__).parent.glob("*.py"):
        text = path.read_text()
        assert path.name == "devices.py" or "cuda.is_available" not in text, path
        assert not re.search(r"load_encoder\([^,)]*(\)|, \w+=)", text), path
