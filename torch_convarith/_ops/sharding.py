"""How DTensor may shard the operators: over the batch. Loaded when the first DTensor arrives, not before.

x and y have the batch in dimension 0 and the weight has none: what gives x or y is sharded as its operand is, and what
gives the weight is a sum over shards.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from .conv import METHODS, NAMES, TAKES


def _strategies(gives: str) -> Callable[..., list]:
    def placements(a: Any, b: Any, *rest: Any) -> list:
        plain = [None] * len(rest)
        by_batch = {"x": Shard(0), "y": Shard(0), "w": Partial() if gives == "w" else Replicate()}
        replicated = ([Replicate()], [Replicate(), Replicate(), *plain])
        sharded = ([by_batch[gives]], [*(by_batch[role] for role in TAKES[gives]), *plain])
        return [replicated, sharded]

    return placements


@cache
def register() -> None:
    """Tells DTensor; once."""
    propagator = DTensor._op_dispatcher.sharding_propagator
    for method in METHODS.values():
        for gives, name in NAMES.items():
            op = getattr(torch.ops.torch_convarith, name + method).default
            register_sharding(op)(_strategies(gives))
            # DTensor remembers the output of each call it has seen. It must tell calls apart by all that follows the
            # two tensors, but by itself sees only plain integers there, not lists of them (stride, padding).
            propagator.op_to_schema_info[op].static_argnum = 2
