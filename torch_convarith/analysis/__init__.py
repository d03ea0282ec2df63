"""What follows from the arithmetic: sizes solved for, layers explained, whole models traced and checked."""

from .capture import CaptureError
from .explain import Explanation, explain
from .lint import RULES, Finding, Findings, lint
from .receptive_field import Misalignment, NodeField, ReceptiveFields, Region, receptive_field
from .solve import Solution, Solutions, nearest_valid_sizes, solve, valid_sizes
from .trace import ModelTable, Row, trace

__all__ = [
    "RULES",
    "CaptureError",
    "Explanation",
    "Finding",
    "Findings",
    "Misalignment",
    "ModelTable",
    "NodeField",
    "ReceptiveFields",
    "Region",
    "Row",
    "Solution",
    "Solutions",
    "explain",
    "lint",
    "nearest_valid_sizes",
    "receptive_field",
    "solve",
    "trace",
    "valid_sizes",
]
