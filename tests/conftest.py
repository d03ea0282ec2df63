"""Settings of the whole suite: reproducible examples, and one thread per worker unless a test asks for more."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "repo", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repo")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
