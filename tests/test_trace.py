"""trace(): tables that are known to the last digit, and every number against counting by hand."""

import json
import subprocess
import sys
import time

import networks
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torch_convarith as ca
from torch_convarith.analysis.capture import CaptureError
from torch_convarith.analysis.trace import trace
from torch_convarith.models import alexnet, lenet5


def test_lenet5():
    table = trace(lenet5())
    assert [(r.name, r.output, r.parameters, r.r and r.r[0]) for r in table.layers] == [
        ("C1", (6, 28, 28), 156, 5),
        ("S2", (6, 14, 14), 0, 6),
        ("C3", (16, 10, 10), 2416, 14),
        ("S4", (16, 5, 5), 0, 16),
        ("C5", (120, 1, 1), 48120, 32),
        ("F6", (84,), 10164, 32),
        ("output", (10,), 850, 32),
    ]
    assert table.parameters == 61706
    assert [r.relationship for r in table.layers[:5]] == [(1, 1), (7, 7), (1, 1), (7, 7), (1, 1)]
    assert table["C5"].input == (16, 5, 5)
    assert any("i = 10" in e.printed and e.right.startswith("i = 5") for e in table.errata)
    assert "erratum" in str(table)


def test_alexnet():
    with torch.device("meta"):
        model = alexnet()
    table = trace(model)
    assert [(r.name.split(".")[1], r.output[-1], r.parameters) for r in table.layers] == [
        ("conv1", 55, 34944),
        ("pool1", 27, 0),
        ("conv2", 27, 307456),
        ("pool2", 13, 0),
        ("conv3", 13, 885120),
        ("conv4", 13, 663936),
        ("conv5", 13, 442624),
        ("pool5", 6, 0),
        ("fc6", 4096, 37752832),
        ("fc7", 4096, 16781312),
        ("fc8", 1000, 4097000),
    ]
    assert table.parameters == 60965224
    assert [r.r[0] for r in table.layers[:8]] == [11, 19, 51, 67, 99, 131, 163, 195]
    assert [r.groups for r in table.layers if r.kind == "conv"] == [1, 2, 1, 2, 2]
    conv2 = table["features.conv2"]
    assert conv2.input == (96, 27, 27)
    assert table["features.pool2"].input == (256, 27, 27)
    assert tuple(model.features.conv2.weight.shape) == (256, 48, 5, 5)
    assert len(table.errata) == 4
    norm = model.features.norm1
    assert (norm.size, norm.alpha / norm.size, norm.beta, norm.k) == (5, 1e-4, 0.75, 2.0)


def test_alexnets_normalisation_is_the_papers():
    a = torch.arange(1.0, 9.0)[None, :, None, None].double()
    with torch.device("meta"):
        norm = alexnet().features.norm1
    expected = [
        v / (2 + 1e-4 * sum(u * u for u in a.flatten().tolist()[max(0, i - 2) : i + 3])) ** 0.75
        for i, v in enumerate(a.flatten().tolist())
    ]
    torch.testing.assert_close(norm(a).flatten(), torch.tensor(expected, dtype=torch.double))


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), groups=2), (7, 9)),
        (nn.Conv1d(2, 3, 3, 2, 4, dilation=3), (11,)),
        (nn.Conv2d(2, 2, 3, padding="same", padding_mode="circular"), (4, 5)),
        (ca.Conv2dExplicit(2, 3, 3, padding=2), (5, 6)),
        (ca.ConvTranspose2dExplicit(4, 2, 3, 2, 1, 1, groups=2), (4, 5)),
    ],
)
def test_macs_are_the_nonzeros_of_c(layer, size):
    table = trace(layer, (layer.in_channels, *size))
    with torch.no_grad():
        ones = torch.ones_like(layer.weight)
    if isinstance(layer, ca.ConvTranspose2dExplicit):
        matrix = layer.matrix(size)
    else:
        matrix = ca.conv_matrix(
            ones, size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode
        )
    assert table.macs == matrix.nnz == int((matrix.to_dense() != 0).sum())
    (row,) = table.layers
    assert row.parameters == sum(p.numel() for p in layer.parameters())


def test_inserted_zeros_are_counted():
    k, s, p, a, i = 3, 2, 1, 1, 4
    (row,) = trace(nn.ConvTranspose1d(2, 3, k, s, p, a), (2, i)).layers
    # by hand: stretched input, direct convolution at unit stride; "z" is an inserted zero, " " a padded one
    stretched = "z".join("x" * i)
    padded = " " * (k - p - 1) + stretched + " " * (k - p - 1 + a)
    windows = [padded[o : o + k] for o in range(len(padded) - k + 1)]
    assert row.zero_macs == 2 * 3 * sum(w.count("z") for w in windows)
    assert row.macs == 2 * 3 * sum(w.count("x") for w in windows)
    assert (row.relationship, row.a, row.output) == ((14,), (1,), (3, 8))


def test_resnet50_known_totals_and_speed():
    model = networks.resnet50()
    start = time.perf_counter()
    table = trace(model, 224)
    seconds = time.perf_counter() - start
    assert table.parameters == 25557032
    assert table.usual_macs == 4089184256
    assert table.macs < table.usual_macs
    assert table.captured_by == "meta"
    assert table["layer4.2.relu_2"].r == (427, 427)
    assert seconds < 2


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(4, 1, 3, 3))
        self.up = nn.Parameter(torch.ones(4, 1, 2, 2))

    def forward(self, x):
        y = F.relu(F.conv2d(x, self.w, stride=2, padding=1))
        y = F.max_pool2d(y, 2)
        return F.conv_transpose2d(y, self.up, stride=2)


def test_functional_calls():
    table = trace(Functional(), (1, 1, 12, 14))
    assert [(r.name, r.output, r.parameters, r.r) for r in table.layers] == [
        ("conv2d", (4, 6, 7), 36, (3, 3)),
        ("max_pool2d", (4, 3, 3), 0, (5, 5)),
        ("conv_transpose2d", (1, 6, 6), 16, (5, 5)),
    ]


def test_our_functions_and_layers_are_understood():
    class Ours(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = ca.Conv2dExplicit(1, 2, 3, padding=1, padding_mode="reflect")
            self.b = ca.ConvTranspose2dExplicit(2, 1, 3, stride=2)

        def forward(self, x):
            return self.b(self.a(x), output_size=(8, 8) if x.shape[-1] == 3 else None)

    table = trace(Ours(), 3)
    assert [(r.kind, r.output, r.a) for r in table.layers] == [
        ("conv", (2, 3, 3), (0, 0)),
        ("conv_transpose", (1, 8, 8), (1, 1)),
    ]


def test_exported_and_fx_models():
    model = networks.UNet(depth=1)
    x = torch.zeros(1, 1, 28, 28)
    direct = trace(model, x)
    resnet = networks.resnet18(thin=16)
    assert trace(torch.fx.symbolic_trace(resnet), 97).macs == trace(resnet, 97).macs
    exported = trace(torch.export.export(model, (x,)), x)
    assert exported.macs == direct.macs
    assert exported.parameters == direct.parameters == sum(row.parameters for row in exported)
    assert [r.output for r in exported.layers] == [r.output for r in direct.layers]
    assert exported.layers[-1].r == direct.layers[-1].r


@pytest.mark.parametrize("method", ["pattern", "matrix", "zero_insert"])
def test_our_functional_calls(method):
    class Ours(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.u = nn.Parameter(torch.ones(2, 1, 3, 3)), nn.Parameter(torch.ones(2, 1, 3, 3))

        def forward(self, x):
            y = ca.functional.conv2d(x, self.w, stride=2, padding=1)
            return ca.functional.conv_transpose2d(y, self.u, stride=2, padding=1, method=method)

    table = trace(Ours(), (1, 1, 9, 12))
    assert table.layers[0].relationship == (6, 6)
    assert (table.layers[0].kind, table.layers[0].parameters, table.layers[0].r) == ("conv", 18, (3, 3))
    assert (table.layers[-1].output, table.layers[-1].r) == ((1, 9, 11), (5, 5))
    assert not any(row.note for row in table)
    if method != "zero_insert":
        assert (table.layers[-1].kind, table.layers[-1].relationship) == ("conv_transpose", (13, 13))


@pytest.mark.parametrize("make", [networks.convnext, networks.GoogLeNet, networks.DeepLab, networks.WaveNet])
def test_parameters_of_the_rows_add_up(make):
    model = make()
    table = trace(model, (1, 1, 64) if make is networks.WaveNet else 96)
    assert sum(row.parameters for row in table) == table.parameters == sum(p.numel() for p in model.parameters())
    assert not any(row.note for row in table)


def test_arguments_that_are_not_understood_widen_the_result():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.movedim(x, (2, 3), (3, 2)).unfold(2, 3, 1).sum(-1)

    table = trace(Odd(), (1, 1, 7, 8))
    assert table.rows[-1].r == (7, 8)
    assert any("taken to see everything" in row.note for row in table)


class NeedsValues(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(1, 1, 3)

    def forward(self, x):
        y = self.c(x)
        return y * 2 if y.sum().item() > 0 else y


def test_a_model_that_needs_values_is_run_and_says_so():
    model = NeedsValues().train()
    table = trace(model, 8)
    assert table.captured_by == "a run on real zeros"
    assert "captured by a run on real zeros" in str(table)
    assert table["c"].r == (3, 3)
    assert model.training


def test_the_model_is_left_alone():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trace(model, 8)
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.device.type == "cpu" for p in model.parameters())
    with pytest.raises(CaptureError):
        trace(model, (1, 3, 8, 8))
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 2, 6, 6)  # no hook is left behind


def test_shared_layers_have_a_row_per_call():
    layer = nn.Conv2d(2, 2, 3, padding=1)
    table = trace(nn.Sequential(layer, nn.ReLU(), layer), 8)
    assert [r.name for r in table.layers] == ["0", "0_1"]
    assert table.parameters == 38


def test_batch_does_not_enter():
    model = lenet5()
    assert trace(model, (7, 1, 32, 32)).to_dicts() == trace(model, 32).to_dicts()


def test_kinds_of_models_and_inputs():
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    expected = trace(conv, 9).to_dicts()
    assert trace(conv, torch.zeros(3, 9, 9)).to_dicts() == expected  # unbatched
    assert trace(conv, (3, 9, 9)).to_dicts() == expected
    assert trace(conv, (9, 9)).to_dicts() == expected
    mlp = trace(nn.Sequential(nn.Linear(784, 100), nn.Linear(100, 10)), (1, 784))
    assert (mlp.parameters, mlp.macs, mlp.rows[0].r) == (79510, 79400, None)
    normed = trace(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), 9)
    assert normed.layers[0].r == (3, 3)

    class Audio(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Conv1d(1, 4, 10, stride=5)

        def forward(self, x):
            return self.c(x[:, None])

    audio = trace(Audio(), torch.zeros(2, 400))
    assert (audio["c"].output, audio["c"].r, audio["c"].jump) == ((4, 79), (10,), (5,))

    class Attribute(nn.Module):  # a plain tensor that does not follow the model to meta
        def __init__(self):
            super().__init__()
            self.c, self.k = nn.Conv2d(3, 4, 3), torch.ones(1)

        def forward(self, x, scale=1):
            return {"out": self.c(input=x * scale) * self.k}

    table = trace(Attribute(), 9, scale=2)
    assert (table.captured_by, table.rows[-1].r) == ("fake tensors", (3, 3))


def test_exports(tmp_path):
    table = trace(lenet5())
    value = json.loads(table.to_json(tmp_path / "t.json"))
    assert json.loads((tmp_path / "t.json").read_text()) == value
    assert value["parameters"] == 61706
    assert value["rows"][0]["output"] == [6, 28, 28]
    lines = table.to_csv().splitlines()
    assert len(lines) == len(table) + 1
    assert lines[1].startswith("C1,Conv2dExplicit,conv,")
    markdown = table.to_markdown().splitlines()
    assert markdown[2].startswith("| C1 | Conv2dExplicit | 32x32x1 | 28x28x6 | 5 |")
    assert len({line.count("|") for line in markdown[:9]}) == 1
    assert table._repr_html_().count("<tr>") == 8
    assert "C1" in repr(table)


def test_pandas():
    pandas = pytest.importorskip("pandas")
    frame = trace(lenet5()).to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.loc["C3", "parameters"] == 2416


def test_rich(capsys):
    pytest.importorskip("rich")
    trace(lenet5()).show()
    assert "61,706" in capsys.readouterr().out


def test_errors():
    with pytest.raises(CaptureError, match="LeNet5 does not run on"):
        trace(lenet5(), 8)
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        trace(3, 8)
    with pytest.raises(ValueError, match="sizes"):
        trace(nn.Conv2d(1, 1, 3))
    with pytest.raises(ValueError, match="has 2 axes"):
        trace(nn.Conv2d(1, 1, 3), (1, 2, 3, 4, 5))
    with pytest.raises(ValueError, match="at least 1"):
        trace(nn.Conv2d(1, 1, 3), 0)
    with pytest.raises(KeyError):
        trace(lenet5())["C9"]


def test_importing_the_package_does_not_import_the_extras():
    code = (
        "import sys, torch_convarith, torch_convarith.analysis.trace, torch_convarith.models;"
        "print([m for m in ('pandas', 'rich', 'typer', 'matplotlib') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
