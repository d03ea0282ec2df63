"""Names of calls that are treated alike, and the call that a module stands for."""

from __future__ import annotations

from torch import nn

WITHOUT_DEPENDENCE = {
    *("zeros_like", "ones_like", "empty_like", "full_like", "randn_like", "new_zeros", "new_ones", "new_empty"),
    *("new_full", "new_tensor", "size", "dim", "stride", "numel", "is_floating_point", "sym_size"),
    *("assert_tensor_metadata", "set", "get", "del", "requires_grad", "grad", "grad_fn", "item", "tolist", "len"),
}
"""Calls whose results hold nothing of their arguments' values."""
TRANSPARENT = {"dropout", "identity", "contiguous", "to", "float", "detach", "alpha_dropout", "feature_dropout"}
"""Calls that leave no trace where they return their argument itself."""
SPLITS = {"chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unbind"}
"""Calls that return one tensor per part."""

_ACTIVATIONS = """
    CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish PReLU RReLU ReLU ReLU6 SELU SiLU
    Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink Threshold
"""
_CLASSES = {
    "linear": "Linear",
    "batch_norm": "BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm",
    "instance_norm": "InstanceNorm1d InstanceNorm2d InstanceNorm3d",
    "group_norm": "GroupNorm",
    "layer_norm": "LayerNorm RMSNorm",
    "local_response_norm": "LocalResponseNorm CrossMapLRN2d",
    "interpolate": "Upsample",
    "pad": " ".join(
        f"{m}Pad{n}d" for m in ("Reflection", "Replication", "Constant", "Circular", "Zero") for n in "123"
    ),
    "flatten": "Flatten Unflatten",
    "unfold": "Unfold",
    "fold": "Fold",
    "glu": "GLU",
    "pixel_shuffle": "PixelShuffle",
    "pixel_unshuffle": "PixelUnshuffle",
    "channel_shuffle": "ChannelShuffle",
    "identity": "Identity",
    "embedding": "Embedding",
    "softmax": "Softmax LogSoftmax Softmin",
    "dropout": "Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout",
    "relu": _ACTIVATIONS,
}
for _n in "123":
    _CLASSES |= {
        f"conv{_n}d": f"Conv{_n}d",
        f"conv_transpose{_n}d": f"ConvTranspose{_n}d",
        f"max_pool{_n}d": f"MaxPool{_n}d",
        f"avg_pool{_n}d": f"AvgPool{_n}d",
        f"lp_pool{_n}d": f"LPPool{_n}d",
        f"max_unpool{_n}d": f"MaxUnpool{_n}d",
        f"adaptive_avg_pool{_n}d": f"AdaptiveAvgPool{_n}d",
        f"adaptive_max_pool{_n}d": f"AdaptiveMaxPool{_n}d",
    }
_FUNCTION_OF = {getattr(nn, name): kind for kind, names in _CLASSES.items() for name in names.split()}


def module_kind(module: nn.Module) -> str | None:
    """The function that a torch.nn module, or a subclass of one, stands for."""
    return next((_FUNCTION_OF[cls] for cls in type(module).__mro__ if cls in _FUNCTION_OF), None)
