"""The kernels: against plain operations, in their interpreter where there is no GPU; and that they compile for one."""

import os
import subprocess
import sys
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

import lossary
from lossary.folds import quick, tiles

pytest.importorskip("triton", reason="Triton is not installed (it comes with PyTorch for CUDA, on Linux)")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def kernels():
    with mock.patch.multiple(tiles.SIZES, fused=True, small=0):
        yield


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).to(DEVICE)


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (33, 129), (70, 300)])
def test_a_pass_is_sums_and_slopes(soft, shape):
    z, shift = drawn(*shape), drawn()
    left, right = drawn(shape[0], seed=1), drawn(shape[1], seed=2)
    f, slope = ((z + shift).exp(), (z + shift).exp()) if soft else (F.softplus(z + shift), (z + shift).sigmoid())
    rows, cols, slopes = drawn(shape[0], seed=3), drawn(shape[1], seed=4), torch.empty_like(z)
    wanted = rows + f.sum(1), cols + f.sum(0), slope * (left[:, None] + right)
    tiles.fold(z.clone(), shift, soft, rows=rows, cols=cols, left=left, right=right, slopes=slopes)
    for got, want in zip((rows, cols, slopes), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    own = z.clone()
    tiles.fold(own, shift, soft, slopes=own)
    torch.testing.assert_close(own, slope, rtol=1e-12, atol=1e-12)
    tiles.fold(slopes.copy_(z / 3), shift, soft, scale=torch.full_like(shift, 3.0), left=left, slopes=slopes)
    torch.testing.assert_close(slopes, slope * left[:, None], rtol=1e-12, atol=1e-12)


def test_a_piece_of_a_wider_memory():
    z, rows = drawn(40, 200), drawn(40).zero_()
    part = z[:, 7:150]
    wanted = part.exp().sum(1)
    tiles.fold(part, drawn().zero_(), True, rows=rows)
    torch.testing.assert_close(rows, wanted)


def test_softplus_keeps_its_digits_where_it_is_small():
    z = torch.tensor([[-30.0, -16.0, -10.0, -1.0, 0.0, 5.0, 80.0, -torch.inf]], device=DEVICE)
    for column in range(z.shape[1]):
        rows = torch.zeros(1, device=DEVICE)
        tiles.fold(z[:, column : column + 1].clone(), torch.zeros((), device=DEVICE), False, rows=rows)
        wanted = F.softplus(z[0, column].double(), threshold=1000).float()
        torch.testing.assert_close(rows[0], wanted, rtol=3e-7, atol=0)


@pytest.mark.parametrize("key", ["clip", "supcon", "siglip"])
@pytest.mark.parametrize("labels", [False, True])
def test_losses_and_gradients_are_those_of_plain_operations(key, labels):
    x, other = drawn(70, 6), drawn(70, 6, seed=5)
    y = torch.arange(70, device=DEVICE) % 9
    hyper = {"scale": lossary.memory.Learned(4.0)} if key == "siglip" else {"tau": lossary.memory.Learned(0.3)}
    objective = getattr(lossary, key)(**hyper).to(DEVICE)
    pull, found = torch.linspace(-1, 2, 70, dtype=x.dtype, device=DEVICE), []
    for fused in (False, True):
        leaves = [t.clone().requires_grad_() for t in ((x,) if labels else (x, other))]
        wanted = [*leaves, *objective.parameters()]
        with mock.patch.multiple(tiles.SIZES, fused=fused, block=(12800, 12800), lane=640):
            items = objective.items(leaves[0], y if labels else leaves[1]).loss
            mean = torch.autograd.grad(items.mean(), wanted, retain_graph=True)
            found.append((items, *mean, *torch.autograd.grad((pull * items).sum(), wanted)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-10)


def test_the_same_input_gives_the_same_bits():
    def once():
        a = drawn(300, 8, dtype=torch.float32).requires_grad_()
        loss = lossary.clip()(a, drawn(300, 8, seed=1, dtype=torch.float32))
        loss.backward()
        return loss, a.grad

    assert all(torch.equal(x, y) for x, y in zip(once(), once(), strict=True))


@pytest.mark.parametrize("key", ["clip", "supcon", "siglip"])
@pytest.mark.parametrize("fused", [False, True])
def test_half_precision_is_rounded_once_and_summed_in_single(key, fused, monkeypatch):
    """What a GPU does with bfloat16: the loss is that of the rounded unit vectors, to single precision.

    The interpreter cannot multiply bfloat16 (it takes the bits for integers), so there the kernel gets float16.
    """
    ends, kind = quick.ends, torch.float16 if fused and DEVICE == "cpu" else torch.bfloat16
    monkeypatch.setattr(quick, "ends", lambda view: tuple(x.to(kind) for x in ends(view)))
    a, b = (drawn(90, 32, seed=s).requires_grad_() for s in (0, 1))
    near, far = (F.normalize(x.detach().float(), dim=1).to(kind).double().requires_grad_() for x in (a, b))
    objective = getattr(lossary, key)()
    with mock.patch.multiple(tiles.SIZES, fused=fused):
        got = objective(a.float(), b.float())
        got.backward()
    matrix = near @ far.T
    at = torch.arange(90, device=DEVICE)
    if key == "siglip":
        z = 10 * matrix - 10
        wanted = (F.softplus(z).sum() - z.trace()) / 90
    else:
        z = matrix / (0.07 if key == "clip" else 0.1)
        wanted = F.cross_entropy(z, at)
        wanted = (wanted + F.cross_entropy(z.T, at)) / 2 if key == "clip" else wanted
    torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=1e-6)
    for x, y in ((a, near), (b, far)):
        (slope,) = torch.autograd.grad(wanted, y, retain_graph=True)
        unit = F.normalize(x.detach(), dim=1)
        by_hand = (slope - (slope * unit).sum(1, keepdim=True) * unit) / x.detach().norm(dim=1, keepdim=True)
        assert F.cosine_similarity(x.grad.flatten(), by_hand.flatten(), dim=0) > 1 - 1e-5
        torch.testing.assert_close(x.grad.norm(), by_hand.norm(), rtol=1e-3, atol=0)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from lossary.folds import kernels

flags = ["soft", "scaled", "by_rows", "by_cols", "by_left", "by_right", "sloped"]
cases = ((True, [0, 1, 1, 0, 0, 0], "fp32"), (True, [1, 0, 0, 1, 1, 1], "bf16"), (False, [1, 1, 0, 1, 0, 1], "bf16"))
for soft, given, out in cases:
    for size, kind in ((kernels.PASS, "*fp32"), (kernels.PRODUCT, "*bf16")):
        options = {k: v for k, v in size.items() if k.startswith("num")}
        constants = dict(zip(flags, [soft, *map(bool, given)])) | {k: v for k, v in size.items() if k not in options}
        kinds = {"slopes": "*" + out, "a": kind, "b": kind} | dict.fromkeys(constants, "constexpr")
        kinds |= dict.fromkeys(("n", "m", "d", "stride", "a_stride", "b_stride"), "i32")
        signature = {k: kinds.get(k, "*fp32") for k in kernels.piece.arg_names}
        source = ASTSource(fn=kernels.piece, signature=signature, constexprs=constants)
        for capability in (80, 90):
            made = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
            print(capability, len(made.asm["cubin"]) > 0, size is kernels.PRODUCT, "wgmma.mma_async" in made.asm["ptx"])
"""


def test_the_kernel_compiles_for_gpus_that_are_not_here(tmp_path):
    plain = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    plain["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", COMPILE], env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [tuple(line.split()) for line in done.stdout.splitlines()]
    assert len(found) == 12
    assert set(found) == {
        ("80", "True", "False", "False"),
        ("80", "True", "True", "False"),
        ("90", "True", "False", "False"),
        ("90", "True", "True", "True"),
    }


def test_without_triton_the_plain_operations_are_taken():
    tiles._kernels.cache_clear()
    with mock.patch.object(tiles.util, "find_spec", return_value=None):
        assert tiles.fused(torch.zeros(1, 1)) is None
    tiles._kernels.cache_clear()
    with mock.patch.multiple(tiles.SIZES, fused=None):
        assert tiles.fused(torch.zeros(1, 1)) is None  # on the CPU
