"""Make torchvision importable beside a CPU build of torch, in the environment that runs this file.

timm imports torchvision, and torchmetrics, transformers and diffusers do where they find it. Its wheels on
PyPI hold a compiled extension that needs torch's CUDA libraries. Without them the extension stays unloaded,
which torchvision allows, but then torchvision cannot be imported all the same: it registers shape functions
for two operators that only the extension declares. Nothing here calls these operators (they suppress boxes in
detection), so to declare them is enough. An environment in which torchvision can be imported is left alone.

`make install` runs this as a script. It puts a copy of itself, and a `.pth` file that imports the copy whenever
Python starts, into the environment's site-packages: commands and worker processes need it as much as tests do.
"""

import shutil
import subprocess
import sys
import sysconfig
from importlib.abc import MetaPathFinder
from pathlib import Path

OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
PROBLEM = "operator torchvision::nms does not exist"


class DeclareOperators(MetaPathFinder):
    """Declares the operators just before torchvision, its extension tried, registers functions for them."""

    library = None  # a library's declarations end with it

    def find_spec(self, fullname, path=None, target=None):  # noqa: ANN001, ANN201
        """Find nothing; a search for the module that registers is the sign to act."""
        if fullname == "torchvision._meta_registrations":
            sys.meta_path.remove(self)
            self.declare()

    @classmethod
    def declare(cls) -> None:
        """Declare what the extension did not."""
        import torch

        missing = [name for name in OPERATORS if not hasattr(torch.ops.torchvision, name)]
        if missing:
            cls.library = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            cls.library.define(name + SCHEMA)


def install() -> None:
    """Copy this file to site-packages if torchvision needs it there."""
    done = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    here, folder = Path(__file__), Path(sysconfig.get_path("purelib"))
    if PROBLEM in done.stderr or (folder / here.name).exists():  # an earlier copy may be an older one
        shutil.copyfile(here, folder / here.name)
        (folder / here.with_suffix(".pth").name).write_text(f"import {here.stem}\n")


if __name__ == "__main__":
    install()
else:
    sys.meta_path.insert(0, DeclareOperators())
