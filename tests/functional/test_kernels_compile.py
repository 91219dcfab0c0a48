"""The kernels compile for GPUs, also where there is none."""

import subprocess
import sys

import pytest

PROGRAM = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from torch._library.triton import get_triton_kernels_for_op
from bigain.functional.kernels import groups, laplacian, match, selection

# What torch's cache of compiled code depends on: a kernel that it did not know would outlive its own change there.
for operator, kernel in dict(most_similar=match._match, place_merged=selection._place, group_mean=groups._mean,
        laplacian_norm=laplacian._norm).items():
    assert get_triton_kernels_for_op(f"bigain::{operator}") == [kernel]

def compiles(kernel, constants, capability=90, **types):
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]

for half, rows, columns, even, capability in (("*fp16", 128, 256, True, 90), ("*bf16", 64, 64, False, 80)):
    compiles(match._match, dict(BLOCK_ROWS=rows, BLOCK_COLUMNS=columns, BLOCK_CHANNELS=64, CLASSES=8, EVEN=even),
        capability, tokens=half, columns=half, norms="*fp32", column_norms="*fp32", rows="*i64", best_out="*fp32",
        partner_out="*i32")
compiles(selection._place, dict(BLOCK=4096, BLOCK_DESTINATIONS=1024), best="*fp32", partner="*i64", sources="*i64",
    destinations="*i64", place="*i64", representatives="*i64")
for kind, weighted in (("*fp16", False), ("*fp64", True)):
    compiles(groups._mean, dict(WEIGHTED=weighted, TOGETHER=2, BLOCK=512), tokens=kind, out=kind, weights="*fp32",
        order="*i64", ends="*fp32", sizes="*fp32")
for axes in (1, 3):
    compiles(laplacian._norm, dict(AXES=axes, SQUARED=axes == 1, REPLICATE=axes == 3, BLOCK_TOKENS=16, BLOCK=64),
        tokens="*fp16", out="*fp32")
"""


def test_every_kernel_compiles(root):
    pytest.importorskip("triton")
    result = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
