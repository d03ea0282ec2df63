"""What a convolution is, in plain loops. Imports nothing of ours, and computes nothing cleverly.

Arrays are NumPy's, for their indexing alone; sizes come from counting windows, never from a formula.
``padding`` is (lo, hi) per axis. Integers stay integers (object arrays would do as well).
"""

import itertools

import numpy as np


def padded(size, lo, hi, mode="zeros"):
    """The padded axis as a list of input indices, None where there is a zero; negative padding crops."""
    line = list(range(size))
    before, after = [], []
    for n in range(1, lo + 1):
        before.insert(0, {"zeros": None, "reflect": _bounce(-n, size), "replicate": 0, "circular": -n % size}[mode])
    for n in range(hi):
        last = size - 1
        after.append({"zeros": None, "reflect": _bounce(size + n, size), "replicate": last, "circular": n % size}[mode])
    line = before + line + after
    return line[max(0, -lo) : len(line) - max(0, -hi)]


def _bounce(index, size):
    """Walk one step at a time between the walls 0 and size - 1."""
    if size == 1:
        return 0
    position, step = 0, 1
    for _ in range(abs(index)):
        if not 0 <= position + step < size:
            step = -step
        position += step
    return position


def windows(size, kernel, stride, lo, hi, dilation, mode="zeros"):
    """Slide the window: for each output, the input index (or None) under each tap."""
    line = padded(size, lo, hi, mode)
    found, start = [], 0
    while start + (kernel - 1) * dilation < len(line):
        found.append([line[start + t * dilation] for t in range(kernel)])
        start += stride
    return found


def pattern(input_size, kernel_size, stride, padding, dilation, mode="zeros"):
    """All (output, tap, input) index tuples of an N-dimensional convolution, and the output size."""
    axes = [
        windows(i, k, s, lo, hi, d, mode)
        for i, k, s, (lo, hi), d in zip(input_size, kernel_size, stride, padding, dilation, strict=True)
    ]
    entries = []
    for out in itertools.product(*(range(len(a)) for a in axes)):
        for tap in itertools.product(*(range(k) for k in kernel_size)):
            place = tuple(a[o][t] for a, o, t in zip(axes, out, tap, strict=True))
            if None not in place:
                entries.append((out, tap, place))
    return entries, tuple(len(a) for a in axes)


def conv(x, w, stride, padding, dilation, groups=1, mode="zeros"):
    """y[n, k, o] = sum over channels c of k's group and over taps t of w[k, c, t] * x[n, c, the input o sees by t]."""
    entries, size = pattern(x.shape[2:], w.shape[2:], stride, padding, dilation, mode)
    y = np.zeros((x.shape[0], w.shape[0], *size), dtype=x.dtype)
    for n, k, c in itertools.product(range(x.shape[0]), range(w.shape[0]), range(w.shape[1])):
        group = k // (w.shape[0] // groups)
        for out, tap, place in entries:
            y[(n, k, *out)] += w[(k, c, *tap)] * x[(n, group * w.shape[1] + c, *place)]
    return y


def conv_transpose(y, w, input_size, stride, padding, dilation, groups=1, mode="zeros"):
    """Every product of conv sent the other way: x[n, c, place] gathers w * y."""
    entries, size = pattern(input_size, w.shape[2:], stride, padding, dilation, mode)
    assert size == y.shape[2:]
    x = np.zeros((y.shape[0], w.shape[1] * groups, *input_size), dtype=y.dtype)
    for n, k, c in itertools.product(range(y.shape[0]), range(w.shape[0]), range(w.shape[1])):
        group = k // (w.shape[0] // groups)
        for out, tap, place in entries:
            x[(n, group * w.shape[1] + c, *place)] += w[(k, c, *tap)] * y[(n, k, *out)]
    return x


def conv_weight(x, y, kernel_size, stride, padding, dilation, groups=1, mode="zeros"):
    """Every product of conv without its weight: w[k, c, t] gathers y * x."""
    entries, size = pattern(x.shape[2:], kernel_size, stride, padding, dilation, mode)
    assert size == y.shape[2:]
    per_group = x.shape[1] // groups
    w = np.zeros((y.shape[1], per_group, *kernel_size), dtype=x.dtype)
    for n, k, c in itertools.product(range(x.shape[0]), range(y.shape[1]), range(per_group)):
        group = k // (y.shape[1] // groups)
        for out, tap, place in entries:
            w[(k, c, *tap)] += y[(n, k, *out)] * x[(n, group * per_group + c, *place)]
    return w


def matrix(w, input_size, stride, padding, dilation, groups=1, mode="zeros"):
    """C, dense: the images of the unit vectors, column by column."""
    channels, columns = w.shape[1] * groups, []
    for place in itertools.product(range(channels), *map(range, input_size)):
        unit = np.zeros((1, channels, *input_size), dtype=w.dtype)
        unit[(0, *place)] = 1
        columns.append(conv(unit, w, stride, padding, dilation, groups, mode).ravel())
    return np.stack(columns, axis=1)
