"""Builds csrc/cuda for the CPU and loads it: see emulation.h.

A room is a file of glue and what begins like it: ``conv`` is csrc/cuda/conv.cpp, conv_*.cpp and conv*.cu. Its operators
register under torch.ops.torch_convarith_emulated with the schemas of torch.ops.torch_convarith, and take CPU
tensors. The objects stay in build/, where ninja compiles only what changed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
BUILD = HERE.parent.parent / "build" / "cuda_emulation"
# Which room an operator is in.
ROOMS = {
    operator: room
    for room, operators in {
        "conv": "conv conv_transpose conv_weight",
        "lrn": "lrn lrn_backward",
        "matrix": "csr csr_weight conv_csr conv_transpose_csr conv_weight_csr",
        "pooling": "max_pool max_pool_with_indices max_pool_with_taps pool_select pool_scatter tap_select tap_scatter "
        "pool_ties pool_ties_transpose avg_pool avg_pool_transpose lp_pool lp_pool_backward",
        "unfold": "unfold fold",
        "zero_insert": "zero_insert zero_remove",
    }.items()
    for operator in operators.split()
}
ORDERS = {"forward": 0, "reversed": 1, "random": 2}  # emulation.h's

# Accesses that a GPU refuses, and what C++ leaves undefined, trap.
SANITIZE = "-fsanitize=alignment,null,bounds,shift,integer-divide-by-zero,signed-integer-overflow"
COMMON = (
    "-std=c++17 -O1 -g0 -fPIC -Wall -Wextra -Werror -Wno-unused-parameter -Wno-unknown-pragmas "
    f"-DCONVARITH_EMULATE -D_GLIBCXX_USE_CXX11_ABI=1 -I{HERE}"
)


def rooms() -> list[str]:
    """The names of all."""
    stems = {file.stem for file in (CSRC / "cuda").glob("*.cpp")}
    return sorted(stem for stem in stems if not any(stem.startswith(f"{other}_") for other in stems))


def _ninja_file() -> str:
    torch_lib = Path(torch.__file__).parent / "lib"
    includes = " ".join(f"-isystem {path}" for path in include_paths())
    lines = [
        f"kernel = {COMMON} {SANITIZE} -fsanitize-undefined-trap-on-error -x c++",
        f"glue = {COMMON} {includes}",
        "rule compile\n  command = g++ $flags -MD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        "rule link\n  command = g++ -shared -o $out $in $libraries",
    ]

    def compiled(source: Path) -> str:
        target = f"{source.parent.name}.{source.name}.o"
        lines.append(f"build {target}: compile {source}\n  flags = ${'glue' if source.suffix == '.cpp' else 'kernel'}")
        return target

    lines.append(f"build emulation.o: compile {HERE / 'emulation.cpp'}\n  flags = {COMMON}")
    lines.append("build libemulation.so: link emulation.o")
    own = "-L. -lemulation -Wl,-rpath,'$$ORIGIN'"
    torchs = f"-L{torch_lib} -ltorch_cpu -lc10 -Wl,-rpath,{torch_lib}"
    tests = compiled(HERE / "self_test.cu")
    lines.append(f"build self_test.so: link {tests} | libemulation.so\n  libraries = {own}")
    lines.append(f"build guard.so: link {compiled(HERE / 'guard.cpp')} | libemulation.so\n  libraries = {own} {torchs}")
    for room in rooms():
        sources = [f for kind in ("cpp", "cu") for f in (CSRC / "cuda").glob(f"{room}*.{kind}")]
        objects = " ".join(map(compiled, sorted(f for f in sources if f.stem == room or f.stem.startswith(f"{room}_"))))
        lines.append(f"build {room}.so: link {objects} | libemulation.so\n  libraries = {own} {torchs}")
    return "\n".join(lines) + "\n"


def _ninja() -> str | None:
    found = shutil.which("ninja")
    if found is None:
        with contextlib.suppress(ImportError):
            import ninja

            found = str(Path(ninja.BIN_DIR) / "ninja")
    return found


@functools.cache
def build(target: str) -> Path:
    """The library, up to date; pytest's workers wait for each other."""
    ninja = _ninja()
    if platform.machine() != "x86_64" or shutil.which("g++") is None or ninja is None:
        pytest.skip("the emulation needs x86-64, g++ and ninja")
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = BUILD / "build.ninja"
        text = _ninja_file()
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
        run = subprocess.run([ninja, "-C", str(BUILD), target], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return BUILD / target


@functools.cache
def library(target: str = "libemulation.so") -> ctypes.CDLL:
    """A library's C functions."""
    return ctypes.CDLL(str(build(target)))


@functools.cache
def _define_schemas() -> torch.library.Library:
    import torch_convarith  # noqa: F401  defines the schemas

    emulated = torch.library.Library("torch_convarith_emulated", "DEF")
    for name in torch._C._dispatch_get_all_op_names():
        space, _, operator = name.partition("::")
        if space == "torch_convarith":
            schema = getattr(torch.ops.torch_convarith, operator).default._schema
            emulated.define(str(schema).removeprefix("torch_convarith::"))
    return emulated


@functools.cache
def operators(room: str):
    """torch.ops.torch_convarith_emulated, with the operators of a room."""
    _define_schemas()
    library()
    torch.ops.load_library(str(build(f"{room}.so")))
    return torch.ops.torch_convarith_emulated


@contextlib.contextmanager
def order(name: str):
    """Runs threads and blocks in one of ORDERS."""
    set_order = library().emulation_set_order
    set_order(ORDERS[name])
    try:
        yield
    finally:
        set_order(ORDERS["forward"])


@contextlib.contextmanager
def wide_integers():
    """Kernels count in 64 bits, as they would where a tensor has 2^31 elements."""
    library().emulation_set_wide_integers(True)
    try:
        yield
    finally:
        library().emulation_set_wide_integers(False)


@contextlib.contextmanager
def guarded():
    """Tensors made here are full of NaN bytes, and behind their end, up to 16 bytes, stands a page not to be touched.

    So a kernel's access outside of them is an error, and what it leaves unwritten shows. Writes that miss that page
    fail at the end, for tensors that are gone by then.
    """
    c = library("guard.so")
    c.was_written_outside.restype = ctypes.c_bool
    c.was_written_outside()
    c.guard(True)
    try:
        yield
    finally:
        c.guard(False)
    assert not c.was_written_outside(), "a kernel wrote outside of a tensor"
