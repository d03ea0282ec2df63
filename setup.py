"""Builds the extension. Everything else about the package stands in pyproject.toml.

CUDA sources are built where torch has CUDA and a CUDA toolkit is found (CUDA_HOME); a GPU need not be present.
FORCE_CUDA=1 insists, FORCE_CUDA=0 leaves them out. TORCH_CUDA_ARCH_LIST names the GPUs, if not all from sm_80 on.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pybind11
import torch
from setuptools import setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"
# Ampere's instructions; code for it runs on Ada, code for Hopper's virtual machine on whatever comes later.
CUDA_ARCHITECTURES = "8.0 9.0+PTX"


def with_cuda() -> bool:
    """Whether to build the CUDA sources; raises where they are insisted on and cannot be."""
    possible = torch.version.cuda is not None and CUDA_HOME is not None
    wanted = os.environ.get("FORCE_CUDA", "")
    if wanted == "1" and not possible:
        raise RuntimeError(f"FORCE_CUDA=1, but torch has CUDA {torch.version.cuda} and CUDA_HOME is {CUDA_HOME}")
    return possible and wanted != "0" and any((CSRC / "cuda").glob("*.cu"))


def extension() -> CppExtension:
    """The extension module torch_convarith._C."""
    # -fopenmp: without it at::parallel_for runs on one thread. No -march: the build must run on any machine.
    # Without errno and floating-point traps, a loop over std::sqrt or a comparison vectorises; values are the same.
    fast = ["-fno-math-errno", "-fno-trapping-math"]
    warnings = ["-Wall", "-Wextra", "-Wno-unused-parameter"]
    flags = {"cxx": ["-O3", "-g0", "-fopenmp", *fast, *warnings, "-fvisibility=hidden"]}
    sources = [*CSRC.glob("*.cpp"), *(CSRC / "cpu").glob("*.cpp")]
    kind, macros = CppExtension, []
    if with_cuda():
        kind, macros = CUDAExtension, [("CONVARITH_WITH_CUDA", None)]
        sources += [*(CSRC / "cuda").glob("*.cpp"), *(CSRC / "cuda").glob("*.cu")]
        flags["nvcc"] = ["-O3", "--threads=0", f"-Xcompiler={','.join(warnings)},-fvisibility=hidden"]
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
    else:
        sources += (CSRC / "cuda").glob("*_plan.cpp")  # plain C++: explain_kernel tells of a GPU without one
    return kind(
        "torch_convarith._C",
        sorted(str(source.relative_to(ROOT)) for source in sources),
        include_dirs=[pybind11.get_include()],
        define_macros=macros,
        extra_compile_args=flags,
        extra_link_args=["-fopenmp"],
        depends=sorted(str(h.relative_to(ROOT)) for pattern in ("*.h", "*.cuh") for h in CSRC.rglob(pattern)),
    )


class Build(BuildExtension):
    """Keeps the objects of an editable build, so that ninja compiles only what changed since the last one."""

    def build_extensions(self) -> None:
        """Lets x.cpp and x.cu have objects of their own: setuptools calls both x.o."""
        plain = self.compiler.object_filenames

        def object_filenames(sources: Iterable[str], *args: Any, **options: Any) -> list[str]:
            names = plain(sources, *args, **options)
            return [
                f"{name[:-2]}.cu.o" if str(s).endswith(".cu") else name for s, name in zip(sources, names, strict=True)
            ]

        self.compiler.object_filenames = object_filenames
        super().build_extensions()

    def finalize_options(self) -> None:  # noqa: D102
        super().finalize_options()
        if self.editable_mode:
            self.build_temp = str(ROOT / "build" / "editable")


setup(ext_modules=[extension()], cmdclass={"build_ext": Build})
