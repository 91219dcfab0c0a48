"""Tiny real models, images and reference vectors that several tests share."""

import gc
import json
import logging
import os
import sys
import sysconfig
import venv
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, settings
from safetensors.torch import load_file, save_file

# How fast examples are made says more of the machine's load than of a test.
settings.register_profile("bigain", max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bigain")

pytest_plugins = ["tests.shake"]

# The compiler writes a trace for whoever listens, and pytest listens to every logger that does not propagate.
logging.getLogger("torch.__trace").propagate = True

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_finish():
    """Leave what the imports and the collection made out of garbage collection, and collect more seldom.

    It all stays until the end, and to look for cycles among it took a twelfth of the time in a sample of tests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_unconfigure():
    gc.unfreeze()


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """A DiT of four narrow blocks on 8 x 8 images, saved as diffusers saves it."""
    from bigain.backbones.pixel_dit import PixelDiT

    torch.manual_seed(0)
    backbone = PixelDiT(weights=None, width=16, depth=4, heads=2, overlap=3, image_size=8)
    for parameter in backbone.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("tiny_dit")
    backbone.network.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_backbone(tiny_weights):
    """The tiny model, loaded afresh."""
    from bigain.backbones.pixel_dit import PixelDiT

    return PixelDiT(weights=tiny_weights).eval()


@pytest.fixture(scope="session")
def tiny_unet_config():
    """A U-Net of two narrow stages on 16 x 16 latents."""
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 16,
        "block_out_channels": [16, 32],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 2,
        "cross_attention_dim": 8,
    }


@pytest.fixture(scope="session")
def tiny_features(tmp_path_factory) -> Path:
    """A random feature network with few channels."""
    from bigain.metrics.features import ResidualClassifier

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny_features")
    state = ResidualClassifier(10, 4).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"classes": 10, "width": 4}))
    return folder


@pytest.fixture(scope="session")
def tiny_reference(tmp_path_factory) -> Path:
    """Ten random images of three classes, for distances: the default, all embedded ones, takes seconds to decode."""
    from PIL import Image

    from bigain.data.classes import CIFAR10_CLASSES

    top = tmp_path_factory.mktemp("real")
    generator = torch.Generator().manual_seed(0)
    for number in range(10):
        place = top / CIFAR10_CLASSES[number % 3]
        place.mkdir(exist_ok=True)
        pixels = torch.randint(0, 256, (8, 8, 3), generator=generator).to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(place / f"{number}.png")
    return top


@pytest.fixture
def forking():
    """Let a trainer fork its processes off this one: none of them has to import Lightning again."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # OpenMP would wait for threads that a fork does not have
    with patch.dict(os.environ):  # in which Lightning leaves its port
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """Keep no tensors of tests where the user's own are."""
    with patch.dict(os.environ, {"BIGAIN_CACHE": str(tmp_path_factory.mktemp("cache"))}):
        yield


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Keep no tensors of a test where others would find them."""
    monkeypatch.setenv("BIGAIN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def golden():
    """Load the reference vectors of a grid: `golden("8x8_c16")`."""
    return lambda name: load_file(Path(__file__).parent / "golden" / f"grid_{name}.safetensors")


@pytest.fixture
def noise():
    """Make seeded normal noise: `noise(2, 64, 8)`, or `noise(2, 64, 8, seed=1)`."""
    return lambda *shape, seed=0: torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """A fresh virtual environment that also sees what is installed where the tests run, and can fetch nothing."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    here = sysconfig.get_paths()["purelib"]
    (site / "outer.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    settings = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return folder / "bin" / "python", {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "PATH": "/usr/bin:/bin", **settings}
