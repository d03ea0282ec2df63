"""Named problems: a convolution layer and its input as one printable line, shared by tests, benchmarks and figures.

A line names the layer and says what differs from the defaults: ``n`` batch, ``c`` in channels, ``k`` out channels,
``i`` input, ``f`` kernel, ``s`` stride, ``p`` padding, ``d`` dilation, ``a`` output padding, ``g`` groups, and ``T``
for a transposed convolution, whose ``i`` is its own (smaller) input. Sizes of several axes are joined by ``x``; one
size alone stands for two axes, or for as many as ``i`` has; ``i16000x`` is one axis.

>>> problem = parse("resnet.conv1 n4 c3 k64 i224 f7 s2 p3")
>>> problem.input, problem.output, problem.macs
((224, 224), (112, 112), 472055808)
>>> str(problem)
'resnet.conv1 n4 c3 k64 i224 f7 s2 p3'
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from .geometry import output_size, transposed_output_size

Size = tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    """A layer and the size of what it is given; see the module for the fields' meaning."""

    name: str
    batch: int
    in_channels: int
    out_channels: int
    input: Size
    kernel: Size
    stride: Size
    padding: Size
    dilation: Size
    output_padding: Size
    groups: int
    transposed: bool

    @property
    def output(self) -> Size:
        """Spatial sizes of the result: relationship 15, or 14 if transposed."""
        if self.transposed:
            return transposed_output_size(
                self.input, self.kernel, self.stride, self.padding, self.dilation, self.output_padding
            )
        return output_size(self.input, self.kernel, self.stride, self.padding, self.dilation)

    @property
    def input_shape(self) -> Size:
        """(N, C, *input)."""
        return (self.batch, self.in_channels, *self.input)

    @property
    def weight_shape(self) -> Size:
        """As torch.nn has it: (out, in / groups, *kernel), or (in, out / groups, *kernel) if transposed."""
        first, second = self.out_channels, self.in_channels
        if self.transposed:
            first, second = second, first
        return (first, second // self.groups, *self.kernel)

    @property
    def macs(self) -> int:
        """Multiplications by definition, those with padding included and those with inserted zeros not."""
        pixels = self.input if self.transposed else self.output
        return self.batch * math.prod(pixels) * math.prod(self.weight_shape)

    def __str__(self) -> str:
        words = [self.name, f"n{self.batch}", f"c{self.in_channels}", f"k{self.out_channels}"]
        for letter, size, default in (
            ("i", self.input, None),
            ("f", self.kernel, None),
            ("s", self.stride, 1),
            ("p", self.padding, 0),
            ("d", self.dilation, 1),
            ("a", self.output_padding, 0),
        ):
            if all(v == default for v in size):
                continue
            same = len(set(size)) == 1 and (letter != "i" or len(size) == 2)
            words.append(letter + (str(size[0]) if same else "x".join(map(str, size))))
        if len(self.input) == 1:
            words[4] += "x"  # i16000x: one axis
        if self.groups > 1:
            words.append(f"g{self.groups}")
        if self.transposed:
            words.append("T")
        return " ".join(words)


def parse(line: str) -> Problem:
    """The problem of a line; the inverse of ``str``.

    Raises:
        ValueError: a word that is not understood, or one missing.
    """
    name, *words = line.split()
    fields: dict[str, Size] = {}
    transposed = False
    for word in words:
        if word == "T":
            transposed = True
            continue
        match = re.fullmatch(r"([nckifspdag])(\d+(?:x\d+)*)(x?)", word)
        if not match or match[1] in fields or (match[3] and match[1] != "i"):
            raise ValueError(f"{word!r} is not understood in {line!r}")
        size = tuple(map(int, match[2].split("x")))
        fields[match[1]] = size * 2 if match[1] == "i" and len(size) == 1 and not match[3] else size
    missing = {"n", "c", "k", "i", "f"} - fields.keys()
    if missing:
        raise ValueError(f"{', '.join(sorted(missing))} missing in {line!r}")
    axes = len(fields["i"])

    def spread(letter: str, default: int) -> Size:
        size = fields.get(letter, (default,))
        if len(size) not in (1, axes):
            raise ValueError(f"{letter} has {len(size)} sizes and i has {axes} in {line!r}")
        return size * axes if len(size) == 1 else size

    return Problem(
        name=name,
        batch=fields["n"][0],
        in_channels=fields["c"][0],
        out_channels=fields["k"][0],
        input=fields["i"],
        kernel=spread("f", 1),
        stride=spread("s", 1),
        padding=spread("p", 0),
        dilation=spread("d", 1),
        output_padding=spread("a", 0),
        groups=fields.get("g", (1,))[0],
        transposed=transposed,
    )


def _parse_all(text: str) -> tuple[Problem, ...]:
    return tuple(parse(line) for line in text.strip().splitlines())


# The figures of Dumoulin & Visin, A guide to convolution arithmetic for deep learning, arXiv:1603.07285.
GUIDE = _parse_all("""
guide.no_padding_no_strides n1 c1 k1 i4 f3
guide.arbitrary_padding n1 c1 k1 i5 f4 p2
guide.half_padding n1 c1 k1 i5 f3 p1
guide.full_padding n1 c1 k1 i5 f3 p2
guide.no_padding_strides n1 c1 k1 i5 f3 s2
guide.padding_strides n1 c1 k1 i5 f3 s2 p1
guide.padding_strides_odd n1 c1 k1 i6 f3 s2 p1
guide.dilation n1 c1 k1 i7 f3 d2
guide.no_padding_no_strides_transposed n1 c1 k1 i2 f3 T
guide.arbitrary_padding_transposed n1 c1 k1 i6 f4 p2 T
guide.half_padding_transposed n1 c1 k1 i5 f3 p1 T
guide.full_padding_transposed n1 c1 k1 i7 f3 p2 T
guide.no_padding_strides_transposed n1 c1 k1 i2 f3 s2 T
guide.padding_strides_transposed n1 c1 k1 i3 f3 s2 p1 T
guide.padding_strides_odd_transposed n1 c1 k1 i3 f3 s2 p1 a1 T
""")

# Twenty layers that between them ask for everything: LeNet-5, AlexNet, VGG, ResNet, and the special kinds.
LAYERS = _parse_all("""
lenet.c1 n64 c1 k6 i32 f5
lenet.c3 n64 c6 k16 i14 f5
alexnet.conv1 n8 c3 k96 i227 f11 s4
alexnet.conv2 n8 c96 k256 i27 f5 p2
alexnet.conv3 n8 c256 k384 i13 f3 p1
vgg.1_1 n1 c3 k64 i224 f3 p1
vgg.1_2 n1 c64 k64 i224 f3 p1
vgg.3_2 n1 c256 k256 i56 f3 p1
vgg.5_1 n1 c512 k512 i14 f3 p1
resnet.conv1 n4 c3 k64 i224 f7 s2 p3
resnet.3x3_56 n4 c64 k64 i56 f3 p1
resnet.3x3_s2 n4 c128 k128 i56 f3 s2 p1
resnet.3x3_7 n4 c512 k512 i7 f3 p1
resnet.1x1_56 n4 c256 k64 i56 f1
resnet.1x1_14 n4 c1024 k256 i14 f1
dilated n2 c256 k256 i28 f3 p2 d2
depthwise.3x3 n4 c128 k128 i56 f3 p1 g128
depthwise.3x3_s2 n4 c128 k128 i56 f3 s2 p1 g128
depthwise.7x7 n4 c96 k96 i56 f7 p3 g96
grouped.32x4 n4 c128 k128 i56 f3 p1 g32
""")

# Nine transposed layers: DCGAN, FCN's and FSRCNN's upsampling, U-Net's, and a plain one.
TRANSPOSED = _parse_all("""
dcgan.1 n16 c100 k512 i1 f4 T
dcgan.2 n16 c512 k256 i4 f4 s2 p1 T
dcgan.3 n16 c256 k128 i8 f4 s2 p1 T
dcgan.4 n16 c128 k64 i16 f4 s2 p1 T
dcgan.5 n16 c64 k3 i32 f4 s2 p1 T
fcn.up16 n1 c21 k21 i16 f32 s16 p8 T
fsrcnn.up3 n4 c56 k1 i40 f9 s3 p4 a2 T
unet.up n2 c128 k64 i56 f2 s2 T
transposed.3x3_s2 n4 c128 k64 i28 f3 s2 p1 a1 T
""")

NETWORKS = {
    # He et al., Deep residual learning for image recognition, arXiv:1512.03385, table 1.
    "resnet50": """
resnet50.conv1 n1 c3 k64 i224 f7 s2 p3
resnet50.2a n1 c64 k64 i56 f1
resnet50.2b n1 c64 k64 i56 f3 p1
resnet50.2c n1 c64 k256 i56 f1
resnet50.3b n1 c128 k128 i28 f3 p1
resnet50.3c n1 c128 k512 i28 f1
resnet50.4b n1 c256 k256 i14 f3 p1
resnet50.4c n1 c256 k1024 i14 f1
resnet50.5b n1 c512 k512 i7 f3 p1
resnet50.5c n1 c512 k2048 i7 f1
""",
    # Szegedy et al., Going deeper with convolutions, arXiv:1409.4842, table 1.
    "googlenet": """
googlenet.conv1 n1 c3 k64 i224 f7 s2 p3
googlenet.conv2 n1 c64 k192 i56 f3 p1
googlenet.3a_1x1 n1 c192 k64 i28 f1
googlenet.3a_5x5 n1 c16 k32 i28 f5 p2
googlenet.4e_3x3 n1 c160 k320 i14 f3 p1
googlenet.5b_5x5 n1 c48 k128 i7 f5 p2
""",
    # Simonyan & Zisserman, arXiv:1409.1556, configuration E.
    "vgg19": """
vgg19.1_1 n1 c3 k64 i224 f3 p1
vgg19.2_1 n1 c64 k128 i112 f3 p1
vgg19.3_1 n1 c128 k256 i56 f3 p1
vgg19.4_1 n1 c256 k512 i28 f3 p1
vgg19.5_4 n1 c512 k512 i14 f3 p1
""",
    # Howard et al., arXiv:1704.04861, table 1.
    "mobilenet": """
mobilenet.conv1 n1 c3 k32 i224 f3 s2 p1
mobilenet.dw2 n1 c32 k32 i112 f3 p1 g32
mobilenet.pw2 n1 c32 k64 i112 f1
mobilenet.dw3 n1 c64 k64 i112 f3 s2 p1 g64
mobilenet.pw5 n1 c128 k256 i28 f1
mobilenet.dw8 n1 c512 k512 i14 f3 p1 g512
mobilenet.pw14 n1 c1024 k1024 i7 f1
""",
    # Xie et al., arXiv:1611.05431, table 1: ResNeXt-50 (32 x 4d).
    "resnext50": """
resnext50.2 n1 c128 k128 i56 f3 p1 g32
resnext50.3 n1 c256 k256 i28 f3 p1 g32
resnext50.4 n1 c512 k512 i14 f3 p1 g32
resnext50.5 n1 c1024 k1024 i7 f3 p1 g32
""",
    # Ronneberger et al., arXiv:1505.04597, figure 1: no padding.
    "unet": """
unet.1b n1 c64 k64 i570 f3
unet.3b n1 c256 k256 i138 f3
unet.5b n1 c1024 k1024 i30 f3
unet.up1 n1 c1024 k512 i28 f2 s2 T
unet.up4 n1 c128 k64 i196 f2 s2 T
unet.out n1 c64 k2 i388 f1
""",
    # Radford et al., arXiv:1511.06434, figure 1 (the generator), with 4 x 4 kernels.
    "dcgan": """
dcgan64.1 n8 c100 k1024 i1 f4 T
dcgan64.2 n8 c1024 k512 i4 f4 s2 p1 T
dcgan64.3 n8 c512 k256 i8 f4 s2 p1 T
dcgan64.4 n8 c256 k128 i16 f4 s2 p1 T
dcgan64.5 n8 c128 k3 i32 f4 s2 p1 T
""",
    # van den Oord et al., arXiv:1609.03499: dilated causal layers, one second at 16 kHz.
    "wavenet": """
wavenet.d1 n1 c64 k128 i16000x f2 d1
wavenet.d16 n1 c64 k128 i16000x f2 d16
wavenet.d512 n1 c64 k128 i16000x f2 d512
wavenet.1x1 n1 c64 k64 i16000x f1
""",
    # Kong et al., arXiv:2010.05646, V1: 32 frames of 80 mel bands upsampled by 8, 8, 2, 2.
    "hifigan": """
hifigan.pre n1 c80 k512 i32x f7 p3
hifigan.up1 n1 c512 k256 i32x f16 s8 p4 T
hifigan.up2 n1 c256 k128 i256x f16 s8 p4 T
hifigan.up3 n1 c128 k64 i2048x f4 s2 p1 T
hifigan.res_k11 n1 c64 k64 i4096x f11 p25 d5
hifigan.post n1 c32 k1 i8192x f7 p3
""",
    # Defossez et al., arXiv:2210.13438, section 3.1: one second at 24 kHz, down by 2, 4, 5 and 8 with kernels twice as
    # long, and up again.
    "encodec": """
encodec.conv1 n1 c1 k32 i24000x f7 p3
encodec.res1 n1 c32 k32 i24000x f3 p1
encodec.down1 n1 c32 k64 i24000x f4 s2 p1
encodec.res2 n1 c64 k64 i12000x f3 p1
encodec.down2 n1 c64 k128 i12000x f8 s4 p2
encodec.down3 n1 c128 k256 i3000x f10 s5 p3
encodec.down4 n1 c256 k512 i600x f16 s8 p4
encodec.last n1 c512 k128 i75x f7 p3
encodec.up1 n1 c512 k256 i75x f16 s8 p4 T
encodec.up4 n1 c64 k32 i12000x f4 s2 p1 T
encodec.post n1 c32 k1 i24000x f7 p3
""",
    # Cicek et al., arXiv:1606.06650, on a smaller block.
    "unet3d": """
unet3d.1b n1 c32 k64 i32x32x32 f3 p1
unet3d.2b n1 c64 k128 i16x16x16 f3 p1
unet3d.up n1 c256 k256 i8x8x8 f2 s2 T
""",
    # Tran et al., arXiv:1711.11248: a 3 x 3 x 3 kernel factored into space and time.
    "r2plus1d": """
r2plus1d.space n1 c64 k144 i8x56x56 f1x3x3 p0x1x1
r2plus1d.time n1 c144 k64 i8x56x56 f3x1x1 p1x0x0
r2plus1d.conv1 n1 c3 k45 i8x112x112 f1x7x7 s1x2x2 p0x3x3
""",
    # Tan and Le, EfficientNet, arXiv:1905.11946, table 1: the depthwise layers of B0.
    "efficientnet": """
efficientnet.dw2 n8 c32 k32 i112 f3 p1 g32
efficientnet.dw3 n8 c96 k96 i112 f3 s2 p1 g96
efficientnet.dw4 n8 c144 k144 i56 f5 s2 p2 g144
efficientnet.dw4b n8 c240 k240 i28 f5 p2 g240
efficientnet.dw5 n8 c240 k240 i28 f3 s2 p1 g240
efficientnet.dw5b n8 c480 k480 i14 f3 p1 g480
efficientnet.dw6 n8 c480 k480 i14 f5 p2 g480
efficientnet.dw7 n8 c672 k672 i14 f5 s2 p2 g672
efficientnet.dw7b n8 c1152 k1152 i7 f5 p2 g1152
efficientnet.dw8 n8 c1152 k1152 i7 f3 p1 g1152
""",
    # Liu et al., A ConvNet for the 2020s, arXiv:2201.03545, table 9: the depthwise layers of ConvNeXt-T.
    "convnext": """
convnext.2 n8 c96 k96 i56 f7 p3 g96
convnext.3 n8 c192 k192 i28 f7 p3 g192
convnext.4 n8 c384 k384 i14 f7 p3 g384
convnext.5 n8 c768 k768 i7 f7 p3 g768
""",
    # Baidu's DeepBench, the distinct shapes of its training set: speech, characters, faces, images, speakers. Its
    # batches of 4 to 32 are 4 here, or 1 where a layer is large.
    "deepbench": """
deepbench.161x700_c1_k32_f5x20_s2 n4 c1 k32 i161x700 f5x20 s2
deepbench.79x341_c32_k32_f5x10_s2 n4 c32 k32 i79x341 f5x10 s2
deepbench.48x480_c1_k16_f3 n4 c1 k16 i48x480 f3 p1
deepbench.24x240_c16_k32_f3 n4 c16 k32 i24x240 f3 p1
deepbench.12x120_c32_k64_f3 n4 c32 k64 i12x120 f3 p1
deepbench.6x60_c64_k128_f3 n4 c64 k128 i6x60 f3 p1
deepbench.108_c3_k64_f3_s2 n4 c3 k64 i108 f3 s2 p1
deepbench.54_c64_k64_f3 n4 c64 k64 i54 f3 p1
deepbench.27_c128_k128_f3 n4 c128 k128 i27 f3 p1
deepbench.14_c128_k256_f3 n4 c128 k256 i14 f3 p1
deepbench.7_c256_k512_f3 n4 c256 k512 i7 f3 p1
deepbench.224_c3_k64_f3 n4 c3 k64 i224 f3 p1
deepbench.112_c64_k128_f3 n1 c64 k128 i112 f3 p1
deepbench.56_c128_k256_f3 n1 c128 k256 i56 f3 p1
deepbench.28_c256_k512_f3 n1 c256 k512 i28 f3 p1
deepbench.14_c512_k512_f3 n4 c512 k512 i14 f3 p1
deepbench.7_c512_k512_f3 n4 c512 k512 i7 f3 p1
deepbench.224_c3_k64_f7_s2 n4 c3 k64 i224 f7 s2 p3
deepbench.28_c192_k32_f5 n4 c192 k32 i28 f5 p2
deepbench.28_c192_k64_f1 n4 c192 k64 i28 f1
deepbench.14_c512_k48_f5 n4 c512 k48 i14 f5 p2
deepbench.14_c512_k192_f1 n4 c512 k192 i14 f1
deepbench.7_c832_k256_f1 n4 c832 k256 i7 f1
deepbench.7_c832_k128_f5 n4 c832 k128 i7 f5 p2
deepbench.56_c64_k64_f3 n4 c64 k64 i56 f3 p1
deepbench.56_c64_k256_f1_s2 n4 c64 k256 i56 f1 s2
deepbench.28_c128_k128_f3 n4 c128 k128 i28 f3 p1
deepbench.28_c128_k512_f1_s2 n4 c128 k512 i28 f1 s2
deepbench.14_c256_k256_f1 n4 c256 k256 i14 f1
deepbench.14_c256_k256_f3 n4 c256 k256 i14 f3 p1
deepbench.14_c256_k1024_f1_s2 n4 c256 k1024 i14 f1 s2
deepbench.7_c512_k512_f1 n4 c512 k512 i7 f1
deepbench.7_c2048_k512_f1_s2 n4 c2048 k512 i7 f1 s2 p3
deepbench.161x700_c1_k64_f5_s2 n4 c1 k64 i161x700 f5 s2 p1
deepbench.80x350_c64_k64_f3 n1 c64 k64 i80x350 f3 p1
deepbench.80x350_c64_k128_f5_s2 n1 c64 k128 i80x350 f5 s2 p1
deepbench.40x175_c128_k128_f3 n1 c128 k128 i40x175 f3 p1
deepbench.40x175_c128_k256_f5_s2 n1 c128 k256 i40x175 f5 s2 p1
deepbench.20x84_c256_k256_f3 n1 c256 k256 i20x84 f3 p1
deepbench.20x84_c256_k512_f5_s2 n1 c256 k512 i20x84 f5 s2 p1
deepbench.10x42_c512_k512_f3 n1 c512 k512 i10x42 f3 p1
deepbench.112_c64_k64_f1 n4 c64 k64 i112 f1
deepbench.56_c64_k256_f1 n4 c64 k256 i56 f1
deepbench.56_c256_k64_f1 n4 c256 k64 i56 f1
deepbench.56_c256_k128_f1_s2 n4 c256 k128 i56 f1 s2
deepbench.28_c128_k512_f1 n4 c128 k512 i28 f1
deepbench.28_c512_k128_f1 n4 c512 k128 i28 f1
deepbench.28_c512_k256_f1_s2 n4 c512 k256 i28 f1 s2
deepbench.14_c256_k1024_f1 n4 c256 k1024 i14 f1
deepbench.28_c512_k1024_f1_s2 n4 c512 k1024 i28 f1 s2
deepbench.14_c1024_k256_f1 n4 c1024 k256 i14 f1
deepbench.14_c1024_k512_f1_s2 n4 c1024 k512 i14 f1 s2
deepbench.7_c512_k2048_f1 n4 c512 k2048 i7 f1
deepbench.14_c1024_k2048_f1_s2 n4 c1024 k2048 i14 f1 s2
deepbench.7_c2048_k512_f1 n4 c2048 k512 i7 f1
""",
}

SUITES: dict[str, tuple[Problem, ...]] = {
    "guide": GUIDE,
    "layers": LAYERS,
    "transposed": TRANSPOSED,
    **{name: _parse_all(text) for name, text in NETWORKS.items()},
}
SUITES["networks"] = tuple(problem for name in NETWORKS for problem in SUITES[name])


def find(name: str) -> tuple[Problem, ...]:
    """The problems of a suite, or of names that begin like this.

    Raises:
        ValueError: nothing is called so.

    >>> [problem.name for problem in find("resnet.3x3")]
    ['resnet.3x3_56', 'resnet.3x3_s2', 'resnet.3x3_7']
    """
    if name in SUITES:
        return SUITES[name]
    found = tuple(
        p for key in ("guide", "layers", "transposed", "networks") for p in SUITES[key] if p.name.startswith(name)
    )
    if not found:
        raise ValueError(f"no suite or problem is called {name!r}; suites are {', '.join(SUITES)}")
    return found
