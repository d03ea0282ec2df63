"""Whole models converted in place, and back: same parameters, same hooks, same numbers."""

import copy
import io
import logging

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import torch_convarith
from torch_convarith import convert, plan_conversion, revert
from torch_convarith.convert import OURS


class Residual(nn.Module):
    """Branches, tied weights, and a layer that is used twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect")
        self.body = nn.ModuleList(nn.Conv2d(4, 4, 3, padding="same", groups=g) for g in (1, 2, 4))
        self.again = self.body[0]
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.tied = nn.Conv2d(4, 4, 3, padding=1)
        self.tied.weight = self.body[0].weight
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.norm(self.stem(x))
        for layer in self.body:
            x = x + layer(x).relu()
        return self.up(self.tied(self.again(x)), output_size=[n * 2 for n in x.shape[2:]])


def outputs_and_gradients(model, x):
    model.zero_grad()
    y = model(x)
    y.square().mean().backward()
    return y, {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same_function(a, b, x):
    (ya, ga), (yb, gb) = outputs_and_gradients(a, x), outputs_and_gradients(b, x)
    torch.testing.assert_close(ya, yb)
    assert ga.keys() == gb.keys()
    for name in ga:
        torch.testing.assert_close(ga[name], gb[name], msg=lambda m, n=name: f"{n}: {m}")


def explicit(model):
    return [m for m in model.modules() if type(m).__name__.endswith("Explicit")]


def test_a_model_with_everything():
    model = Residual()
    original = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.eval().train()
    assert convert(model) is model
    assert len(explicit(model)) == 6  # `again` is one of the body
    assert model.again is model.body[0]
    assert model.tied.weight is model.body[0].weight
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in parameters.values()}
    assert model.state_dict().keys() == original.state_dict().keys()
    x = torch.randn(2, 2, 6, 6)
    assert_same_function(model, original, x)
    assert revert(model) is model
    assert not explicit(model)
    assert str(model) == str(original)
    assert_same_function(model, original, x)


@pytest.mark.parametrize("theirs", OURS, ids=lambda c: c.__name__)
def test_every_pair_of_classes(theirs):
    """One layer of each class, there and back; between, the same numbers."""
    name = theirs.__name__
    if name.startswith("Lazy"):
        return  # see below
    axes = int(name[-2]) if name[-2].isdigit() else 2
    x = torch.rand(2, 4, *(6,) * axes) + 0.1
    if "Conv" in name:
        layer = theirs(4, 4, 3, groups=2, bias=False)
    elif name.startswith("LPPool"):
        layer = theirs(2, 3, 2)
    elif name == "LocalResponseNorm":
        layer = theirs(3)
    elif name == "Fold":
        layer, x = theirs((4, 5), 2), torch.rand(2, 8, 12)
    else:
        layer = theirs(3)
    expected, before = layer(x), set(vars(layer))
    assert type(convert(layer)) is OURS[theirs]
    torch.testing.assert_close(layer(x), expected)
    assert type(revert(layer)) is theirs
    assert set(vars(layer)) == before
    assert torch.equal(layer(x), expected)


def test_lazy_layers_before_and_after_their_first_input():
    model = convert(nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyConvTranspose2d(2, 3)))
    assert [type(m).__name__ for m in model] == ["LazyConv2dExplicit", "LazyConvTranspose2dExplicit"]
    x = torch.randn(1, 3, 6, 6)
    y = model(x)
    assert [type(m).__name__ for m in model] == ["Conv2dExplicit", "ConvTranspose2dExplicit"]
    torch.testing.assert_close(revert(model)(x), y)


def test_subclasses_stay_and_are_reported(caplog):
    class Standardized(nn.Conv2d):
        def forward(self, x):
            w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return nn.functional.conv2d(x, w, self.bias)

    model = nn.Sequential(Standardized(1, 2, 3), nn.Conv2d(2, 2, 3))
    with caplog.at_level(logging.WARNING, "torch_convarith"):
        convert(model)
    assert [type(m).__name__ for m in model] == ["Standardized", "Conv2dExplicit"]
    assert "0 stays as it is: " in caplog.text
    assert "Standardized is a subclass" in caplog.text
    (entry,) = [c for c in plan_conversion(model) if c.target is None]
    assert (entry.name, entry.module) == ("0", model[0])


def test_selection():
    def fresh():
        return nn.ModuleDict(
            {"stem": nn.Conv2d(1, 1, 1), "head": nn.Conv2d(1, 1, 3), "up": nn.ConvTranspose2d(1, 1, 2)}
        )

    def names(model):
        return [name for name, m in model.named_children() if type(m).__name__.endswith("Explicit")]

    assert names(convert(fresh())) == ["stem", "head", "up"]
    assert names(convert(fresh(), include="head")) == ["head"]
    assert names(convert(fresh(), include=["h*", "up"])) == ["head", "up"]
    assert names(convert(fresh(), include=nn.ConvTranspose2d)) == ["up"]
    assert names(convert(fresh(), exclude=nn.ConvTranspose2d)) == ["stem", "head"]
    assert names(convert(fresh(), include=lambda name, m: m.kernel_size != (1, 1), exclude="up")) == ["head"]
    assert [c.reason for c in plan_conversion(fresh(), include="head", exclude="head")] == [
        "not included",
        "excluded",
        "not included",
    ]
    assert type(convert(nn.Conv1d(1, 1, 1))).__name__ == "Conv1dExplicit"


def test_hooks_flags_and_formats():
    layer = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last).eval()
    layer.weight.requires_grad_(False)
    calls = []
    layer.register_forward_pre_hook(lambda m, args: calls.append("pre"))
    layer.register_forward_hook(lambda m, args, out: calls.append("post"))
    layer.register_full_backward_hook(lambda m, gi, go: calls.append("backward"))
    layer.custom = "kept"
    convert(layer)
    assert not layer.training
    assert not layer.weight.requires_grad
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    y = layer(torch.randn(1, 2, 5, 5, requires_grad=True))
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    assert calls == ["pre", "post", "backward"]
    assert layer.custom == "kept"


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_weight_normalisation_old_and_new():
    x = torch.randn(1, 2, 9)
    for wrap in (torch.nn.utils.weight_norm, parametrizations.weight_norm, parametrizations.spectral_norm):
        twins = []
        for _ in range(2):  # old weight_norm cannot be deep-copied
            torch.manual_seed(0)
            twins.append(nn.Sequential(wrap(nn.Conv1d(2, 4, 3)), wrap(nn.ConvTranspose1d(4, 2, 3, stride=2))).eval())
        model, original = twins
        convert(model)
        assert all("Explicit" in type(m).__name__ for m in model)
        assert_same_function(model, original, x)
        assert parametrize.is_parametrized(model[0]) == parametrize.is_parametrized(original[0])
        assert model[0].matrix(9).shape == (28, 18)
        revert(model)
        assert [type(m).__name__ for m in model] == [type(m).__name__ for m in original]
        assert_same_function(model, original, x)
    convert(model)
    parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is torch_convarith.Conv1dExplicit
    torch.testing.assert_close(model(x), original(x))


def test_parametrizing_after_conversion():
    model = convert(nn.Sequential(nn.Conv1d(2, 4, 3)))
    parametrizations.weight_norm(model[0])
    assert type(model[0]).__name__ == "ParametrizedConv1dExplicit"
    assert revert(model)(torch.randn(1, 2, 9)).shape == (1, 4, 7)


def test_revert_refuses_what_torch_cannot_do():
    plain, special = (
        torch_convarith.Conv2dExplicit(1, 1, 3),
        torch_convarith.Conv2dExplicit(1, 1, 3, padding=((0, 1),) * 2),
    )
    model = nn.Sequential(plain, special)
    with pytest.raises(ValueError, match="1 cannot become a Conv2d"):
        revert(model)
    assert type(model[0]) is torch_convarith.Conv2dExplicit  # nothing was changed
    method = torch_convarith.ConvTranspose2dExplicit(1, 1, 3, method="zero_insert")
    assert repr(revert(method)) == repr(nn.ConvTranspose2d(1, 1, 3))
    for layer in (
        torch_convarith.MaxPool2dExplicit(2, ties="all"),
        torch_convarith.AvgPool2dExplicit(2, dilation=2),
        torch_convarith.FoldExplicit((4, 4), 2, average=True),
        torch_convarith.Conv1dExplicit(1, 1, 3, padding="same", stride=2, extended=True),
    ):
        with pytest.raises(ValueError, match="cannot become a"):
            revert(layer)


def test_saving_and_copying_converted_models():
    model = convert(Residual())
    x = torch.randn(1, 2, 6, 6)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert len(explicit(twin)) == 6
        torch.testing.assert_close(twin(x), model(x))


def test_compile_and_export():
    torch._dynamo.reset()
    model = Residual().eval()
    original = copy.deepcopy(model)
    convert(model)
    x = torch.randn(1, 2, 6, 6)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    assert_same_function(compiled._orig_mod, original, x)
    torch.testing.assert_close(compiled(x), original(x))
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), original(x))
    assert (
        sum("torch_convarith" in str(n.target) for n in program.graph.nodes) == 7
    )  # `again` is one layer, called twice


def test_converting_a_model_that_was_compiled_already():
    """Its code is compiled anew for the new classes: the guards see them."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append({str(node.target) for node in graph.graph.nodes if node.op == "call_function"})
        return graph

    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    x = torch.randn(1, 1, 5, 5)
    expected = compiled(x)
    convert(compiled)
    assert type(model[0]) is torch_convarith.Conv2dExplicit
    torch.testing.assert_close(compiled(x), expected)
    if torch.__version__ < "2.13":
        return  # its guards do not see a module's class: the old code goes on, with the same values
    assert len(graphs) == 2
    assert any("_contract" in target for target in graphs[1])
    assert not any("_contract" in target for target in graphs[0])
