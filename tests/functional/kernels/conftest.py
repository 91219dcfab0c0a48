"""Kernels run on a GPU, and interpreted on a CPU: slowly, but line by line as they stand.

Triton decides when it is imported whether it interprets. Therefore a process of its own runs these tests on a CPU
(`test_kernels_interpreted.py`); in any other process they need a GPU.
"""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(params=["cpu" if INTERPRETED else pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)
