"""Whole models, converted, against themselves: inference and a training step.

    python benchmarks/models.py
    python benchmarks/models.py --threads 1 --batch 1 --out benchmarks/results/models.json

The models are built from their configurations with random weights; transformers must be installed. A training step is
forward, backward from the sum of the outputs, and gradients of every parameter; there is no optimiser.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import ceilings, environment, keep_heap, measure, remark
from torch import Tensor, nn

import torch_convarith as tc


def resnet50() -> nn.Module:
    """He et al., arXiv:1512.03385."""
    from transformers import ResNetConfig, ResNetModel

    return ResNetModel(ResNetConfig())


def mobilenet_v2() -> nn.Module:
    """Sandler et al., arXiv:1801.04381."""
    from transformers import MobileNetV2Config, MobileNetV2Model

    return MobileNetV2Model(MobileNetV2Config())


def convnext_tiny() -> nn.Module:
    """Liu et al., arXiv:2201.03545."""
    from transformers import ConvNextConfig, ConvNextModel

    return ConvNextModel(ConvNextConfig())


def dcgan_generator() -> nn.Module:
    """Radford et al., arXiv:1511.06434, figure 1, with 4 x 4 kernels: 64 x 64 images."""
    channels = (100, 1024, 512, 256, 128, 3)
    layers: list[nn.Module] = []
    for n, (i, o) in enumerate(itertools.pairwise(channels)):
        stride, padding = (1, 0) if n == 0 else (2, 1)
        layers += [nn.ConvTranspose2d(i, o, 4, stride, padding, bias=False)]
        layers += [nn.BatchNorm2d(o), nn.ReLU()] if o > 3 else [nn.Tanh()]
    return nn.Sequential(*layers)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet50": (resnet50, (3, 224, 224)),
    "mobilenet_v2": (mobilenet_v2, (3, 224, 224)),
    "convnext_tiny": (convnext_tiny, (3, 224, 224)),
    "dcgan_generator": (dcgan_generator, (100, 1, 1)),
}


def output(model: nn.Module, x: Tensor) -> Tensor:
    """The model's last feature map."""
    y = model(x)
    return y if isinstance(y, Tensor) else y.last_hidden_state


def inference(model: nn.Module, x: Tensor) -> Tensor:
    """Forward, nothing recorded."""
    with torch.no_grad():
        return output(model, x)


def training(model: nn.Module, x: Tensor) -> Tensor:
    """Forward and backward."""
    model.zero_grad(set_to_none=True)
    y = output(model, x)
    y.sum().backward()
    return y.detach()


def check(theirs: Tensor, ours: Tensor, name: str) -> None:
    """Different rounding in dozens of layers, and no more."""
    error = float((theirs - ours).abs().max() / theirs.abs().max())
    if not error < 1e-3:
        raise AssertionError(f"{name} is off by {error:.1e}")


def main(arguments: list[str] | None = None) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; all if none")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=4.0, help="for each model and pass")
    parser.add_argument("--rounds", type=int, default=5, help="at least")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    unknown = set(options.names) - MODELS.keys()
    if unknown:
        parser.error(f"no model is called {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {
        "environment": environment() | {"heap_kept": keep_heap()},
        "ceilings": ceilings(options.threads),
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "results": [],
    }
    print(f"{'milliseconds':34}{'torch':>9}{'ours':>9}{'torch / ours':>14}")
    for name in options.names or MODELS:
        build, size = MODELS[name]
        torch.manual_seed(0)
        theirs = build()
        ours = tc.convert(copy.deepcopy(theirs))
        x = torch.randn(options.batch, *size)
        for which, run in (("inference", inference), ("training step", training)):
            for model in (theirs, ours):
                model.train(run is training)
            check(run(theirs, x), run(ours, x), f"{name}, {which},")
            runs = {"torch": functools.partial(run, theirs, x), "ours": functools.partial(run, ours, x)}
            times, conditions = measure(runs, options.seconds, options.rounds)
            result["results"].append({"model": name, "pass": which, "times": times, **conditions})
            a, b = (times[k]["median"] * 1e3 for k in ("torch", "ours"))
            print(f"{name + ', ' + which:34}{a:9.1f}{b:9.1f}{a / b:14.2f}{remark(conditions)}", flush=True)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
