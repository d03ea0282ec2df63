from typing import Any

from torch import Tensor

def build_info() -> dict[str, Any]: ...
def conv(*arguments: Any) -> Tensor | None: ...
def conv_transpose(*arguments: Any) -> Tensor | None: ...
def is_plain(*arguments: Any) -> bool: ...
def set_winograd(enabled: bool) -> None: ...
def winograd_enabled() -> bool: ...
def explain_cpu_kernel(
    which: int,
    dtype: int,
    x: list[int],
    w: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    channels_last: bool,
) -> dict[str, Any]: ...
def explain_cuda_kernel(
    which: int,
    dtype: int,
    x: list[int],
    w: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    channels_last: bool,
    multiprocessors: int,
) -> dict[str, Any]: ...
def _force_cuda_kernel(name: str, splits: int, packed_bytes: int) -> None: ...
def _force_algorithm(name: str) -> None: ...
