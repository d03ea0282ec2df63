"""Settings of the whole suite: reproducible examples, and one thread per worker unless a test asks for more.

With a GPU every test runs twice, with the CPU's kernels and with CUDA's: see kernels_under_test.py.
"""

import os

import kernels_under_test
import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "repo", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repo")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--kernels", action="append", choices=kernels_under_test.ALL, help="default: what the machine has")


def pytest_generate_tests(metafunc):
    kernels = metafunc.config.getoption("kernels") or kernels_under_test.BY_DEFAULT
    file, test = metafunc.module.__name__, metafunc.function.__name__
    if tuple(kernels) != ("cpu",) and not {file, f"{file}.{test}"} & kernels_under_test.EXCEPT:
        metafunc.parametrize("_kernels", kernels, indirect=True)


@pytest.fixture(autouse=True)
def _kernels(request):
    with kernels_under_test.instead_of_the_cpus(getattr(request, "param", "cpu")):
        yield


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
