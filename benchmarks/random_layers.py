"""Plausible layers at random: what a cost model that was fitted to the layers of papers may have missed.

Channels, sizes, kernels, strides and batches are drawn from those that networks have; layers that would take next to no
time, or too long, are drawn again. A seed gives the same layers everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random

from torch_convarith.problems import Problem, parse


def numbers(text: str) -> tuple[int, ...]:
    """Of a list that is written as words."""
    return tuple(map(int, text.split()))


CHANNELS = numbers("""
1 2 3 4 6 8 10 12 16 20 24 32 40 48 56 64 72 80 96 112 120 128 144 160 192 200 240 256 320 384 400 480 512 576
640 672 768 960 1024 1280 1536 2048
""")
SIDES = numbers("""
1 4 5 7 8 10 12 13 14 16 17 20 24 27 28 32 35 40 48 55 56 64 80 96 100 112 128 149 160 224 256 300 320 416 512
""")
LENGTHS = (50, 100, 200, 500, 1000, 4000, 16000, 44100)
BATCHES = (1, 1, 2, 4, 8, 8, 16, 32, 64)
# With how often each is drawn.
KINDS = {"dense": 3, "pointwise": 2, "depthwise": 2, "grouped": 1, "transposed": 2, "1d": 1, "3d": 1}

FEWEST_MACS, MOST_MACS = 300_000, 1_200_000_000
MOST_ENTRIES = 16_000_000  # of a tensor


def draw(random: Random, kind: str) -> str:
    """The words of a line of problems.py, which may not be a layer."""
    pick = random.choice
    n, c, k = pick(BATCHES), pick(CHANNELS), pick(CHANNELS)
    f, s, d, g = pick((2, 3, 3, 3, 3, 4, 5, 5, 7, 9, 11)), pick((1, 1, 1, 2, 2, 3, 4)), pick((1, 1, 1, 1, 2)), 1
    i = str(pick(SIDES))
    if random.random() < 0.1:
        i += f"x{pick(SIDES)}"
    if random.random() < 0.3:
        k = c
    if kind == "pointwise":
        f, s, d = 1, pick((1, 1, 1, 2)), 1
    elif kind == "depthwise":
        k = g = c
    elif kind == "grouped":
        g = pick((2, 4, 8, 16, 32))
        c, k = g * pick((2, 4, 8, 16, 24, 32)), g * pick((2, 4, 8, 16, 24, 32))
        if random.random() < 0.5:
            k = c
    elif kind == "transposed":
        f, s, d = pick((2, 3, 4, 4, 5, 6, 8)), pick((1, 2, 2, 2, 3, 4)), 1
    elif kind == "1d":
        i, f = f"{pick(LENGTHS)}x", pick((1, 2, 3, 3, 5, 7, 9, 15, 25))
        s, d = pick((1, 1, 1, 2, 4, 5)), pick((1, 1, 2, 4))
    elif kind == "3d":
        side = pick((7, 14, 16, 28, 32, 56, 64))
        n, i, f, d = pick((1, 1, 2, 4)), f"{pick((4, 8, 16, 32))}x{side}x{side}", pick((1, 2, 3, 3, 3, 5)), 1
    s = min(s, f)
    half = (f - s + 1) // 2 if kind == "transposed" else d * (f // 2)
    p = pick((half, half, half, 0))
    words = f"n{n} c{c} k{k} i{i} f{f} s{s} p{p} d{d} g{g}"
    return words + " T" if kind == "transposed" else words


def is_worth_measuring(problem: Problem) -> bool:
    """Neither a moment nor for ever, and every kernel fits."""
    if min(problem.output) < 1 or not FEWEST_MACS <= problem.macs <= MOST_MACS:
        return False
    result_shape = (problem.batch, problem.out_channels, *problem.output)
    return max(map(math.prod, (problem.input_shape, problem.weight_shape, result_shape))) <= MOST_ENTRIES


def random_layers(seed: int) -> Iterator[Problem]:
    """Endless, and the same for a seed; called by their kind and number.

    >>> from itertools import islice
    >>> [str(layer) for layer in islice(random_layers(0), 2)]
    ['1d.1 n16 c3 k72 i500x f25 p24 d2', 'depthwise.2 n1 c672 k672 i48 f7 d2 g672']
    """
    random, number = Random(seed), 0
    while True:
        (kind,) = random.choices(tuple(KINDS), tuple(KINDS.values()))
        try:
            problem = parse(f"{kind}.{number + 1} {draw(random, kind)}")
            suits = is_worth_measuring(problem)
        except ValueError:  # a kernel that does not fit
            suits = False
        if suits:
            number += 1
            yield problem
