"""Known networks with the geometry of their papers. Channels are divided by ``thin``: they do not enter the arithmetic
of sizes. ``pool`` replaces the maximum where a gradient must reach the whole window."""

import torch
from torch import nn
from torch.nn import functional as F


def conv(i, o, k, s=1, p=None, d=1, g=1, axes=2):
    """Convolution, batch norm, ReLU; half padding unless told."""
    p = d * (k - 1) // 2 if p is None else p
    layer, norm = (nn.Conv2d, nn.BatchNorm2d) if axes == 2 else (nn.Conv3d, nn.BatchNorm3d)
    return nn.Sequential(layer(i, o, k, s, p, d, g, bias=False), norm(o), nn.ReLU(inplace=True))


def pool2d(pool, k, s, p=0, ceil_mode=False):
    return (nn.MaxPool2d if pool == "max" else nn.AvgPool2d)(k, s, p, ceil_mode=ceil_mode)


class Basic(nn.Module):
    expansion = 1

    def __init__(self, i, o, s, d=1):
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, s, d, d, bias=False)
        self.bn1 = nn.BatchNorm2d(o)
        self.conv2 = nn.Conv2d(o, o, 3, 1, d, d, bias=False)
        self.bn2 = nn.BatchNorm2d(o)
        self.down = nn.Conv2d(i, o, 1, s, bias=False) if s > 1 or i != o else None

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.down is None else self.down(x)
        return F.relu(y)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, i, o, s, d=1):
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(o)
        self.conv2 = nn.Conv2d(o, o, 3, s, d, d, bias=False)
        self.bn2 = nn.BatchNorm2d(o)
        self.conv3 = nn.Conv2d(o, 4 * o, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * o)
        self.down = None
        if s > 1 or i != 4 * o:
            self.down = nn.Sequential(nn.Conv2d(i, 4 * o, 1, s, bias=False), nn.BatchNorm2d(4 * o))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.down is None else self.down(x)))


class ResNet(nn.Module):
    """He et al. 2015; ``dilate`` replaces the last strides by dilation, as DeepLab does."""

    def __init__(self, block, counts, thin=1, pool="max", dilate=False, classes=1000):
        super().__init__()
        width = 64 // thin
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = pool2d(pool, 3, 2, 1)
        channels = width
        strides, dilations = ((1, 2, 1, 1), (1, 1, 2, 4)) if dilate else ((1, 2, 2, 2), (1, 1, 1, 1))
        for stage, count in enumerate(counts):
            blocks = []
            for n in range(count):
                blocks.append(block(channels, width << stage, strides[stage] if n == 0 else 1, dilations[stage]))
                channels = (width << stage) * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes) if classes else None
        self.channels = channels

    def features(self, x):
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, x):
        x = self.features(x)
        return x if self.fc is None else self.fc(torch.flatten(self.avgpool(x), 1))


def resnet18(**options):
    return ResNet(Basic, (2, 2, 2, 2), **options)


def resnet50(**options):
    return ResNet(Bottleneck, (3, 4, 6, 3), **options)


class SlimUnit(nn.Module):
    """A unit of TF-Slim's ResNet, whose stride stands in the last unit of a block and whose shortcut is subsampled."""

    def __init__(self, i, o, s):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(i, o, 1), nn.Conv2d(o, o, 3, s, 1), nn.Conv2d(o, 4 * o, 1)
        self.s = s
        self.down = nn.Conv2d(i, 4 * o, 1, s) if i != 4 * o else None

    def forward(self, x):
        short = self.down(x) if self.down is not None else F.max_pool2d(x, 1, self.s)
        return F.relu(short + self.c(F.relu(self.b(F.relu(self.a(x))))))


class SlimResNet(nn.Module):
    def __init__(self, counts, thin=16, pool_lo=0):
        super().__init__()
        width = 64 // thin
        self.conv1, self.pool_lo = nn.Conv2d(3, width, 7, 2, 3), pool_lo
        channels = width
        for n, count in enumerate(counts):
            units = []
            for unit in range(count):
                units.append(SlimUnit(channels, width << n, 2 if unit == count - 1 and n < 3 else 1))
                channels = 4 * (width << n)
            setattr(self, f"block{n + 1}", nn.Sequential(*units))

    def forward(self, x):
        # "SAME" pooling: at 112 rows one zero, after the last; at 161 one on either side
        x = F.max_pool2d(F.pad(self.conv1(x), (self.pool_lo, 1, self.pool_lo, 1)), 3, 2)
        return self.block4(self.block3(self.block2(self.block1(x))))


def vgg(cfg, thin=1, pool="max"):
    layers, channels = [], 3
    names = iter(range(100))
    for block, (count, width) in enumerate(cfg, 1):
        for n in range(1, count + 1):
            layers += [
                (f"conv{block}_{n}", nn.Conv2d(channels, width // thin, 3, padding=1)),
                (f"relu{next(names)}", nn.ReLU()),
            ]
            channels = width // thin
        layers.append((f"pool{block}", pool2d(pool, 2, 2)))
    model = nn.Sequential()
    for name, layer in layers:
        model.add_module(name, layer)
    return model


VGG_A = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))
VGG_16 = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


class Inception(nn.Module):
    def __init__(self, i, a, b1, b3, c1, c5, p, pool):
        super().__init__()
        self.a = conv(i, a, 1)
        self.b = nn.Sequential(conv(i, b1, 1), conv(b1, b3, 3))
        self.c = nn.Sequential(conv(i, c1, 1), conv(c1, c5, 5))
        self.p = nn.Sequential(pool2d(pool, 3, 1, 1), conv(i, p, 1))

    def forward(self, x):
        return torch.cat([self.a(x), self.b(x), self.c(x), self.p(x)], 1)


class GoogLeNet(nn.Module):
    """Szegedy et al. 2014, up to inception (5b)."""

    def __init__(self, thin=8, pool="max"):
        super().__init__()
        t = thin
        rows = [
            (64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), "pool",
            (192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64),
            (112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128), "pool",
            (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128),
        ]  # fmt: skip
        layers = [conv(3, 64 // t, 7, 2), pool2d(pool, 3, 2, 0, True), conv(64 // t, 64 // t, 1),
                  conv(64 // t, 192 // t, 3), pool2d(pool, 3, 2, 0, True)]  # fmt: skip
        channels = 192 // t
        for row in rows:
            if row == "pool":
                layers.append(pool2d(pool, 3, 2, 0, True))
                continue
            a, b1, b3, c1, c5, p = (n // t for n in row)
            layers.append(Inception(channels, a, b1, b3, c1, c5, p, pool))
            channels = a + b3 + c5 + p
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


class UNet(nn.Module):
    """Ronneberger et al. 2015: unpadded convolutions, the skip cropped; or padded, with ``padding=1``. Any axes."""

    def __init__(self, axes=2, depth=4, width=4, padding=0, pool="max", up="transposed", channels=1):
        super().__init__()
        layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        raise_ = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[axes - 1]
        average = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[axes - 1]
        maximum = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[axes - 1]
        mode = ("linear", "bilinear", "trilinear")[axes - 1]
        self.axes = axes

        def double(i, o):
            return nn.Sequential(layer(i, o, 3, padding=padding), nn.ReLU(), layer(o, o, 3, padding=padding), nn.ReLU())

        widths = [width << n for n in range(depth + 1)]
        self.down = nn.ModuleList(double(i, o) for i, o in zip([channels, *widths[:-1]], widths, strict=True))
        self.pool = (maximum if pool == "max" else average)(2)
        self.up = nn.ModuleList()
        self.join = nn.ModuleList()
        for low, high in zip(widths[-2::-1], widths[:0:-1], strict=True):
            if up == "transposed":
                self.up.append(raise_(high, low, 2, stride=2))
            else:
                self.up.append(nn.Sequential(nn.Upsample(scale_factor=2, mode=mode), layer(high, low, 1)))
            self.join.append(double(high, low))
        self.head = layer(width, 2, 1)

    def forward(self, x):
        skips = []
        for n, block in enumerate(self.down):
            x = block(x if n == 0 else self.pool(x))
            skips.append(x)
        for skip, up, join in zip(skips[-2::-1], self.up, self.join, strict=True):
            x = up(x)
            for axis in range(2, 2 + self.axes):
                off = (skip.shape[axis] - x.shape[axis]) // 2
                skip = skip.narrow(axis, off, x.shape[axis])
            x = join(torch.cat([skip, x], 1))
        return self.head(x)


class WaveNet(nn.Module):
    """van den Oord et al. 2016: causal, dilated, gated, with residual and skip connections."""

    def __init__(self, dilations=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512), width=4, stacks=1):
        super().__init__()
        self.first = nn.Conv1d(1, width, 1)
        self.dilations = dilations * stacks
        self.gated = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=d) for d in self.dilations)
        self.out = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in self.dilations)
        self.skip = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in self.dilations)
        self.last = nn.Conv1d(width, 8, 1)

    def forward(self, x):
        x = self.first(x)
        total = 0
        for d, gated, out, skip in zip(self.dilations, self.gated, self.out, self.skip, strict=True):
            filtered, gate = gated(F.pad(x, (d, 0))).chunk(2, dim=1)
            z = torch.tanh(filtered) * torch.sigmoid(gate)
            total = total + skip(z)
            x = x + out(z)
        return self.last(F.relu(total))


class ASPP(nn.Module):
    """DeepLab v3's pyramid: a 1x1, three dilated 3x3 and, unless left out, the image's mean."""

    def __init__(self, i, o, rates=(6, 12, 18), image=True):
        super().__init__()
        self.branches = nn.ModuleList([conv(i, o, 1), *(conv(i, o, 3, d=r) for r in rates)])
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(i, o, 1)) if image else None
        self.project = conv((len(rates) + 1 + image) * o, o, 1)

    def forward(self, x):
        found = [branch(x) for branch in self.branches]
        if self.image is not None:
            found.append(F.interpolate(self.image(x), size=x.shape[-2:], mode="bilinear", align_corners=False))
        return self.project(torch.cat(found, 1))


class DeepLab(nn.Module):
    def __init__(self, thin=16, pool="max", rates=(6, 12, 18), image=True):
        super().__init__()
        self.backbone = resnet18(thin=thin, pool=pool, dilate=True, classes=0)
        self.head = ASPP(self.backbone.channels, 4, rates, image)
        self.classify = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = self.classify(self.head(self.backbone(x)))
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


class Norm2d(nn.LayerNorm):
    """Layer norm over channels, channels first."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convnext(widths=(8, 12, 16, 20), depths=(3, 3, 9, 3)):
    """Liu et al. 2022, ConvNeXt-T's depths."""
    layers = [nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), Norm2d(widths[0]))]
    for n, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if n:
            layers.append(nn.Sequential(Norm2d(widths[n - 1]), nn.Conv2d(widths[n - 1], width, 2, 2)))
        layers.append(nn.Sequential(*(ConvNeXtBlock(width) for _ in range(depth))))
    return nn.Sequential(*layers)


def positive(model, seed=0):
    """In float64 and eval mode, weights random, positive and scaled by fan-in: nothing cancels or underflows."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            fan = max(1, parameter[0].numel()) if parameter.dim() > 1 else 1
            parameter.copy_((0.5 + torch.rand(parameter.shape, generator=generator, dtype=torch.double)) / fan)
    return model
