"""What each call of torch means for the arithmetic; the modules beside this one hold a handler for every kind."""

from . import dense, shapes, windows  # noqa: F401  their handlers register themselves
from .call import Call
from .kinds import SPLITS, TRANSPARENT, WITHOUT_DEPENDENCE, module_kind

__all__ = ["SPLITS", "TRANSPARENT", "WITHOUT_DEPENDENCE", "Call", "module_kind"]
