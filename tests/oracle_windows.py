"""Plain loops over windows. Imports nothing of the package."""

import itertools
import math

import numpy as np


def axis_windows(i, k, s, lo, hi, d, ceil_mode=False):
    """Per output along one axis, the place that each tap sees, counted from the first input."""
    rows, o = [], 0
    while True:
        places = [o * s + t * d - lo for t in range(k)]
        fits = places[-1] < i + hi
        if not fits and not (ceil_mode and places[0] < i and places[-1] - (s - 1) < i + hi):
            return rows
        rows.append(places)
        o += 1


def windows(size, kernel, stride, padding, dilation, ceil_mode=False):
    """Per output (index tuple), per tap, the input's index tuple; None for padding."""
    axes = [
        axis_windows(i, k, s, lo, hi, d, ceil_mode)
        for i, k, s, (lo, hi), d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]
    result = {}
    for output in itertools.product(*(range(len(a)) for a in axes)):
        taps = itertools.product(*(a[o] for a, o in zip(axes, output, strict=True)))
        result[output] = [
            place if all(0 <= p < i for p, i in zip(place, size, strict=True)) else None for place in taps
        ]
    return result, tuple(len(a) for a in axes)


def pool(x, reduce, kernel, stride, padding, dilation, ceil_mode=False):
    """``reduce(values of the window that are inputs)`` at each output of one plane (a numpy array)."""
    table, size = windows(x.shape, kernel, stride, padding, dilation, ceil_mode)
    y = np.zeros(size)
    for output, places in table.items():
        y[output] = reduce([x[p].item() for p in places if p is not None])
    return y


def average_divisors(size, kernel, stride, padding, dilation, ceil_mode, count_include_pad):
    """The count of each window."""
    table, out = windows(size, kernel, stride, padding, dilation, ceil_mode)
    y = np.zeros(out)
    for output, places in table.items():
        if not count_include_pad:
            y[output] = sum(p is not None for p in places)
            continue
        spans = [
            sum(o * s + t * d - lo < i + hi for t in range(k))
            for o, i, k, s, (lo, hi), d in zip(output, size, kernel, stride, padding, dilation, strict=True)
        ]
        y[output] = math.prod(spans)
    return y


def unfold(x, kernel, stride, padding, dilation):
    """(taps, outputs) of one plane."""
    table, size = windows(x.shape, kernel, stride, padding, dilation)
    y = np.zeros((math.prod(kernel), math.prod(size)))
    for column, places in enumerate(table.values()):
        for tap, place in enumerate(places):
            y[tap, column] = 0 if place is None else x[place]
    return y


def fold(y, size, kernel, stride, padding, dilation):
    """The plane that collects (taps, outputs)."""
    table, _ = windows(size, kernel, stride, padding, dilation)
    x = np.zeros(size)
    for column, places in enumerate(table.values()):
        for tap, place in enumerate(places):
            if place is not None:
                x[place] += y[tap, column]
    return x


def local_response_norm(x, n, alpha, beta, k):
    """(C, L) by the paper's formula: alpha is not divided."""
    y = np.zeros_like(x)
    for c in range(x.shape[0]):
        for e in range(x.shape[1]):
            low, high = max(0, c - n // 2), min(x.shape[0] - 1, c - n // 2 + n - 1)
            total = sum(x[j, e] ** 2 for j in range(low, high + 1))
            y[c, e] = x[c, e] / (k + alpha * total) ** beta
    return y
