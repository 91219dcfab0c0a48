"""The core is light: what `import bigain` may load, and what `functional` may import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bigain

MODELS = ("accelerate", "diffusers", "peft", "timm", "torchvision", "transformers")
CUDA = ("cupy", "flash_attn", "nvidia", "triton", "xformers")
HEAVY = (*MODELS, *CUDA, "jsonargparse", "lightning", "matplotlib", "torchmetrics")


@pytest.fixture(scope="module", autouse=True)
def cuda_modules(tmp_path_factory):
    """Empty modules of those names: code that would import them where they are is seen where they are not."""
    folder = tmp_path_factory.mktemp("cuda")
    for name in CUDA:
        (folder / f"{name}.py").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield


def heavy_after(code: str) -> list[str]:
    program = f"{code}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return ast.literal_eval(done.stdout)


def test_import_and_planning_load_nothing_heavy():
    code = (
        "import bigain, torch\n"
        "assert bigain.available('adapters') and bigain.available('backbones')\n"
        "bigain.build_scorer('laplacian_l1')\n"
        "bigain.build_reducer('lgtm', ratio=0.5).plan(torch.randn(1, 16, 4), bigain.Grid((4, 4)))\n"
    )
    assert heavy_after("import bigain") == []
    assert heavy_after(code) == []


def test_the_heavy_list_would_be_noticed():
    """Guards the test above: a heavy import does show up."""
    assert heavy_after("import jsonargparse") == ["jsonargparse"]
    assert heavy_after("import triton") == ["triton"]


def test_attaching_to_a_plain_module_loads_no_model_library():
    code = (
        "import bigain, torch\n"
        "from bigain.errors import SiteError\n"
        "try:\n    bigain.attach(torch.nn.Linear(1, 1), 'tome', ratio=0.5)\n"
        "except SiteError as error:\n    assert 'Linear' in str(error)\n"
    )
    assert heavy_after(code) == []


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


@pytest.mark.parametrize(
    "path", sorted((Path(bigain.__file__).parent / "functional").glob("*.py")), ids=lambda path: path.name
)
def test_functional_imports_torch_alone(path):
    for module in imported(path):
        root = module.partition(".")[0]
        allowed = root == "torch" or module.startswith("bigain.functional") or root in sys.stdlib_module_names
        assert allowed, f"{path.name} imports {module}"


def test_public_names_are_all_there():
    assert all(hasattr(bigain, name) for name in bigain.__all__)
    assert {"Grid", "attach", "available", "build_reducer", "build_scorer"} <= set(bigain.__all__)
