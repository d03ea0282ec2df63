"""Models as people use them, built from their configurations, converted: forward and backward equal to the original."""

import copy

import pytest
import torch

from torch_convarith import convert, plan_conversion

pytestmark = pytest.mark.filterwarnings("ignore")  # other people's libraries warn of other people's libraries
transformers = pytest.importorskip("transformers")


def resnet():
    config = transformers.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 2, 1])
    return transformers.ResNetModel(config), {"pixel_values": torch.randn(2, 3, 64, 64)}


def convnext():
    config = transformers.ConvNextV2Config(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])
    return transformers.ConvNextV2Model(config), {"pixel_values": torch.randn(2, 3, 64, 64)}


def mobilenet():
    config = transformers.MobileNetV2Config(depth_multiplier=0.25, image_size=64)
    return transformers.MobileNetV2Model(config), {"pixel_values": torch.randn(2, 3, 64, 64)}


def segformer():
    config = transformers.SegformerConfig(hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, decoder_hidden_size=16)
    return transformers.SegformerForSemanticSegmentation(config), {"pixel_values": torch.randn(2, 3, 64, 64)}


def wav2vec2():
    """Strided 1-D convolutions, and a grouped one under a weight normalisation parametrization."""
    config = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=[16] * 3,
        conv_stride=[5, 2, 2], conv_kernel=[10, 3, 2], num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    return transformers.Wav2Vec2Model(config), {"input_values": torch.randn(2, 400)}


def hifigan():
    """Transposed 1-D convolutions with stride, and dilated ones."""
    config = transformers.SpeechT5HifiGanConfig(model_in_dim=8, upsample_initial_channel=32)
    return transformers.SpeechT5HifiGan(config), {"spectrogram": torch.randn(2, 6, 8)}


def run(model, inputs):
    model.zero_grad()
    given = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    out = model(**given)
    y = out if isinstance(out, torch.Tensor) else out[0]
    y.square().mean().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return y.detach(), {**grads, **{f"input {name}": x.grad for name, x in given.items()}}


@pytest.mark.parametrize("build", [resnet, convnext, mobilenet, segformer, wav2vec2, hifigan], ids=lambda f: f.__name__)
def test_converted_models(build, capsys):
    torch.manual_seed(0)
    model, inputs = build()
    model = model.double().eval()
    inputs = {name: x.double() for name, x in inputs.items()}
    original = copy.deepcopy(model)
    planned = plan_conversion(model)
    assert all(c.target is not None for c in planned)
    convert(model)
    assert plan_conversion(model) == []
    y, grads = run(model, inputs)
    expected, expected_grads = run(original, inputs)
    torch.testing.assert_close(y, expected)
    assert grads.keys() == expected_grads.keys()
    for name in grads:
        torch.testing.assert_close(grads[name], expected_grads[name], msg=lambda m, n=name: f"{n}: {m}")
    with capsys.disabled():
        print(f"\n{build.__name__}: {len(planned)} layers converted, {len(grads)} gradients equal", end=" ")
