"""The registry on packages that pip installed, in an environment of their own."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from textwrap import dedent

import pytest
import torch

import bigain

SCORER = """
from bigain.scorers.base import TokenScorer

class Energy(TokenScorer):
    \"\"\"Sum of powers of a token's channels. And more.\"\"\"

    def __init__(self, power: int = 2) -> None:
        self.power = power

    def raw(self, tokens, grid):
        return tokens.float().abs().pow(self.power).sum(dim=-1)
"""

PACKAGES = {
    "good": ("1.2", ["bigain>=0.2.0.dev0,<0.3"], {"scorers": {"energy": "Energy"}}, SCORER),
    "first": ("1.0", ["bigain"], {"scorers": {"twice": "Energy"}}, SCORER),
    "second": ("2.0", [], {"scorers": {"twice": "Energy"}}, SCORER),
    "broken": ("1.0", [], {"scorers": {"explosive": "Energy"}}, "raise OSError('no licence file')"),
    "mixed": ("1.0", [], {"reducers": {"mixed": "Energy"}}, SCORER),
    "future": ("3.0", ["bigain>=1,<2"], {"scorers": {"future": "Energy", "energy": "Energy"}}, "1 / 0"),
    "optional": ("1.0", ["bigain>=7; extra == 'late'"], {"scorers": {"optional": "Energy"}}, SCORER),
    "edited": ("1.0", ["bigain<1"], {"scorers": {"edited": "Energy"}}, SCORER),
}
"""Version, what it requires, what it registers, and its module."""

PROBE = """
import importlib.metadata, json, sys, torch, bigain
from bigain import registry
from bigain.errors import SettingError

def asked(name, kind="scorers"):
    try:
        return registry.get(kind, name).__module__
    except SettingError as error:
        return str(error)

tokens, grid = torch.arange(96.0).sin().reshape(1, 16, 6), bigain.Grid((4, 4))
told = {"names": {kind: bigain.available(kind) for kind in registry.KINDS}}
told["place"] = bigain.build_reducer("lgtm", ratio=0.5).plan(tokens, grid).places().tolist()
told["imported before"] = [name for name in sys.modules if name.startswith("plugin_")]
told["energy"] = bigain.build_scorer("energy", power=3)(tokens, grid).tolist()
told["imported after"] = [name for name in sys.modules if name.startswith("plugin_")]
told["asked"] = {name: asked(name) for name in ("twice", "explosive", "future", "optional", "edited", "laplacian_l1")}
told["asked"]["mixed"] = asked("mixed", "reducers")
told["edited"] = sum(found.name == "bigain-edited" for found in importlib.metadata.distributions())
print(json.dumps(told))
"""


def write_package(folder, name):
    version, requires, points, source = PACKAGES[name]
    groups = [
        f'[project.entry-points."bigain.{kind}"]\n'
        + "\n".join(f'{entry} = "plugin_{name}:{target}"' for entry, target in entries.items())
        for kind, entries in points.items()
    ]
    module = folder / "src" / f"plugin_{name}"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text(source)
    head = f"""\
        [build-system]
        requires = ["setuptools"]
        build-backend = "setuptools.build_meta"
        [tool.setuptools.packages.find]
        where = ["src"]
        [project]
        name = "bigain-{name}"
        version = "{version}"
        dependencies = {json.dumps(requires)}
        [project.optional-dependencies]
        late = []
        """
    (folder / "pyproject.toml").write_text(dedent(head) + "\n".join(groups) + "\n")
    return str(folder)


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """A fresh environment with the packages installed; what is around it is seen, too."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "env", with_pip=False)
    interpreter = folder / "env" / "bin" / "python"
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    # As a site folder, so that an editable bigain is found.
    (site / "around.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    paths = {name: write_package(folder / name, name) for name in PACKAGES}
    editable = ["--editable", paths.pop("edited")]
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", *options]
    subprocess.run([*pip, *paths.values(), *editable], check=True, capture_output=True, text=True)
    # What older versions of setuptools leave in the source folder, which is on the path.
    setup = [sys.executable, "-c", "import setuptools; setuptools.setup()", "--quiet", "egg_info"]
    subprocess.run(setup, check=True, capture_output=True, text=True, cwd=editable[1])
    return interpreter


def run(python, *arguments):
    done = subprocess.run([python, *arguments], capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def told(python):
    return json.loads(run(python, "-c", PROBE))


def test_installing_changes_nothing_until_a_name_is_asked_for(told):
    assert {"energy", "explosive", "twice"} < set(told["names"]["scorers"])
    assert told["imported before"] == []
    assert told["imported after"] == ["plugin_good"]
    tokens, grid = torch.arange(96.0).sin().reshape(1, 16, 6), bigain.Grid((4, 4))
    assert told["place"] == bigain.build_reducer("lgtm", ratio=0.5).plan(tokens, grid).places().tolist()
    assert told["asked"]["laplacian_l1"] == "bigain.scorers.laplacian"


def test_a_well_behaved_package_works_beside_all_the_others(told):
    tokens = torch.arange(96.0).sin().reshape(1, 16, 6)
    torch.testing.assert_close(torch.tensor(told["energy"]), tokens.abs().pow(3).sum(-1))


def test_a_name_of_two_packages_names_both(told):
    message = told["asked"]["twice"]
    assert "claimed twice" in message
    assert "bigain-first 1.0 as plugin_first:Energy" in message
    assert "bigain-second 2.0 as plugin_second:Energy" in message


def test_what_cannot_be_used_says_why(told):
    assert told["asked"]["explosive"] == (
        "Scorer 'explosive' of bigain-broken 1.0 cannot be imported: OSError: no licence file"
    )
    assert "no subclass of bigain.reducers.base.TokenReducer" in told["asked"]["mixed"]
    assert "bigain-mixed 1.0" in told["asked"]["mixed"]


def test_a_package_for_another_major_version_is_refused_without_importing_it(told):
    """It would raise ZeroDivisionError; and its claim to a name that another package has is void."""
    assert told["asked"]["future"] == (
        "Scorer 'future' of bigain-future 3.0 is made for bigain<2,>=1; this is bigain "
        f"{bigain.registry.running_version()}."
    )


def test_what_only_an_extra_requires_is_no_reason_to_refuse(told):
    assert told["asked"]["optional"] == "plugin_optional"


def test_an_editable_install_that_is_there_twice_is_one(told, python):
    """Its metadata are in the environment and in the source folder."""
    assert told["edited"] == 2
    assert told["asked"]["edited"] == "plugin_edited"
    assert told["names"]["scorers"].count("edited") == 1


def test_the_list_shows_each_with_its_package_and_reason(python):
    rows = json.loads(run(python, "-m", "bigain.cli.main", "list", "scorers", "reducers", "--json"))
    found = {(row["name"], row["package"]): row for row in rows}
    assert len(found) == len(rows)
    good = found["energy", "bigain-good"]
    assert (good["version"], good["summary"], good["problem"]) == ("1.2", "Sum of powers of a token's channels.", "")
    broken = {key for key, row in found.items() if row["problem"]}
    assert broken == {
        ("twice", "bigain-first"),
        ("twice", "bigain-second"),
        ("explosive", "bigain-broken"),
        ("mixed", "bigain-mixed"),
        ("future", "bigain-future"),
        ("energy", "bigain-future"),
    }
    assert "made for bigain<2,>=1" in found["energy", "bigain-future"]["problem"]


def test_the_terminal_shows_it_all_in_eighty_columns(python):
    shown = run(python, "-m", "bigain.cli.main", "list", "scorers")
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    words = " ".join(shown.split())
    assert "OSError: no licence file" in words
    assert "bigain-good 1.2" in words


def test_doctor_tells_what_is_broken_and_fails(python):
    done = subprocess.run(
        [python, "-m", "bigain.cli.main", "doctor", "--compile=false"], capture_output=True, text=True, cwd=Path("/")
    )
    assert done.returncode == 1, done.stderr
    assert "6 broken" in done.stdout
    assert "no licence file" in " ".join(done.stdout.split())
