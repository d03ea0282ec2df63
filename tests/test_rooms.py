"""The house stays as it was designed: imports run one way, C++ has one door, and kernels know no torch."""

import ast
import re
from pathlib import Path

import pytest

import torch_convarith

PACKAGE = Path(torch_convarith.__file__).parent
CSRC = Path(__file__).parent.parent / "csrc"

# room -> the rooms it may import from. Everything else is a wall.
MAY_IMPORT = {
    "geometry": set(),
    "problems": {"geometry"},
    "_C": set(),
    "pattern": {"geometry"},
    "_ops": {"_C", "geometry"},
    "matrix": {"geometry", "pattern", "_ops"},
    "window_matrix": {"geometry", "pattern", "_ops"},
    "functional": {"geometry", "pattern", "_ops", "matrix"},
    "modules": {"geometry", "pattern", "matrix", "window_matrix", "functional"},
    "convert": {"modules"},
    "backends": {"geometry", "_ops"},
}
BELOW = set(MAY_IMPORT)
MAY_IMPORT["models"] = BELOW
MAY_IMPORT["analysis"] = BELOW | {"models"}
MAY_IMPORT["figures"] = BELOW | {"models", "analysis"}
MAY_IMPORT["cli"] = BELOW | {"models", "analysis", "figures"}


def rooms():
    """(room, file) of every source but the package's own __init__."""
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        if parts != ("__init__",):
            yield parts[0], file


def imported_rooms(file):
    """The rooms that a file imports from, wherever in the file the import stands."""
    package = ("torch_convarith", *file.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            names = [module] if module.count(".") else [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "torch_convarith" and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize(("room", "file"), [pytest.param(r, f, id=str(f.relative_to(PACKAGE))) for r, f in rooms()])
def test_imports_run_one_way(room, file):
    assert room in MAY_IMPORT, f"{file.name} is in no known room"
    assert set(imported_rooms(file)) <= MAY_IMPORT[room] | {room}


def test_rooms_see_something():
    """The parser above finds the imports that are certainly there."""
    assert {"_ops", "geometry"} <= set(imported_rooms(PACKAGE / "functional" / "conv.py"))
    assert "_C" in set(imported_rooms(PACKAGE / "_ops" / "__init__.py"))
    assert set(imported_rooms(PACKAGE / "geometry.py")) == set()


def test_only_cpp_glue_includes_torch():
    """Kernels and the plain headers compile without torch, so that they can be read, tested and built alone. What maps
    dtypes to kernels, what runs plans on threads and what other glue calls may know it."""
    kernels = [
        CSRC / "geometry.h",
        CSRC / "problem.h",
        CSRC / "matrix_plan.h",
        CSRC / "powers.h",
        *CSRC.glob("cpu/*.h"),
        *CSRC.glob("cuda/*.h"),
        *CSRC.glob("cuda/*.cuh"),
        *CSRC.glob("cuda/*.cu"),
    ]
    plain = [file for file in kernels if file.name not in ("dispatch.h", "conv.h", "conv_planning.h", "glue.h")]
    assert len(plain) >= 4
    for file in plain:
        found = re.findall(r'#include [<"](?:torch|ATen)/', file.read_text())
        assert not found, f"{file.name} includes torch"


def test_schemas_stand_in_one_place():
    for file in CSRC.rglob("*.c*"):
        if file.name != "ops.cpp":
            assert "TORCH_LIBRARY(" not in file.read_text()


def test_public_names_have_docstrings():
    for name in torch_convarith.__all__:
        thing = getattr(torch_convarith, name)
        assert thing.__doc__, name
