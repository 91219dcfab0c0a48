"""`--shake`: matrix products whose last bits differ from call to call, as they do between processors.

The CPU kernels of products, convolutions and attention are replaced by themselves plus an
ulp up or down, at random for each element. That reaches whatever calls them: hooks, compiled
graphs, backward passes. It does not reach other processes (commands that a test starts), other
devices, and loops that a compiler writes itself without calling a product.
"""

import warnings
import zlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

PRODUCTS = (
    *("mm", "mm.out", "bmm", "bmm.out", "mv", "dot"),
    *("addmm", "addmm.out", "addmm_", "baddbmm", "baddbmm.out", "baddbmm_", "addmv", "addmv.out"),
    *("convolution", "convolution_backward"),
    *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward"),
)
"""Operators of ATen that sum products; `linear`, `matmul`, `einsum` and the rest call these."""

BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


class Shake:
    """Moves the results of products while it is installed.

    Args:
        seed: Which way each element moves, together with the test's name.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.generator = seed, torch.Generator()

    def begin(self, name: str) -> None:
        """Seed for a test, so that it does the same alone and among others."""
        self.generator.manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))

    def install(self) -> None:
        """Put the moving kernels in place of torch's own."""
        self.library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that kernels are replaced is the purpose
            for name in PRODUCTS:
                self.library.impl(name, self._moving(name), "CPU", with_keyset=True)

    def _moving(self, name: str) -> Callable:
        packet, _, overload = name.partition(".")
        kernel = torch.library.get_kernel(getattr(getattr(torch.ops.aten, packet), overload or "default"), "CPU")
        in_place = overload == "out" or (packet.endswith("_") and not packet.startswith("_"))

        def call(keyset, *args, **kwargs):
            result = kernel.call_boxed(keyset, *args, **kwargs)
            if in_place:
                return result.copy_(self.move(result))
            return tree_map_only(Tensor, self.move, result)

        return call

    def move(self, result: Tensor) -> Tensor:
        """Add an ulp to some elements and take it from others; leave small integers, which are exact anywhere."""
        if result.dtype not in BITS:
            return result
        step = torch.randint(-1, 2, result.shape, generator=self.generator, dtype=BITS[result.dtype])
        exact = (result == result.round()) & (result.abs() * torch.finfo(result.dtype).eps < 1)
        moved = (result.contiguous().view(BITS[result.dtype]) + step).view(result.dtype)
        return torch.where(exact | ~moved.isfinite(), result, moved)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("shake")
    group.addoption("--shake", action="store_true", help="move results of matrix products by an ulp at random")
    group.addoption("--shake-seed", type=int, default=0, metavar="SEED", help="which way each result moves")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "same_digits: the same program twice on one device; not run under --shake")
    if config.getoption("--shake"):
        shake = config.stash[SHAKE] = Shake(config.getoption("--shake-seed"))
        shake.install()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if config.getoption("--shake") and item.get_closest_marker("same_digits"):
            item.add_marker(pytest.mark.skip("the digits of a product change under --shake"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if SHAKE in item.config.stash:
        item.config.stash[SHAKE].begin(item.nodeid)


SHAKE = pytest.StashKey[Shake]()
