"""``convarith``, the command line; also ``python -m torch_convarith.cli``. The commands stand in commands.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (``sys.argv`` by default) and returns its exit code; 2 where something was wrong."""
    try:
        from .commands import run
    except ImportError as error:
        print(f"convarith: {error}", file=sys.stderr)
        return 2
    return run(sys.argv[1:] if arguments is None else arguments)
