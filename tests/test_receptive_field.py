"""Receptive fields against gradients (equal sets of pixels), recurrences, and published tables."""

import networks
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from torch_convarith.analysis.receptive_field import receptive_field
from torch_convarith.analysis.relation import Relation
from torch_convarith.models import alexnet


def by_gradient(model, shape, index):
    """Input pixels on which the output at ``index``, in a random mixture of its channels, depends."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(shape, generator=generator, dtype=torch.double, requires_grad=True)
    y = model(x)
    mixture = 0.5 + torch.rand(y.shape[1], generator=generator, dtype=torch.double)
    (y[(0, slice(None), *index)] * mixture).sum().backward()
    return x.grad[0].abs().sum(0) > 0


def compare(model, shape, positions=3):
    """The sets of some outputs, the corners' and the middle's among them."""
    model = networks.positive(model)
    field = receptive_field(model, shape)
    sizes = field.graph.outputs[0].sizes
    chosen = {tuple(0 for _ in sizes), tuple(n - 1 for n in sizes), tuple(n // 2 for n in sizes)}
    for n in range(positions - 3):
        chosen.add(tuple((n * 7 + 3 * a + 1) % size for a, size in enumerate(sizes)))
    for index in sorted(chosen):
        mine = field.input_region(None, index).mask
        assert torch.equal(mine, by_gradient(model, shape, index)), (index, mine.sum())
    return field


NETWORKS = {
    "resnet18": (lambda: networks.resnet18(thin=16, pool="avg", classes=0), (1, 3, 97, 129)),
    "resnet50": (lambda: networks.resnet50(thin=16, pool="avg", classes=0), (1, 3, 128, 97)),
    "vgg16": (lambda: networks.vgg(networks.VGG_16, thin=16, pool="avg"), (1, 3, 160, 96)),
    "googlenet": (lambda: networks.GoogLeNet(pool="avg"), (1, 3, 128, 115)),
    "unet": (lambda: networks.UNet(pool="avg", depth=3), (1, 1, 92, 108)),
    "unet-padded-bilinear": (lambda: networks.UNet(pool="avg", depth=3, padding=1, up="bilinear"), (1, 1, 64, 48)),
    "unet3d": (lambda: networks.UNet(axes=3, depth=2, width=2, padding=1, pool="avg"), (1, 1, 16, 24, 20)),
    "wavenet": (lambda: networks.WaveNet(stacks=1), (1, 1, 1200)),
    "deeplab": (lambda: networks.DeepLab(pool="avg"), (1, 3, 97, 65)),
    "deeplab-no-image": (lambda: networks.DeepLab(pool="avg", rates=(1, 3, 5), image=False), (1, 3, 129, 97)),
    "convnext": (lambda: networks.convnext(), (1, 3, 96, 64)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_by_gradient(name):
    make, shape = NETWORKS[name]
    compare(make(), shape, positions=5)


class Layers(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.first = nn.Conv2d(2, 4, 3, padding=1)

    def forward(self, x):
        return self.function(self.first(x))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.interpolate(x, size=(10, 31)),
        lambda x: F.interpolate(x, size=(7, 9), mode="nearest-exact"),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear"),
        lambda x: F.interpolate(x, size=(24, 33), mode="bilinear", align_corners=True),
        lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
        lambda x: F.interpolate(x, size=(5, 4), mode="area"),
        lambda x: F.adaptive_avg_pool2d(x, (5, 7)),
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: F.avg_pool2d(x, (3, 2), (2, 3), (1, 0), ceil_mode=True),
        lambda x: F.lp_pool2d(x, 2, 3, 2),
        lambda x: F.pad(x, (2, 1, 0, 3), mode="reflect"),
        lambda x: F.pad(x, (2, 1, 0, 3), mode="circular"),
        lambda x: F.pad(x, (2, -1, 0, 3)),
        lambda x: x[:, :, 1::2, 3:-1],
        lambda x: torch.cat([x[..., :3, :], x[..., 5:, :] * 2], 2),
        lambda x: x.flip(3) + x,
        lambda x: x.roll((2, -3), (2, 3)),
        lambda x: F.pixel_shuffle(x, 2),
        lambda x: F.pixel_unshuffle(x[..., :11], 1),
        lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
        lambda x: x.mean(3, keepdim=True) * x,
        lambda x: F.group_norm(x, 2),
        lambda x: F.instance_norm(x),
        lambda x: F.local_response_norm(x, 3),
        lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).unflatten(2, x.shape[2:]),
        lambda x: torch.stack([x, x + 1], 1).sum(1),
        lambda x: x.softmax(2),
        lambda x: F.fold(mixed(F.unfold(x, (3, 2), 2, (1, 0), (2, 3))), (11, 12), (3, 2), 2, (1, 0), (2, 3)),
        lambda x: F.glu(x, 1),
        lambda x: F.glu(x, 3),
        lambda x: F.conv_transpose2d(
            x, torch.rand(4, 4, 3, 2).double() + 1, stride=(2, 3), padding=(1, 0), dilation=(1, 2)
        ),
        lambda x: F.conv_transpose2d(x, torch.rand(4, 4, 3, 3).double() + 1, stride=1, dilation=2, output_padding=1),
        lambda x: F.conv2d(x, torch.rand(4, 2, 3, 1).double() + 1, stride=(3, 4), dilation=(2, 1), groups=2),
        lambda x: torch.cat(x.split(4, 3)[::-1], 3),
    ],
    ids=lambda f: None,
)
def test_functions_by_gradient(function):
    field = compare(Layers(function), (1, 2, 11, 12), positions=9)
    assert not any("everything" in node.note for node in field.graph.nodes)


class Resize(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.options = options

    def forward(self, x):
        return F.interpolate(x, **self.options)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_every_resizing_by_its_matrix(size):
    modes = ("nearest", "nearest-exact", "linear", "area")
    options = [{"size": o, "mode": mode} for o in (1, 2, 3, 7, 10, 15) for mode in modes]
    options += [{"size": o, "mode": "linear", "align_corners": True} for o in (1, 2, 3, 7, 10, 15)]
    options += [{"scale_factor": s, "mode": m} for s in (1.5, 2.0, 2.5, 3.0) for m in modes[:3]]
    unit = torch.eye(size, dtype=torch.double)[None]  # channel c is 1 at position c
    for option in options:
        weights = Resize(option)(unit)[0]  # [input, output]
        # place 1/2 * 2/10 + ... is a whole number in fractions and misses one by 3e-17 in float64
        field = receptive_field(Resize(option), [(1, 1, size)])[None]
        for o in range(weights.shape[1]):
            assert field.input_region(o).mask.tolist() == (weights[:, o] > 1e-15).tolist(), (option, o)


def mixed(windows):
    """Every channel of (N, C, L) from all."""
    weight = torch.rand(windows.shape[1], windows.shape[1], device=windows.device, dtype=windows.dtype) + 1
    return F.linear(windows.transpose(1, 2), weight).transpose(1, 2)


def test_per_axis_strides_and_asymmetric_kernels():
    net = nn.Sequential(nn.Conv2d(1, 2, (3, 5), (2, 1), (1, 0)), nn.ReLU(), nn.Conv2d(2, 2, (2, 3), (1, 3), (0, 1)))
    field = compare(net, (1, 1, 15, 23), positions=7)["2"]
    assert (field.size, field.jump, field.start, field.padding) == ((5, 7), (2, 3), (1.5, 2.5), ((1, 1), (1, 1)))
    # the recurrence, written out: start' = start + ((k-1)/2 - p) j
    assert field.start == (0.5 + (1 - 1) * 1 + (0.5 - 0) * 2, 0.5 + (2 - 0) * 1 + (1 - 1) * 1)


def test_padding_modes():
    for mode in ("reflect", "replicate", "circular"):
        compare(
            nn.Sequential(nn.Conv2d(1, 2, 5, 2, 2, padding_mode=mode), nn.Conv2d(2, 2, 3, padding=1)), (1, 1, 9, 12), 9
        )


def test_guide_facts():
    layers = nn.Sequential(nn.Conv1d(1, 1, 3, 2, 1), nn.Conv1d(1, 1, 3, 2, 1))
    field = receptive_field(layers, 5)
    assert [(f.output, f.jump, f.size, f.start) for f in field.values()] == [
        ((5,), (1,), (1,), (0.5,)),
        ((3,), (2,), (3,), (0.5,)),
        ((2,), (4,), (7,), (0.5,)),
    ]
    field = receptive_field(nn.Sequential(nn.Conv1d(1, 1, 3, 3, 1), nn.Conv1d(1, 1, 2)), 12)["1"]
    assert (field.size, field.jump) == ((6,), (3,))
    assert receptive_field(nn.Conv1d(1, 1, 3, padding=2, dilation=2), 9)[None].start == (0.5,)
    two = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3))
    assert receptive_field(two, 9)["1"].size == receptive_field(nn.Conv2d(1, 1, 5), 9)[None].size == (5, 5)


def test_dilation_has_holes():
    field = receptive_field(nn.Conv2d(1, 1, 3, padding=2, dilation=2), 9)[None]
    assert field.holes == (True, True)
    assert field.offsets(0) == (-2, 0, 2)
    assert field.mask.int().tolist() == [[1, 0, 1, 0, 1], [0] * 5, [1, 0, 1, 0, 1], [0] * 5, [1, 0, 1, 0, 1]]
    assert len(field.input_region((4, 4))) == 9
    assert not field.input_region((4, 4)).is_full_box


def test_output_region_is_the_converse():
    net = networks.UNet(depth=1, padding=1, width=2)
    fields = receptive_field(net, (12, 14))
    for pixel in ((0, 0), (5, 7), (11, 13)):
        ahead = fields.output_region(None, pixel)
        for index in ((0, 0), (3, 9), (6, 6), (11, 11)):
            assert (index in ahead) == (pixel in fields.input_region(None, index))


def published(model, shape, names):
    fields = receptive_field(model, shape)
    return [(fields[n].size[0], fields[n].jump[0], fields[n].padding[0][0]) for n in names]


def test_published_vgg():
    """github.com/google-research/receptive_field, RECEPTIVE_FIELD_TABLE.md: RF, effective stride, effective padding."""
    names = ["conv1_1", "pool1", "conv2_1", "pool2", "conv3_1", "conv3_2", "pool3", "conv4_1", "conv4_2", "pool4",
             "conv5_1", "conv5_2", "pool5"]  # fmt: skip
    assert published(networks.vgg(networks.VGG_A, 16), (1, 3, 224, 224), names) == [
        (3, 1, 1), (4, 2, 1), (8, 2, 3), (10, 4, 3), (18, 4, 7), (26, 4, 11), (30, 8, 11), (46, 8, 19), (62, 8, 27),
        (70, 16, 27), (102, 16, 43), (134, 16, 59), (150, 32, 59),
    ]  # fmt: skip
    assert published(networks.vgg(networks.VGG_16, 16), (1, 3, 224, 224), names) == [
        (3, 1, 1), (6, 2, 2), (10, 2, 4), (16, 4, 6), (24, 4, 10), (32, 4, 14), (44, 8, 18), (60, 8, 26), (76, 8, 34),
        (100, 16, 42), (132, 16, 58), (164, 16, 74), (212, 32, 90),
    ]  # fmt: skip


def test_published_alexnet():
    with torch.device("meta"):
        model = alexnet()
    names = [f"features.{n}" for n in ("conv1", "pool1", "conv2", "conv3", "conv4", "conv5", "pool5")]
    assert published(model, (1, 3, 227, 227), names) == [
        (11, 4, 0), (19, 8, 0), (51, 8, 16), (99, 16, 32), (131, 16, 48), (163, 16, 64), (195, 32, 64),
    ]  # fmt: skip


BLOCKS = [f"block{n}.{{}}.relu_2" for n in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("counts", "size", "lo", "expected"),
    [
        ((3, 4, 6, 3), 224, 0, [(35, 8, 15), (99, 16, 47), (291, 32, 143), (483, 32, 239)]),
        ((3, 4, 6, 3), 321, 1, [(35, 8, 17), (99, 16, 49), (291, 32, 145), (483, 32, 241)]),
        ((3, 4, 23, 3), 224, 0, [(35, 8, 15), (99, 16, 47), (835, 32, 415), (1027, 32, 511)]),
        ((3, 8, 36, 3), 224, 0, [(35, 8, 15), (163, 16, 79), (1315, 32, 655), (1507, 32, 751)]),
    ],
    ids=["resnet50-224", "resnet50-321", "resnet101-224", "resnet152-224"],
)
def test_published_resnets(counts, size, lo, expected):
    names = [name.format(count - 1) for name, count in zip(BLOCKS, counts, strict=True)]
    assert published(networks.SlimResNet(counts, pool_lo=lo), (1, 3, size, size), names) == expected


def test_published_mobilenet():
    """v1 at 224: "SAME" padding is (0, 1) at stride 2."""
    layers = nn.Sequential()
    strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
    layers.add_module("conv0", nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), 0), nn.Conv2d(3, 4, 3, 2)))
    for n, s in enumerate(strides, 1):
        pad = nn.ConstantPad2d((0, 1, 0, 1) if s == 2 else 1, 0)
        layers.add_module(f"conv{n}", nn.Sequential(pad, nn.Conv2d(4, 4, 3, s, groups=4), nn.Conv2d(4, 4, 1)))
    names = ["conv0.1", *(f"conv{n}.2" for n in range(1, 14))]
    assert published(layers, (1, 3, 224, 224), names) == [
        (3, 2, 0), (7, 2, 2), (11, 4, 2), (19, 4, 6), (27, 8, 6), (43, 8, 14), (59, 16, 14), (91, 16, 30),
        (123, 16, 46), (155, 16, 62), (187, 16, 78), (219, 16, 94), (251, 32, 94), (315, 32, 126),
    ]  # fmt: skip


class Shifted(nn.Module):
    """A residual whose 1x1 shortcut starts where the unpadded branch does not."""

    def __init__(self, k):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 1, k, 2, (k - 1) // 2), nn.Conv2d(1, 1, 1, 2)

    def forward(self, x):
        return self.a(x) + self.b(x)


def test_misaligned_paths():
    assert receptive_field(Shifted(3), 9).misaligned == []
    found = receptive_field(Shifted(4), 10).misaligned
    assert [(m.node, m.axis, m.branches) for m in found] == [
        ("add", axis, (("a", 1.0, 2.0), ("b", 0.5, 2.0))) for axis in (0, 1)
    ]
    assert receptive_field(networks.UNet(depth=2, padding=1), 32).misaligned == []
    assert receptive_field(networks.UNet(depth=2), 44).misaligned == []
    assert receptive_field(networks.resnet50(thin=16), 224).misaligned == []
    assert receptive_field(networks.SlimResNet((3, 4, 6, 3)), 224).misaligned == []


def test_transposed_jump_and_phases():
    net = nn.Sequential(nn.Conv1d(1, 1, 3, 2, 1), nn.ConvTranspose1d(1, 1, 4, 2, 1))
    fields = receptive_field(net, 17)
    up = fields["1"]
    assert up.jump == (1,)
    assert up.offsets(0, 0) == (-3, -2, -1, 0, 1)  # coarse units -1 and 0, each seeing three pixels
    deeper = receptive_field(nn.ConvTranspose1d(1, 1, 4, 2, 1), 8)[None]
    assert deeper.jump == (0.5,)
    assert deeper.start == (0.25,)


def test_statistics_can_be_left_out():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.GroupNorm(1, 2))
    assert len(receptive_field(net, 9, "1").input_region((4, 4))) == 81
    assert len(receptive_field(net, 9, "1", statistics=False).input_region((4, 4))) == 9
    assert receptive_field(net, 9, "1").size == (3, 3)


def test_unknown_calls_see_everything_and_say_so():
    net = Layers(lambda x: torch.fft.fft2(x).real)
    fields = receptive_field(net, 9)
    assert len(fields.input_region(None, (0, 0))) == 81
    assert any("taken to see everything" in node.note for node in fields.graph.nodes)


def test_stacking_an_axis_says_that_it_is_not_exact():
    fields = receptive_field(Layers(lambda x: torch.stack(x.unbind(2), 2)), 9)
    assert "not told apart" in fields.graph.outputs[0].note


def test_several_inputs():
    class Two(nn.Module):
        def forward(self, a, b):
            return F.avg_pool2d(a, 3, 1, 1) + F.avg_pool2d(b, 5, 1, 2)

    fields = receptive_field(Two(), [(1, 1, 8, 8), (1, 1, 8, 8)], input=1)
    assert fields[None].size == (5, 5)
    assert receptive_field(Two(), [(1, 1, 8, 8), (1, 1, 8, 8)])[None].size == (3, 3)


def test_errors():
    field = receptive_field(nn.Conv2d(1, 1, 3), 9)
    with pytest.raises(KeyError, match="no node is called"):
        field["conf"]
    with pytest.raises(IndexError, match="outside"):
        field.input_region(None, (7, 0))
    with pytest.raises(IndexError, match="spatial axes"):
        field.output_region(None, (1, 2, 3))
    with pytest.raises(RuntimeError, match="does not run"):
        receptive_field(nn.Conv2d(1, 1, 9), 5)


def test_relations_of_every_kind_match_their_matrix():
    for relation in (
        Relation.window(9, 5, 3, 2, 1),
        Relation.transposed(5, 9, 3, 2, 1),
        Relation.adaptive(10, 4),
        Relation.window(9, 9, 5, 1, 2, 1, "reflect"),
        Relation.full(3, 4),
    ):
        for o, row in enumerate(relation.matrix().tolist()):
            assert [i for i, v in enumerate(row) if v] == relation.seen(o)


def test_inner_nodes_by_gradient():
    model = networks.positive(networks.resnet18(thin=16, pool="avg", classes=0))
    field = receptive_field(model, (1, 3, 64, 64))
    stage = field["layer1.1.relu_1"]
    assert (stage.size, stage.jump) == ((43, 43), (4, 4))
    begin = nn.Sequential(model.conv1, model.bn1, nn.ReLU(), model.pool, model.layer1)
    assert torch.equal(stage.input_region((9, 8)).mask, by_gradient(begin, (1, 3, 64, 64), (9, 8)))


class Branches(nn.Module):
    """A sum of branches, or their concatenation."""

    def __init__(self, branches, join):
        super().__init__()
        self.branches, self.join = nn.ModuleList(branches), join

    def forward(self, x):
        found = [branch(x) for branch in self.branches]
        return sum(found) if self.join == "sum" else torch.cat(found, 1)


@st.composite
def layers(draw, axes, depth=2):
    """(layer, channels out) that takes 2 channels and any size that it fits."""
    conv = (nn.Conv1d, nn.Conv2d)[axes - 1]
    kind = draw(st.sampled_from(["conv", "pool", "up", "resize", "branches" if depth else "conv"]))
    k, s, d = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    if kind == "conv":
        mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "circular", "replicate"]))
        return conv(2, 2, k, s, draw(st.integers(0, 2)), d, padding_mode=mode)
    if kind == "pool":
        pool = (nn.AvgPool1d, nn.AvgPool2d)[axes - 1]
        return pool(k, s, draw(st.integers(0, k // 2)), ceil_mode=draw(st.booleans()))
    if kind == "up":
        up = (nn.ConvTranspose1d, nn.ConvTranspose2d)[axes - 1]
        return up(2, 2, k, s, draw(st.integers(0, 1)), draw(st.integers(0, max(s, d) - 1)), dilation=d)
    if kind == "resize":
        mode = draw(st.sampled_from(["nearest", ("linear", "bilinear")[axes - 1]]))
        return nn.Upsample(scale_factor=draw(st.sampled_from([0.5, 2, 4])), mode=mode)
    join = draw(st.sampled_from(["sum", "cat"]))
    odd = draw(st.sampled_from([1, 3, 5]))
    first = conv(2, 2, odd, s, d * (odd - 1) // 2, d)
    second = conv(2, 2, 1, s)
    body = Branches([first, second], join)
    return nn.Sequential(body, conv(2 if join == "sum" else 4, 2, 1))


@given(st.data(), st.integers(1, 2))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_random_networks_by_gradient(data, axes):
    model = networks.positive(nn.Sequential(*data.draw(st.lists(layers(axes), min_size=1, max_size=5))))
    shape = (1, 2, *((23,), (11, 9))[axes - 1])
    try:
        with torch.no_grad():
            y = model(torch.rand(shape, dtype=torch.double))
    except RuntimeError:
        assume(False)
    assume(0 < y.numel() < 20000)
    fields = receptive_field(model, shape)
    last = fields[None]
    assert last.output == tuple(y.shape[2:])
    index = tuple(data.draw(st.integers(0, n - 1)) for n in y.shape[2:])
    region = last.input_region(index)
    assert torch.equal(region.mask, by_gradient(model, shape, index))
    # the arithmetic of unbounded windows holds the set: with repeating borders only in size
    if all(getattr(m, "padding_mode", "zeros") == "zeros" and not isinstance(m, nn.Upsample) for m in model.modules()):
        for axis in range(axes):
            seen = set(last.offsets(axis, index[axis]))
            assert {p[axis] for p in region.pixels} <= seen
            assert max(seen) - min(seen) + 1 <= last.size[axis]
    for pixel in list(region.pixels)[:3]:
        assert index in last.output_region(pixel)
