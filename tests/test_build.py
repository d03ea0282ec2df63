"""What the build knows of itself, and what setup.py decides."""

import runpy
import sys
from pathlib import Path

import pytest
import setuptools
import torch
import torch.utils.cpp_extension

import torch_convarith

ROOT = Path(__file__).parent.parent


def test_build_info():
    info = torch_convarith.build_info()
    assert info["openmp"], "without OpenMP, at::parallel_for runs on one thread"
    assert info["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert info["cpp"] >= 201703
    assert isinstance(info["cuda"], bool)


@pytest.fixture
def decide(monkeypatch):
    """setup.py's with_cuda(), for a given torch, toolkit and FORCE_CUDA."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    names = runpy.run_path(str(ROOT / "setup.py"))

    def with_cuda(cuda, home, force=None, sources=True):
        function = names["with_cuda"]
        monkeypatch.setattr(torch.version, "cuda", cuda)
        function.__globals__["CUDA_HOME"] = home
        if not sources:
            function.__globals__["CSRC"] = ROOT / "nowhere"
        monkeypatch.delenv("FORCE_CUDA", raising=False)
        if force is not None:
            monkeypatch.setenv("FORCE_CUDA", force)
        return function()

    return with_cuda


def test_cuda_is_decided_by_torch_and_toolkit(decide):
    has_sources = any((ROOT / "csrc" / "cuda").glob("*.cu"))
    assert not decide(None, None)
    assert not decide(None, "/usr/local/cuda")
    assert not decide("13.0", None)
    assert decide("13.0", "/usr/local/cuda") == has_sources
    assert not decide("13.0", "/usr/local/cuda", force="0")
    assert decide("13.0", "/usr/local/cuda", force="1") == has_sources
    with pytest.raises(RuntimeError, match="FORCE_CUDA=1, but torch has CUDA None"):
        decide(None, "/usr/local/cuda", force="1")


def test_no_build_for_this_machine_alone():
    for name in ("setup.py", "Makefile"):
        assert "march" not in (ROOT / name).read_text().replace("No -march", "")


def test_every_source_is_in_the_sdist():
    manifest = (ROOT / "MANIFEST.in").read_text()
    suffixes = {file.suffix for file in (ROOT / "csrc").rglob("*") if file.is_file()}
    assert suffixes
    assert all(f"*{suffix}" in manifest for suffix in suffixes)


def test_the_missing_extension_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_convarith._C", None)
    for name in [n for n in sys.modules if n.startswith("torch_convarith")]:
        if name != "torch_convarith._C":
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"C\+\+ extension could not be loaded .*pip install --no-build-isolation"):
        __import__("torch_convarith")
