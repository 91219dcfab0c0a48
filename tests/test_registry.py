"""The registry: one door for built-in and third-party methods.

Plugins here are real: a module and a `*.dist-info` folder on `sys.path`.
"""

import sys
import tomllib
from importlib.metadata import EntryPoint

import pytest
import torch

import bigain
from bigain import registry
from bigain.errors import SettingError, SiteError
from bigain.scorers.laplacian import LaplacianL1

SCORER = """
from bigain.scorers.base import TokenScorer

class Energy(TokenScorer):
    def __init__(self, power=2):
        self.power = power

    def raw(self, tokens, grid):
        return tokens.float().abs().pow(self.power).sum(dim=-1)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package: `install("energy", {"scorers": "energy = energy_plugin:Energy"}, energy_plugin=SCORER)`."""
    monkeypatch.syspath_prepend(tmp_path)
    modules = []

    def install(package, points, version="1.0", **sources):
        info = tmp_path / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        groups = [f"[bigain.{kind}]\n{lines}\n" for kind, lines in points.items()]
        (info / "entry_points.txt").write_text("\n".join(groups))
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)
            modules.append(name)
        registry.refresh()

    yield install
    monkeypatch.undo()
    for name in modules:
        sys.modules.pop(name, None)
    registry.refresh()


def declared(root):
    points = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"]
    return [
        (group.removeprefix("bigain."), name, target) for group, rows in points.items() for name, target in rows.items()
    ]


def test_every_entry_point_of_pyproject_loads(root):
    """A failure may mean that pyproject.toml changed after the install: pip install -e . again."""
    rows = declared(root)
    assert {kind for kind, _, _ in rows} == set(registry.KINDS)
    for kind, name, target in rows:
        loaded = registry.get(kind, name)
        assert f"{loaded.__module__}:{loaded.__qualname__}" == target


def test_listing_tells_names_targets_packages_and_no_problems(root):
    for kind in registry.KINDS:
        rows = {row.name: row for row in registry.entries(kind)}
        assert list(rows) == bigain.available(kind) == sorted(rows)
        for _, name, target in (row for row in declared(root) if row[0] == kind):
            assert rows[name] == registry.Entry(name, target, "bigain 0.2.0.dev0", "")


def test_a_third_party_scorer_comes_through_the_same_door(install):
    install("energy", {"scorers": "energy = energy_plugin:Energy"}, energy_plugin=SCORER)
    assert "energy" in bigain.available("scorers")
    tokens = torch.tensor([[[1.0, -2.0], [3.0, 0.0]]])
    assert bigain.build_scorer("energy", power=1)(tokens, bigain.Grid((2,))).tolist() == [[3, 3]]
    lgtm = bigain.build_reducer({"name": "lgtm", "ratio": 0.5, "scorer": {"name": "energy", "power": 3}})
    assert repr(lgtm.scorer) == "Energy(power=3)"
    (row,) = [row for row in registry.entries("scorers") if row.name == "energy"]
    assert row == registry.Entry("energy", "energy_plugin:Energy", "energy 1.0", "")


def test_installing_changes_nothing_until_named(install):
    """Listing names imports nothing, and built-in methods give what they gave."""
    tokens, grid = torch.randn(1, 16, 4), bigain.Grid((4, 4))
    before = bigain.build_reducer("lgtm", ratio=0.5).plan(tokens, grid).place
    install("explosive", {"scorers": "explosive = explosive_plugin:Energy"}, explosive_plugin="1 / 0")
    assert "explosive" in bigain.available("scorers")
    after = bigain.build_reducer("lgtm", ratio=0.5).plan(tokens, grid).place
    assert torch.equal(before, after)
    assert "explosive_plugin" not in sys.modules


def test_a_plugin_is_imported_when_asked_for_by_name(install):
    install("lazy", {"scorers": "lazy = lazy_plugin:Energy"}, lazy_plugin=SCORER)
    bigain.available("scorers")
    assert "lazy_plugin" not in sys.modules
    bigain.build_scorer("lazy")
    assert "lazy_plugin" in sys.modules


def test_without_refresh_a_new_package_is_not_seen(install, monkeypatch):
    bigain.available("scorers")
    with monkeypatch.context() as patch:
        patch.setattr(registry, "refresh", lambda: None)
        install("late", {"scorers": "late = late_plugin:Energy"}, late_plugin=SCORER)
    assert "late" not in bigain.available("scorers")
    registry.refresh()
    assert "late" in bigain.available("scorers")


BROKEN = {
    "raises at import": ("1 / 0", "ZeroDivisionError: division by zero"),
    "imports what is missing": ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
    "has no such class": ("", "AttributeError: module 'broken_plugin' has no attribute 'Energy'"),
    "is not Python": ("def", "SyntaxError: "),
}


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_listed_with_its_reason_and_breaks_no_other(install, source, reason):
    install("broken", {"scorers": "broken = broken_plugin:Energy"}, broken_plugin=source)
    install("energy", {"scorers": "energy = energy_plugin:Energy"}, energy_plugin=SCORER)
    problems = {row.name: row.problem for row in registry.entries("scorers")}
    assert reason in problems.pop("broken")
    assert not any(problems.values())
    bigain.build_scorer("energy")
    with pytest.raises(SettingError, match=r"Scorer 'broken' of broken 1\.0 cannot be imported") as caught:
        bigain.build_scorer("broken")
    assert reason in str(caught.value)


def test_a_name_claimed_twice_names_both_packages(install):
    install("first", {"scorers": "energy = first_plugin:Energy"}, "1.0", first_plugin=SCORER)
    install("second", {"scorers": "energy = second_plugin:Energy"}, "2.1", second_plugin=SCORER)
    with pytest.raises(SettingError, match="claimed twice") as caught:
        bigain.build_scorer("energy")
    for part in ("first 1.0 as first_plugin:Energy", "second 2.1 as second_plugin:Energy"):
        assert part in str(caught.value)
    rows = [row for row in registry.entries("scorers") if row.name == "energy"]
    assert {row.package for row in rows} == {"first 1.0", "second 2.1"}
    assert all("claimed twice" in row.problem for row in rows)
    bigain.build_scorer("laplacian_l1")


def test_claiming_a_built_in_name_changes_nothing_for_others_and_is_told(install):
    install("thief", {"scorers": "laplacian_l1 = thief_plugin:Energy"}, thief_plugin=SCORER)
    assert type(bigain.build_scorer("laplacian_l1")) is LaplacianL1
    own, other = (entry for entry in registry.entries("scorers") if entry.name == "laplacian_l1")
    if other.package.startswith("bigain "):
        own, other = other, own
    assert own.problem == ""
    assert (
        "is bigain's own and goes on to mean that: thief 1.0 has to give thief_plugin:Energy another" in other.problem
    )


def test_the_same_target_listed_twice_counts_once(monkeypatch):
    """An editable install can list an entry point twice."""
    point = EntryPoint("energy", "bigain.scorers.laplacian:LaplacianL1", "bigain.scorers")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point, point] if group == point.group else [])
    registry.refresh()
    try:
        assert registry.get("scorers", "energy") is LaplacianL1
        assert registry.entries("scorers") == [registry.Entry("energy", point.value, "an unnamed package", "")]
    finally:
        registry._declared.cache_clear()


@pytest.mark.parametrize(
    "target", ["bigain.reducers.tome:ToMe", "bigain.functional.filters:laplacian", "bigain.grid:Grid", "math:pi"]
)
def test_something_of_another_kind_is_refused(install, target):
    install("mixed-up", {"scorers": f"odd = {target}"})
    with pytest.raises(SettingError, match=r"no subclass of bigain\.scorers\.base\.TokenScorer") as caught:
        bigain.build_scorer("odd")
    assert "mixed-up 1.0" in str(caught.value)
    assert target in str(caught.value)


def test_one_package_may_bring_every_kind(install):
    reducer = "from bigain.reducers.tome import ToMe\n\nclass Quiet(ToMe):\n    pass\n"
    install(
        "bundle",
        {"scorers": "energy = bundle_scorer:Energy", "reducers": "quiet = bundle_reducer:Quiet"},
        bundle_scorer=SCORER,
        bundle_reducer=reducer,
    )
    assert {"energy"} < set(bigain.available("scorers"))
    assert {"quiet"} < set(bigain.available("reducers"))
    assert bigain.build_reducer("quiet", ratio=0.5).reduced_length(bigain.Grid((4, 4))) == 8


ADAPTERS = {
    "raises at import": "1 / 0",
    "leaves its methods out": "from bigain.adapters.base import Adapter\n\nclass Odd(Adapter):\n    pass\n",
    "names no library": "from bigain.adapters.base import Adapter\n\nclass Odd(Adapter):\n    pass\n\n"
    "Odd.__abstractmethods__ = frozenset()",
    "cannot be made": "from bigain.adapters.base import Adapter\n\nclass Odd(Adapter):\n    def __init__(self):\n"
    "        raise OSError('no licence')\n\nOdd.__abstractmethods__ = frozenset()",
    "fails when asked": "from bigain.adapters.base import Adapter\n\nclass Odd(Adapter):\n    library = 'torch'\n"
    "    def matches(self, model):\n        raise KeyError('blocks')\n\nOdd.__abstractmethods__ = frozenset()",
}


@pytest.mark.parametrize("source", ADAPTERS.values(), ids=ADAPTERS)
def test_a_broken_adapter_does_not_keep_others_from_attaching(install, tiny_backbone, source):
    """`aaa` is tried before the built-in ones."""
    install("aaa", {"adapters": "aaa = aaa_plugin:Odd"}, aaa_plugin=source)
    with bigain.attach(tiny_backbone, "lgtm", ratio=0.5) as report:
        assert report.sites
    with pytest.raises(SiteError, match=r"known families are: aaa.*dit"):
        bigain.attach(torch.nn.Linear(1, 1), "lgtm", ratio=0.5)


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [("reducers", "lgmt", "lgtm"), ("reducers", "ToMe", "tome"), ("scorers", "laplacian", "laplacian_l1")],
)
def test_an_unknown_name_suggests_the_nearest(kind, name, hint):
    with pytest.raises(SettingError, match=rf"no {kind[:-1]} named '{name}'\. Did you mean .*{hint}.*Available: "):
        registry.build(kind, name, ratio=0.5)


def test_a_name_far_from_all_lists_them():
    with pytest.raises(SettingError, match=r"no reducer named 'xyz'\. Available: .*lgtm.*tome") as caught:
        bigain.build_reducer("xyz")
    assert "Did you mean" not in str(caught.value)


def test_an_unknown_kind_is_refused():
    with pytest.raises(SettingError, match="scorers, reducers, adapters, backbones; got 'scorer'"):
        bigain.available("scorer")


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "lgtm", "ratio": 0.5, "mode": "prune"},
        {"name": "lgtm", "init_args": {"ratio": 0.5, "mode": "prune"}},
        {"class_path": "bigain.reducers.lgtm.LGTM", "init_args": {"ratio": 0.5, "mode": "prune"}},
        {"class_path": "bigain.reducers.lgtm:LGTM", "ratio": 0.5, "mode": "prune"},
    ],
    ids=str,
)
def test_mappings_build_the_same_and_are_left_as_they_were(spec):
    given = {key: dict(value) if isinstance(value, dict) else value for key, value in spec.items()}
    reducer = bigain.build_reducer(given)
    assert given == spec
    assert (type(reducer).__name__, reducer.ratio, reducer.mode) == ("LGTM", 0.5, "prune")


def test_settings_given_apart_win_over_the_mapping():
    assert bigain.build_reducer({"name": "tome", "ratio": 0.5}, ratio=0.25).ratio == 0.25


def test_an_object_comes_back_as_it_is():
    scorer = LaplacianL1()
    assert bigain.build_scorer(scorer) is scorer


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module.Reducer", "cannot be imported: No module named 'no_such_module'"),
        ("bigain.reducers.lgtm.NoSuch", "cannot be imported: .*has no attribute 'NoSuch'"),
        ("bigain.scorers.laplacian.LaplacianL1", r"no subclass of bigain\.reducers\.base\.TokenReducer"),
        ("bigain.reducers.base.TokenReducer", "cannot be built: .*abstract"),
        (".LGTM", "'.LGTM' cannot be imported"),
        ("..LGTM", "'..LGTM' cannot be imported"),
        ({"ratio": 0.5}, "a mapping needs name or class_path; it has ratio"),
        (3, "give an object, a name, a class path or a mapping; got int"),
        (None, "got NoneType"),
        (LaplacianL1(), "got LaplacianL1"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused_in_words(spec, message):
    with pytest.raises(SettingError, match=message):
        bigain.build_reducer(spec)


def test_a_missing_setting_is_named():
    with pytest.raises(SettingError, match=r"Reducer 'lgtm' cannot be built: .*ratio"):
        bigain.build_reducer("lgtm")
