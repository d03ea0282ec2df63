"""The explicit matrix: entries, layouts, products, gradients; against unit vectors sent through plain loops."""

import itertools

import numpy as np
import oracle
import pytest
import torch
from cases import CASES, case, cases
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_convarith import ConvMatrix, GeometryError, Pattern, backends, conv_matrix
from torch_convarith.geometry import PADDING_MODES

LAYOUTS = [torch.sparse_csr, torch.sparse_csc, torch.sparse_coo]


def matrix_of(c, w, mode="zeros"):
    return conv_matrix(w, c.input, c.stride, c.padding, c.dilation, c.groups, mode)


def oracle_matrix(c, w, mode="zeros"):
    return torch.from_numpy(oracle.matrix(w.detach().numpy(), c.input, c.stride, c.padding, c.dilation, c.groups, mode))


def supports(c, mode):
    """Whether a mode can repeat as much as the padding asks for."""
    if mode == "zeros":
        return True
    limit = {"reflect": -1, "circular": 0, "replicate": 10**9}[mode]
    return all(max(pad) <= i + limit for i, pad in zip(c.input, c.padding, strict=True))


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("c", CASES, ids=str)
def test_entries_in_every_layout(c, mode):
    _, w, _ = c.tensors()
    if not supports(c, mode):
        with pytest.raises(GeometryError, match=f"padding_mode '{mode}' needs"):
            matrix_of(c, w, mode)
        return
    expected = oracle_matrix(c, w, mode)
    C = matrix_of(c, w, mode)
    assert C.shape == expected.shape
    assert torch.equal(C.to_dense(), expected)
    assert torch.equal(C.T.to_dense(), expected.T)
    for layout in LAYOUTS:
        for matrix, dense in ((C, expected), (C.T, expected.T)):
            sparse = matrix.to_sparse(layout)
            assert sparse.layout == layout
            assert torch.equal(sparse.to_dense(), dense)
    # Structure, not values: with all weights 1 every structural entry is a positive number.
    assert C.nnz == C.to_sparse().values().numel() == int((oracle_matrix(c, torch.ones_like(w), mode) > 0).sum())
    assert C.density == pytest.approx(C.nnz / expected.numel())


@given(cases(), st.sampled_from(PADDING_MODES))
def test_any_geometry(c, mode):
    if not supports(c, mode):
        return
    _, w, _ = c.tensors()
    expected = oracle_matrix(c, w, mode)
    C = matrix_of(c, w, mode)
    assert torch.equal(C.to_dense(), expected)
    assert torch.equal(C.to_sparse().to_dense(), expected)
    assert torch.equal(C.T.to_sparse().to_dense(), expected.T)
    x = torch.arange(expected.shape[1]) % 7 - 3
    y = torch.arange(expected.shape[0]) % 5 - 2
    assert torch.equal(C @ x, expected @ x)
    assert torch.equal(C.T @ y, expected.T @ y)


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_csr_invariants(mode):
    """Sorted rows, no duplicates, 32-bit indices: what torch's own check demands, for every geometry of the list."""
    checked = 0
    for c in CASES:
        if not supports(c, mode):
            continue
        checked += 1
        for matrix in (matrix_of(c, c.tensors()[1], mode), matrix_of(c, c.tensors()[1], mode).T):
            s = matrix.to_sparse()
            assert s.crow_indices().dtype == s.col_indices().dtype == torch.int32
            torch._validate_sparse_csr_tensor_args(s.crow_indices(), s.col_indices(), s.values(), s.shape)
    assert checked > 5


def test_columns_that_coincide_are_summed():
    # Replicated edges: taps 0 and 1 of the first window both see input 0.
    C = conv_matrix(torch.tensor([[[1, 10, 100]]]), 3, padding=1, padding_mode="replicate")
    assert C.to_sparse().to_dense().tolist() == [[11, 100, 0], [1, 10, 100], [0, 1, 110]]
    assert C.nnz == 7
    assert C.symbolic() == (("w0+w1", "w2", "0"), ("w0", "w1", "w2"), ("0", "w0", "w1+w2"))


@pytest.mark.parametrize("blocksize", [(1, 1), (2, 3), (4, 16), (12, 8)])
def test_block_sparse(blocksize):
    w = torch.arange(1, 3 * 2 * 9 + 1, dtype=torch.float64).reshape(3, 2, 3, 3).requires_grad_()
    C = conv_matrix(w, (4, 6), padding=(0, 1))  # 36 x 48
    if C.shape[0] % blocksize[0] or C.shape[1] % blocksize[1]:
        with pytest.raises(GeometryError, match="do not tile"):
            C.to_sparse(torch.sparse_bsr, blocksize)
        return
    blocks = C.to_sparse(torch.sparse_bsr, blocksize)
    assert blocks.layout == torch.sparse_bsr
    assert blocks.values().shape[1:] == blocksize
    assert torch.equal(blocks.to_dense(), C.to_dense())
    assert not (blocks.values() == 0).flatten(1).all(1).any()  # no block without an entry


def test_layout_arguments_are_checked():
    C = conv_matrix(torch.ones(1, 1, 3), 4)
    with pytest.raises(ValueError, match="needs a blocksize"):
        C.to_sparse(torch.sparse_bsr)
    with pytest.raises(ValueError, match="needs a blocksize"):
        C.to_sparse(torch.sparse_csr, (1, 1))
    with pytest.raises(ValueError, match="layout must be"):
        C.to_sparse(torch.strided)


def test_scipy():
    c = CASES[3]
    _, w, _ = c.tensors(torch.float64, requires_grad=True)
    S = matrix_of(c, w).to_scipy()
    assert S.format == "csr"
    assert S.has_canonical_format
    np.testing.assert_array_equal(S.toarray(), oracle_matrix(c, w))
    np.testing.assert_array_equal(matrix_of(c, w).T.to_scipy().toarray(), oracle_matrix(c, w).T)
    with pytest.raises(TypeError, match="bfloat16"):
        matrix_of(c, w.detach().bfloat16()).to_scipy()


def test_transpose_of_the_transpose_is_the_matrix_itself():
    C = conv_matrix(torch.ones(2, 1, 3, 3), 5)
    assert C.T.T is C
    assert C.T is C.T
    assert C.T.shape == C.shape[::-1]
    assert (C.T.nnz, C.T.density, C.T.is_transposed) == (C.nnz, C.density, True)
    assert repr(C.T).startswith("ConvMatrix(25 x 18: transpose of kernel 3x3 on 5x5 -> 3x3, nnz 162")


@pytest.mark.parametrize("c", [c for c in CASES if c.n], ids=str)
def test_products(c):
    """The operators' products against the pattern's entries, for vectors, matrices and from the left."""
    _, w, _ = c.tensors()
    C = matrix_of(c, w)
    dense = C.to_dense()
    x = torch.randint(-3, 4, (dense.shape[1], 3))
    y = torch.randint(-3, 4, (dense.shape[0], 3))
    assert torch.equal(C @ x, dense @ x)
    assert torch.equal(C @ x[:, 0], dense @ x[:, 0])
    assert torch.equal(C @ x[:, :0], dense @ x[:, :0])
    assert torch.equal(C.T @ y, dense.T @ y)
    assert torch.equal(y.T @ C, y.T @ dense)
    assert torch.equal(y[:, 0] @ C, y[:, 0] @ dense)
    assert torch.equal(x.T @ C.T, x.T @ dense.T)
    assert int((C @ x[:, 0]) @ y[:, 0]) == int(x[:, 0] @ (C.T @ y[:, 0]))  # <Cx, y> = <x, C^T y>


def test_products_are_refused_where_they_do_not_fit():
    C = conv_matrix(torch.ones(1, 1, 3, 3), 4)
    for wrong in (torch.ones(4), torch.ones(4, 16), torch.ones(16, 1, 1)):
        with pytest.raises(GeometryError, match="a 4 x 16 matrix multiplies vectors of 16 elements"):
            C @ wrong
    with pytest.raises(RuntimeError, match="same dtype"):
        C @ torch.ones(16, dtype=torch.float64)
    with pytest.raises(TypeError):
        C @ 3


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("layout", ["dense", *LAYOUTS, torch.sparse_bsr], ids=str)
def test_entries_are_differentiable(layout, mode):
    c = case(1, 2, 2, (4, 3), (3, 2), padding=((1, 1), (0, 1)), stride=(1, 2), groups=2)
    _, w, _ = c.tensors(torch.float64, requires_grad=True)

    def entries(matrix, w):
        if layout == "dense":
            return matrix(w).to_dense()
        return matrix(w).to_sparse(layout, (2, 1) if layout == torch.sparse_bsr else None).to_dense()

    for transposed in (False, True):

        def matrix(w, transposed=transposed):
            C = matrix_of(c, w, mode)
            return C.T if transposed else C

        factor = torch.randn(matrix(w).shape, dtype=torch.float64)
        (grad,) = torch.autograd.grad((entries(matrix, w) * factor).sum(), w)
        # The adjoint, entry by entry: the derivative of C in one weight is the 0/1 matrix of that weight.
        expected = torch.zeros_like(w)
        for index in itertools.product(*map(range, w.shape)):
            unit = torch.zeros_like(w).detach()
            unit[index] = 1
            image = oracle_matrix(c, unit, mode)
            expected[index] = (factor * (image.T if transposed else image)).sum()
        torch.testing.assert_close(grad, expected.detach())


def test_products_are_differentiable():
    c = case(1, 2, 4, (4, 3), (3, 2), padding=1, stride=(1, 2), groups=2)
    for mode in PADDING_MODES:
        _, w, _ = c.tensors(torch.float64, requires_grad=True)
        rows, columns = matrix_of(c, w, mode).shape
        x = torch.randn(columns, 2, dtype=torch.float64, requires_grad=True)
        y = torch.randn(rows, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda w, x, m=mode: matrix_of(c, w, m) @ x, (w, x), check_forward_ad=True)
        assert torch.autograd.gradcheck(lambda w, y, m=mode: matrix_of(c, w, m).T @ y, (w, y), check_forward_ad=True)


@pytest.mark.parametrize("transposed", [False, True])
def test_csr_operator_and_its_adjoint(transposed):
    c = case(1, 2, 4, (4, 3), (3, 2), padding=((1, 2), (0, 1)), stride=(1, 2), groups=2)
    from torch_convarith import _ops

    for mode in PADDING_MODES:
        rest = (c.input, *c.geometry, mode, transposed)
        _, w, _ = c.tensors(torch.float64, requires_grad=True)

        def values(w, rest=rest):
            return _ops.csr(w, *rest)[2]

        def weight(v, rest=rest):
            return _ops.csr_weight(v, c.w_shape, *rest)

        v = torch.randn_like(values(w).detach(), requires_grad=True)
        for f, argument in ((values, w), (weight, v)):
            assert torch.autograd.gradcheck(f, argument, check_forward_ad=True, check_batched_grad=True)
            assert torch.autograd.gradgradcheck(f, argument)
        torch.testing.assert_close((values(w) * v).sum(), (w * weight(v)).sum())  # adjoint
        op = torch.ops.torch_convarith.csr.default
        torch.library.opcheck(op, (w.detach(), *rest))
        # opcheck's AOT test adds up all outputs for its backward, and cannot add floats to the integer indices; the
        # compiled assembly is compared in test_transforms.py.
        torch.library.opcheck(
            op, (w, *rest), test_utils=("test_schema", "test_faketensor", "test_autograd_registration")
        )
        torch.library.opcheck(torch.ops.torch_convarith.csr_weight.default, (v, c.w_shape, *rest))
        batch = torch.randn(3, *c.w_shape, dtype=torch.float64)
        crow, col, many = torch.func.vmap(lambda w, r=rest: _ops.csr(w, *r), out_dims=(None, None, 0))(batch)
        for one, got in zip(batch, many, strict=True):
            expected = _ops.csr(one, *rest)
            assert all(map(torch.equal, (crow, col, got), expected))
        back = torch.func.vmap(weight)(many)
        torch.testing.assert_close(back, torch.stack([weight(v) for v in many]))


def test_csr_of_strided_weights():
    w = torch.arange(2 * 4 * 3 * 3).reshape(4, 2, 3, 3)
    for view in (w.transpose(2, 3), w.flip(2), w.to(memory_format=torch.channels_last), w[::2], w[:, 1:]):
        assert torch.equal(conv_matrix(view, (5, 4)).to_sparse().to_dense(), conv_matrix(view, (5, 4)).to_dense())


@pytest.mark.parametrize(
    "dtype",
    [
        torch.uint8,
        torch.int8,
        torch.int32,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.complex64,
        torch.complex128,
    ],
    ids=str,
)
def test_dtypes(dtype):
    w = torch.arange(9).reshape(1, 1, 3, 3).to(dtype)
    C = conv_matrix(w, 4)
    assert C.dtype == C.to_dense().dtype == C.to_sparse().dtype == dtype
    assert torch.equal(C.to_sparse(torch.sparse_coo).to_dense(), C.to_dense())
    x = torch.arange(16).to(dtype)
    product = (C.to_dense().to(torch.complex128) @ x.to(torch.complex128)) if dtype.is_complex else None
    expected = product.to(dtype) if dtype.is_complex else (C.to_dense().double() @ x.double()).to(torch.int64).to(dtype)
    assert torch.equal(C @ x, expected)


def test_a_matrix_too_large_to_store_still_multiplies():
    C = conv_matrix(torch.ones(64, 64, 7, 7), (224, 224), padding=3)  # 3.2 million squared, 10^10 entries
    assert C.nnz > 9.9e9
    x = torch.zeros(C.shape[1])
    x[0] = 1.0
    with backends.flags(winograd=False):  # which rounds
        y = C @ x
    assert y.sum() == 64 * 16  # the corner pixel is seen through 4 x 4 taps, by 64 out channels


def test_wide_indices_are_chosen_by_size_alone():
    """2^31 entries and more need 64-bit indices; sizes are derived without allocating anything."""
    with torch.device("meta"):
        small = torch.ops.torch_convarith.csr(
            torch.empty(64, 64, 3, 3), [224, 224], [1, 1], [1, 1, 1, 1], [1, 1], 1, "zeros", False
        )
        large = torch.ops.torch_convarith.csr(
            torch.empty(64, 64, 7, 7), [224, 224], [1, 1], [3, 3, 3, 3], [1, 1], 1, "zeros", False
        )
    assert small[0].dtype == torch.int32
    assert small[2].shape[0] == 64 * 64 * (224 * 3 - 2) ** 2 < 2**31
    assert large[0].dtype == torch.int64
    assert large[2].shape[0] > 2**31


def test_symbolic_matrix_of_several_channels_and_transposes():
    C = conv_matrix(torch.ones(2, 2, 2), 2, groups=1)
    assert C.symbolic() == (("w000", "w001", "w010", "w011"), ("w100", "w101", "w110", "w111"))
    assert C.T.symbolic() == tuple(zip(*C.symbolic(), strict=True))
    grouped = conv_matrix(torch.ones(2, 1, 2), 3, groups=2).symbolic()
    assert grouped[0] == ("w000", "w001", "0", "0", "0", "0")
    assert grouped[3] == ("0", "0", "0", "0", "w100", "w101")
    assert conv_matrix(torch.ones(1, 1, 11), 11).symbolic()[0][10] == "w10"
    assert conv_matrix(torch.ones(1, 1, 11, 2), (11, 2)).symbolic()[0][21] == "w10_1"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(1, 1, 7, 7), (5, 9)), GeometryError, r"kernel 7 does not fit input 5 .* axis 2 \(height\)"),
        ((torch.ones(1, 1, 3, 3), (5, 5, 5)), GeometryError, "3"),
        ((torch.ones(3, 3), (5, 5)), GeometryError, "1 to 3 axes"),
        ((torch.ones(3, 1, 3), 5, 1, 0, 1, 2), GeometryError, "groups 2 must be positive and divide the 3"),
        ((torch.ones(3, 1, 3), 5, 1, 0, 1, 0), GeometryError, "groups 0 must be positive"),
        ((torch.ones(3, 1, 3), 5, 1, 0, 1, 1, "mirror"), ValueError, "padding_mode must be one of"),
        (([[[1.0]]], 5), TypeError, "weight must be a torch.Tensor"),
        ((torch.ones(3, 1, 3), 5.0), TypeError, "must be an integer"),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        conv_matrix(*arguments)


@pytest.mark.parametrize("c", [c for c in CASES if c.n], ids=str)
def test_pattern_is_the_oracles(c):
    C = conv_matrix(c.tensors()[1], c.input, c.stride, c.padding, c.dilation, c.groups)
    pattern = C.pattern
    assert isinstance(pattern, Pattern)
    assert isinstance(C, ConvMatrix)
    entries, size = oracle.pattern(c.input, c.kernel, c.stride, c.padding, c.dilation)
    assert size == C.geometry.output_size

    def flat(index, sizes):
        return int(np.ravel_multi_index(index, sizes))

    expected = sorted((flat(o, size), flat(t, c.kernel), flat(i, c.input)) for o, t, i in entries)
    got = list(zip(pattern.output.tolist(), pattern.tap.tolist(), pattern.input.tolist(), strict=True))
    assert got == expected
    assert len(pattern) == len(expected) == C.geometry.nnz
    dense = pattern.to_dense()
    assert int(dense.sum()) == len(pattern)
    assert all(dense[t, o, i] for o, t, i in expected)
    assert repr(pattern).startswith("Pattern(Geometry(")


@settings(max_examples=20)
@given(cases(max_axes=2))
def test_the_matrix_is_the_sum_of_taps_times_patterns(c):
    """C = sum_t W_t (x) S_t, the definition, with torch.kron."""
    c = type(c)(**{**c.__dict__, "groups": 1})
    _, w, _ = c.tensors()
    C = matrix_of(c, w)
    S = C.pattern.to_dense().long()
    taps = w.flatten(2)
    total = sum(torch.kron(taps[:, :, t].contiguous(), S[t]) for t in range(S.shape[0]))
    assert torch.equal(C.to_dense(), total)
