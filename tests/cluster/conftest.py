"""The clusters of these tests count GPUs that do not exist; their workers compute on the CPU."""

import pytest


@pytest.fixture(scope="package", autouse=True)
def fake_gpus():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRVR_FAKE_GPUS", "1")
        yield
