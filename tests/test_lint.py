"""Every rule on a model that breaks it, on one that does not, and with a fix that the rule then accepts."""

import json

import networks
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torch_convarith.analysis.lint import RULES, lint
from torch_convarith.models import alexnet, lenet5


def found(model, size, code):
    return list(lint(model, size, select=[code]))


def test_good_models_are_clean():
    assert lint(lenet5(), 32) == []
    assert lint(networks.resnet50(thin=16), 224) == []
    assert {f.rule.level for f in lint(networks.vgg(networks.VGG_16, 16), 224)} == {"note"}


def test_unread_border():
    (one,) = found(nn.Conv2d(1, 1, 3, 2), (8, 7), "CA001")
    assert one.message == "the last row of its input 8x7 is never read"
    assert "7 or 9" in one.fix
    for size in (7, 9):
        assert not found(nn.Conv2d(1, 1, 3, 2), size, "CA001")
    assert "padding=1" in one.fix
    assert not found(nn.Conv2d(1, 1, 3, 2, padding=1), 8, "CA001")
    assert [f.layer for f in found(nn.MaxPool2d(3, 3), (1, 1, 8, 8), "CA001")] == ["MaxPool2d"]
    # what the layer leaves out, a skip connection reads
    assert not found(Reads(), 8, "CA001")


class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(1, 1, 3, 2)

    def forward(self, x):
        return self.c(x).mean((2, 3)) + x.mean((2, 3))


def test_alexnet_at_224():
    with torch.device("meta"):
        model = alexnet()
    assert not found(model, 227, "CA001")
    assert [f.layer.split(".")[-1] for f in found(model, 224, "CA001")] == ["conv1", "pool1", "pool2", "pool5"]
    (stops,) = found(model, 224, "CA007")
    assert stops.rule.level == "error"
    assert "227" in stops.fix


def test_skipped_pixels():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 1, stride=3))
    first, second = found(net, (8, 7), "CA002")
    # 0, 3, 6 are read; of eight, 7 is the border's
    assert (first.numbers["skipped"], second.numbers["skipped"]) == (4, 4)
    assert "kernel 3" in first.fix
    net[1] = nn.Conv2d(2, 2, 3, stride=3, padding=1)
    assert not found(net, 8, "CA002")


def test_residual_shortcuts_skip_nothing():
    assert not found(networks.resnet18(thin=16), 65, "CA002")


def test_checkerboard():
    (one,) = found(nn.ConvTranspose2d(1, 1, 3, 2, 1, 1), 8, "CA003")
    y = nn.functional.conv_transpose2d(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 3, 3), stride=2, padding=1)
    assert sorted({int(v) for v in y[0, 0, 3:-3, 3:-3].unique()}) == [1, 2, 4]
    assert one.numbers["counts"] == [[1, 2], [1, 2]]
    assert "kernel 4, padding 1 keeps 8 -> 16" in one.fix
    assert not found(nn.ConvTranspose2d(1, 1, 4, 2, 1), 8, "CA003")
    assert not found(nn.ConvTranspose2d(1, 1, 3, 1, 1), 8, "CA003")


def dilated(*dilations):
    return nn.Sequential(*(nn.Conv1d(1, 1, 3, padding=d, dilation=d) for d in dilations))


def test_gridding():
    (one,) = found(dilated(2, 2, 2), 40, "CA004")
    assert (one.layer, one.numbers["seen"], one.numbers["span"]) == ("2", 7, 13)
    assert not found(dilated(1, 2, 3), 40, "CA004")
    assert not found(dilated(2, 1), 40, "CA004")
    (late,) = found(dilated(1, 5), 40, "CA004")
    assert "at most 3" in late.fix
    assert not found(dilated(1, 3), 40, "CA004")
    assert not found(networks.WaveNet(), (1, 1, 1500), "CA004")


def test_even_kernel():
    (one,) = found(nn.Conv2d(1, 1, 4, padding=1), 8, "CA005")
    assert one.numbers == {"axis": 0, "effective_kernel": 4, "shift": 0.5}
    assert "kernel 3 with padding 1" in one.fix
    assert not found(nn.Conv2d(1, 1, 3, padding=1), 8, "CA005")
    assert not found(nn.Conv2d(1, 1, 2, stride=2), 8, "CA005")
    assert not found(networks.WaveNet(), (1, 1, 1500), "CA005")  # causal, not off centre


class Two(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 1, k, 2, (k - 1) // 2), nn.Conv2d(1, 1, 1, 2)

    def forward(self, x):
        return self.a(x) + self.b(x)


def test_misaligned():
    (one,) = found(Two(4), 10, "misaligned-branches")
    assert (one.layer, one.numbers["axes"], one.numbers["starts"]) == ("add", [0, 1], [1.0, 0.5])
    assert not found(Two(3), 10, "CA006")
    assert not found(networks.WaveNet(), (1, 1, 1500), "CA006")


class Net(nn.Module):
    """An encoder-decoder that does not crop its skip."""

    def __init__(self):
        super().__init__()
        self.c, self.u = nn.Conv2d(1, 2, 3, padding=1), nn.ConvTranspose2d(2, 2, 2, 2)

    def forward(self, x):
        a = self.c(x)
        return torch.cat([a, self.u(F.max_pool2d(a, 2))], 1)


def test_skip_size():
    (one,) = found(Net(), 31, "CA007")
    assert "30 and 32" in one.fix
    assert "31x31" in one.message
    assert not found(Net(), 32, "CA007")
    assert lint(Net(), 31).exit_code == 1


def test_small_field_and_useless_layers():
    net = nn.Sequential(nn.Conv1d(1, 1, 3, padding=1), nn.Conv1d(1, 1, 3, padding=1))
    (one,) = found(net, 11, "CA008")
    assert one.numbers == {"size": [5], "input": [11]}
    assert one.fix.startswith("3 more")
    for _ in range(3):
        net.append(nn.Conv1d(1, 1, 3, padding=1))
    assert not found(net, 11, "CA008")
    (beyond,) = found(net, 3, "CA009")
    assert beyond.numbers["layers"] == ["2", "3", "4"]
    assert not found(net, 11, "CA009")


def test_padding_dominates():
    net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=18, dilation=18))
    (one,) = found(net, 13, "CA010")
    assert one.numbers["dead_taps"] == 2
    assert one.numbers["share"] == round(1 - 13 * 13 / (9 * 169), 4)
    assert not found(net, 65, "CA010")
    assert lint(net, 33, select="CA010", padding_share=0.9) == []


def test_bias_before_batch_norm():
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    (one,) = found(net, 9, "bias-before-batch-norm")
    assert (one.layer, one.fix, one.numbers) == ("0", "bias=False", {"parameters": 8})
    net[0] = nn.Conv2d(1, 8, 3, bias=False)
    assert not found(net, 9, "CA011")


def test_groups():
    net = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2))
    (one,) = found(net, 9, "CA013")
    assert one.numbers == {"groups": 2, "before": "0"}
    assert not found(net, 9, "CA012")
    with torch.no_grad():
        net[0].weight[4:] = 0
    (dead,) = found(net, 9, "CA012")
    assert dead.numbers == {"dead": [1], "groups": 2}
    net.insert(1, nn.Conv2d(8, 8, 1))
    assert not found(net, 9, "CA013")
    assert not found(networks.convnext(), 64, "CA013")


def test_select_and_ignore():
    net = nn.Sequential(nn.Conv2d(1, 8, 4, 3), nn.BatchNorm2d(8))
    everything = {f.rule.code for f in lint(net, 9)}
    assert {"CA001", "CA011"} <= everything
    assert {f.rule.code for f in lint(net, 9, select=["CA01"])} == {"CA011"}
    assert {f.rule.code for f in lint(net, 9, ignore=["unread-border"])} == everything - {"CA001"}
    with pytest.raises(ValueError, match="no rule is called 'CB1'"):
        lint(net, 9, select=["CB1"])
    with pytest.raises(ValueError, match="padding_share"):
        lint(net, 9, padding_share=2)


def test_reports():
    net = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8))
    findings = lint(net, 8)
    assert findings.exit_code == 1
    assert lint(net, 8, select="CA008").exit_code == 0  # a note
    listed = json.loads(findings.to_json())
    assert [f["code"] for f in listed] == [f.rule.code for f in findings]
    sarif = json.loads(findings.to_sarif())
    assert sarif["version"] == "2.1.0"
    (run,) = sarif["runs"]
    rules = run["tool"]["driver"]["rules"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note")
        assert result["message"]["text"]
        assert result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] in ("0", "1")
    assert "CA001 matters because" in str(findings)
    assert str(lint(lenet5(), 32)) == "no findings"


def test_rules_have_stable_codes():
    assert [(r.code, r.name) for r in RULES] == [
        ("CA001", "unread-border"),
        ("CA002", "skipped-pixels"),
        ("CA003", "checkerboard"),
        ("CA004", "gridding"),
        ("CA005", "even-kernel"),
        ("CA006", "misaligned-branches"),
        ("CA007", "skip-size"),
        ("CA008", "small-receptive-field"),
        ("CA009", "useless-layers"),
        ("CA010", "padding-dominates"),
        ("CA011", "bias-before-batch-norm"),
        ("CA012", "dead-groups"),
        ("CA013", "isolated-groups"),
    ]
