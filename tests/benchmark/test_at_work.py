"""A method at work in a model: compiled region by region it computes what it computes eagerly."""

import pytest
import torch
from torch import nn

from bigain.adapters.placement import Placement
from bigain.backbones.open_model import open_model
from bigain.backbones.pixel_dit import PixelDiT
from bigain.benchmark.at_work import at_work
from bigain.benchmark.cost import backbone_pass
from bigain.benchmark.memory import is_out_of_memory
from bigain.reducers.base import Identity
from bigain.reducers.cached import Cached
from bigain.reducers.lgtm import LGTM
from bigain.reducers.scheduled import Rule, Scheduled
from bigain.reducers.tome import ToMe
from tests.pipelines import filled, save_sd

CPU = torch.device("cpu")
BY_TIMESTEP = Scheduled([Rule(LGTM(0.5), timesteps=(500, 1001)), Rule(ToMe(0.25), timesteps=(200, 500))])
BY_LAYER = Scheduled([Rule(LGTM(0.5), layers=[1, 3]), Rule(LGTM(0.25), layers=[0])])
WAYS = {
    "some blocks": (LGTM(0.5), Placement(layers=[1, 3])),
    "by layer": (BY_LAYER, Placement(layers=[0, 1, 3])),
    "by timestep": (BY_TIMESTEP, Placement(layers=[1, 2])),
    "shared": (Cached(LGTM(0.5)), Placement()),
}


@pytest.fixture(scope="module")
def backbone(request, tmp_path_factory):
    if getattr(request, "param", "transformer") == "transformer":
        return filled(PixelDiT(None, image_size=8, width=16, depth=4, heads=2)).eval()
    return open_model(str(save_sd(tmp_path_factory.mktemp("at_work") / "sd")), CPU)


@pytest.mark.parametrize(
    ("backbone", "way"), [*(("transformer", way) for way in WAYS), ("u-net", "by timestep")], indirect=["backbone"]
)
def test_compiled_regions_compute_the_same_at_every_step(backbone, own_cache, monkeypatch, way):
    """Blocks with a reducer and blocks without share a class, and the compiler's guards ignore hooks."""
    reducer, placement = WAYS[way]
    compile_with = nn.Module.compile
    # The default backend would write and compile C++, which takes a minute.
    monkeypatch.setattr(nn.Module, "compile", lambda self, **more: compile_with(self, **more, backend="eager"))
    condition = backbone.embed([0, 1] if backbone.conditioned_on == "labels" else ["a cat", "a dog"])

    def found(method, compiled=False):
        with at_work(backbone, method, placement, compile=compiled) as applied:
            run, outputs = backbone_pass(applied.backbone, condition, 2, CPU), []
            for timestep in (900.0, 300.0, 100.0) * 2:
                with applied.report.at(timestep):
                    outputs.append(run().clone())
        return torch.stack(outputs)

    eager = found(reducer)
    torch.testing.assert_close(found(reducer, compiled=True), eager)
    assert not torch.allclose(eager[0], found(LGTM(0.1))[0])


def test_an_error_leaves_neither_hooks_nor_compiled_regions(backbone, own_cache):
    compiled = []

    def fail():
        with at_work(backbone, LGTM(0.5), Placement(), compile=True):
            compiled.extend(module for module in backbone.network.modules() if module._compiled_call_impl)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert compiled
    for module in backbone.network.modules():
        assert module._compiled_call_impl is None
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    with at_work(backbone, Identity(), Placement()) as applied:
        assert applied.report is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("could not create a primitive"), True),  # what oneDNN says of a convolution
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (MemoryError(), True),
        (ValueError("memory"), False),
    ],
)
def test_what_is_memory_that_does_not_suffice(error, expected):
    assert is_out_of_memory(error) is expected
