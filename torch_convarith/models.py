"""LeNet-5 and AlexNet, layer by layer as their papers count them, of explicit layers; and where printed sources err."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .modules import AvgPool2dExplicit, Conv2dExplicit, LocalResponseNormExplicit, MaxPool2dExplicit

__all__ = ["AlexNet", "Erratum", "LeNet5", "alexnet", "lenet5"]


@dataclass(frozen=True)
class Erratum:
    """A misprint that circulates, and the right value, which the tables show.

    Attributes:
        printed: what is found in print.
        right: what holds.
    """

    printed: str
    right: str

    def __str__(self) -> str:
        return f"printed: {self.printed}; right: {self.right}"


class LeNet5(nn.Sequential):
    """See :func:`lenet5`."""

    input_size = (1, 1, 32, 32)
    errata = (Erratum("C5 has input i = 10", "i = 5: S4 halves C3's 10"),)


class AlexNet(nn.Module):
    """See :func:`alexnet`."""

    input_size = (1, 3, 227, 227)
    errata = (
        Erratum("input 224", "227: 55 = floor((227 - 11) / 4) + 1, and 224 gives 54"),
        Erratum("conv2 has input i = 55", "i = 27, after the first pooling"),
        Erratum("the second pooling has input i = 13", "i = 27; 13 is its output"),
        Erratum("conv2's kernel is [256, 96, 5, 5]", "with groups = 2 it is [256, 48, 5, 5]"),
    )

    def __init__(self, num_classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        norm: dict[str, Any] = {"size": 5, "alpha_per_element": 1e-4, "beta": 0.75, "k": 2.0}
        self.features = nn.Sequential(
            OrderedDict(
                conv1=Conv2dExplicit(3, 96, 11, stride=4),
                relu1=nn.ReLU(),
                norm1=LocalResponseNormExplicit(**norm),
                pool1=MaxPool2dExplicit(3, 2),
                conv2=Conv2dExplicit(96, 256, 5, padding=2, groups=2),
                relu2=nn.ReLU(),
                norm2=LocalResponseNormExplicit(**norm),
                pool2=MaxPool2dExplicit(3, 2),
                conv3=Conv2dExplicit(256, 384, 3, padding=1),
                relu3=nn.ReLU(),
                conv4=Conv2dExplicit(384, 384, 3, padding=1, groups=2),
                relu4=nn.ReLU(),
                conv5=Conv2dExplicit(384, 256, 3, padding=1, groups=2),
                relu5=nn.ReLU(),
                pool5=MaxPool2dExplicit(3, 2),
            )
        )
        self.classifier = nn.Sequential(
            OrderedDict(
                drop6=nn.Dropout(dropout),
                fc6=nn.Linear(256 * 6 * 6, 4096),
                relu6=nn.ReLU(),
                drop7=nn.Dropout(dropout),
                fc7=nn.Linear(4096, 4096),
                relu7=nn.ReLU(),
                fc8=nn.Linear(4096, num_classes),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, num_classes) from images (N, 3, 227, 227)."""
        return self.classifier(torch.flatten(self.features(x), 1))


def lenet5(num_classes: int = 10, activation: type[nn.Module] = nn.Tanh) -> LeNet5:
    """LeNet-5 on 32x32 grey images (Y. LeCun et al. 1998), with plain average pooling and a fully connected C3.

    The paper's 60000 parameters are those of its trainable S2 and S4 and partially connected C3, up to F6.

    >>> model = lenet5()
    >>> sum(p.numel() for p in model.parameters()), model(torch.zeros(1, 1, 32, 32)).shape
    (61706, torch.Size([1, 10]))
    """
    return LeNet5(
        OrderedDict(
            C1=Conv2dExplicit(1, 6, 5),
            act1=activation(),
            S2=AvgPool2dExplicit(2),
            C3=Conv2dExplicit(6, 16, 5),
            act3=activation(),
            S4=AvgPool2dExplicit(2),
            C5=Conv2dExplicit(16, 120, 5),
            act5=activation(),
            flatten=nn.Flatten(),
            F6=nn.Linear(120, 84),
            act6=activation(),
            output=nn.Linear(84, num_classes),
        )
    )


def alexnet(num_classes: int = 1000, dropout: float = 0.5) -> AlexNet:
    """AlexNet on 227x227 images (A. Krizhevsky et al. 2012): groups = 2 and local response normalisation as published.

    Building it allocates 61 million parameters (244 MB); under ``torch.device("meta")`` none.

    >>> with torch.device("meta"):
    ...     model = alexnet()
    >>> sum(p.numel() for p in model.parameters())
    60965224
    """
    return AlexNet(num_classes, dropout)
