"""The layers beside torch.nn's: construction, parameters, values, state, geometry and matrix."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import nn

import torch_convarith
from torch_convarith import GeometryError

AXES = [1, 2, 3]
SIZES = {1: (9,), 2: (6, 7), 3: (4, 5, 4)}


def classes(axes, transposed=False):
    name = f"ConvTranspose{axes}d" if transposed else f"Conv{axes}d"
    return getattr(torch_convarith, f"{name}Explicit"), getattr(nn, name)


def pair(axes, *args, transposed=False, method="pattern", **kwargs):
    """Our layer and torch's, made from the same seed."""
    ours, theirs = classes(axes, transposed)
    torch.manual_seed(1)
    a = ours(*args, method=method, **kwargs)
    torch.manual_seed(1)
    return a, theirs(*args, **kwargs)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("axes", AXES)
def test_construction_is_torchs(axes, transposed):
    options = {"stride": 2, "padding": 1, "dilation": 1, "groups": 2, "dtype": torch.float64}
    ours, theirs = pair(axes, 4, 6, 3, transposed=transposed, **options)
    assert isinstance(ours, type(theirs))
    assert [name for name, _ in ours.named_parameters()] == ["weight", "bias"]
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)  # initialised alike
        assert a.dtype == torch.float64
    assert repr(ours) == repr(theirs).replace(type(theirs).__name__, type(ours).__name__)
    assert pair(axes, 4, 6, 3, transposed=transposed, bias=False)[0].bias is None
    expected = [*inspect.signature(type(theirs)).parameters, "method", "extended"]
    assert list(inspect.signature(type(ours)).parameters) == expected


@pytest.mark.parametrize("method", ["pattern", "matrix"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("axes", AXES)
def test_conv_layers(axes, mode, method):
    for padding, stride in ((1, 2), ("same", 1), ("valid", 1)):
        options = {"padding": padding, "stride": stride, "padding_mode": mode, "groups": 2, "dilation": 2}
        ours, theirs = pair(axes, 4, 6, 2, method=method, **options)
        x = torch.randn(2, 4, *SIZES[axes])
        torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(ours(x[0]), theirs(x)[0])
        y = ours(x) - ours.bias.view(-1, *(1,) * axes)
        C = ours.matrix(SIZES[axes])
        torch.testing.assert_close(C @ x.flatten(1).T, y.flatten(1).T)
        torch.testing.assert_close(C.to_dense() @ x.flatten(1).T, y.flatten(1).T)
        assert ours.geometry(SIZES[axes]).output_size == tuple(y.shape[2:])


@pytest.mark.parametrize("method", ["pattern", "zero_insert", "matrix"])
@pytest.mark.parametrize("axes", AXES)
def test_conv_transpose_layers(axes, method):
    options = {"stride": 3, "padding": 1, "output_padding": 1, "groups": 2, "dilation": 2}
    ours, theirs = pair(axes, 4, 6, 2, transposed=True, method=method, **options)
    x = torch.randn(2, 4, *SIZES[axes])
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x[0]), theirs(x[0]))
    smallest = ours.geometry(SIZES[axes], [n - 1 for n in ours(x).shape[2:]]).input_size
    for extra in range(3):
        wanted = [n + extra for n in smallest]
        for output_size in (wanted, torch.Size(wanted), [2, 6, *wanted]):
            y = ours(x, output_size=output_size)
            torch.testing.assert_close(y, theirs(x, output_size=output_size))
        assert ours.geometry(SIZES[axes], wanted).input_size == tuple(wanted)
        C = ours.matrix(SIZES[axes], wanted)
        assert C.is_transposed
        torch.testing.assert_close(C @ x.flatten(1).T, (y - ours.bias.view(-1, *(1,) * axes)).flatten(1).T)
        torch.testing.assert_close(C.to_dense() @ x.flatten(1).T, C @ x.flatten(1).T)
    for wrong in ([n - 1 for n in smallest], [n + 3 for n in smallest], [1, *wanted]):
        with pytest.raises(ValueError, match=r"output_size must have|requested an output size"):
            ours(x, output_size=wrong)


@pytest.mark.parametrize("transposed", [False, True])
def test_state_goes_both_ways(transposed):
    ours, theirs = pair(2, 4, 6, 3, transposed=transposed)
    with torch.no_grad():
        theirs.weight.add_(1)
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.weight, theirs.weight)
    with torch.no_grad():
        ours.weight.add_(1)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours.weight, theirs.weight)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_copies_keep_the_method():
    layer = torch_convarith.ConvTranspose2dExplicit(2, 3, 3, stride=2, method="zero_insert")
    x = torch.randn(1, 2, 4, 4)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)):
        assert twin.method == "zero_insert"
        assert torch.equal(twin(x), layer(x))
    assert "method=zero_insert" in repr(layer)


def test_devices_dtypes_and_formats():
    meta = torch_convarith.Conv2dExplicit(2, 3, 3, device="meta", dtype=torch.bfloat16)
    assert meta.weight.device.type == "meta"
    assert meta(torch.empty(1, 2, 5, 5, device="meta", dtype=torch.bfloat16)).shape == (1, 3, 3, 3)
    layer = torch_convarith.Conv2dExplicit(2, 3, 3).double()
    assert layer(torch.zeros(1, 2, 5, 5, dtype=torch.float64)).dtype == torch.float64


def test_layers_refuse():
    layer = torch_convarith.Conv2dExplicit(2, 3, (7, 3))
    with pytest.raises(GeometryError, match=r"kernel 7 .* axis 2 \(height\): relationship 6"):
        layer(torch.zeros(1, 2, 5, 9))
    with pytest.raises(GeometryError, match=r"kernel 7 .* axis 2 \(height\): relationship 6"):
        layer.geometry((5, 9))
    with pytest.raises(GeometryError, match=r"kernel 7 .* axis 2 \(height\): relationship 6"):
        layer.matrix((5, 9))
    with pytest.raises(ValueError, match="method must be one of pattern, matrix, not 'zero_insert'"):
        torch_convarith.Conv2dExplicit(2, 3, 3, method="zero_insert")
    with pytest.raises(ValueError, match="groups"):
        torch_convarith.Conv2dExplicit(3, 3, 3, groups=2)
    with pytest.raises(ValueError, match="Only"):
        torch_convarith.ConvTranspose2dExplicit(3, 3, 3, padding_mode="circular")


def test_a_wrong_output_shape_would_be_caught(monkeypatch):
    """Every forward verifies what the operator gave: here an operator that forgets a column."""
    from torch_convarith import _ops

    layer = torch_convarith.Conv2dExplicit(1, 1, 3, method="matrix")
    right = _ops.conv
    monkeypatch.setattr(_ops, "conv", lambda *a, **k: right(*a, **k)[..., :-1])
    with pytest.raises(GeometryError, match=r"relationship 15 gives along axis 3 \(width\) an output of 3, but .* 2"):
        layer(torch.zeros(1, 1, 5, 5))


def test_training_step_equals_torchs():
    def network(conv, transpose):
        torch.manual_seed(3)
        return nn.Sequential(
            conv(1, 4, 3, stride=2, padding=1), nn.ReLU(), transpose(4, 1, 3, stride=2, output_padding=1)
        )

    ours = network(torch_convarith.Conv2dExplicit, torch_convarith.ConvTranspose2dExplicit)
    theirs = network(nn.Conv2d, nn.ConvTranspose2d)
    x = torch.randn(4, 1, 8, 8)
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_old_checkpoints():
    """Modules pickled before an option existed, and state_dicts without metadata, as files of years ago have them."""
    layer = torch_convarith.Conv2dExplicit(2, 3, 3, padding=1)
    state = {k: v for k, v in layer.__getstate__().items() if k not in ("padding_mode", "method", "extended")}
    old = torch_convarith.Conv2dExplicit.__new__(torch_convarith.Conv2dExplicit)
    old.__setstate__(state)
    x = torch.randn(1, 2, 5, 5)
    assert (old.padding_mode, old.method, old.extended) == ("zeros", "pattern", False)
    assert torch.equal(old(x), layer(x))
    plain = {k: v.clone() for k, v in nn.Conv2d(2, 3, 3).state_dict().items()}  # a dict, no _metadata
    layer.load_state_dict(plain)
    assert torch.equal(layer.weight, plain["weight"])
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        layer.load_state_dict({"weight": torch.zeros(3, 2, 5, 5), "bias": torch.zeros(3)})
