"""What a result says of the software that made it."""

import sys

import pytest

import bigain
from bigain.reducers.kv_merge import KVMerge
from bigain.results.provenance import code_of, provenance

FORMULA = """
from bigain import TokenScorer

class Mine(TokenScorer):
    def raw(self, tokens, grid):
        return tokens.float().abs().mean(dim=-1)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Write a module with a scorer, and import it: `mine(text)`."""

    def write(text):
        (tmp_path / "mine_scorers.py").write_text(text)
        monkeypatch.delitem(sys.modules, "mine_scorers", raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        try:
            return __import__("mine_scorers").Mine()
        finally:
            sys.dont_write_bytecode = before

    return write


def test_a_changed_formula_differs_from_what_it_was(mine):
    """`--resume` must not go on with another formula under the same name."""
    before = code_of(bigain.build_reducer("lgtm", ratio=0.5, scorer=mine(FORMULA)))
    again = code_of(bigain.build_reducer("lgtm", ratio=0.7, scorer=mine(FORMULA)))
    after = code_of(bigain.build_reducer("lgtm", ratio=0.5, scorer=mine(FORMULA.replace("mean", "sum"))))
    assert list(before) == ["mine_scorers.Mine"]
    assert before == again != after


def test_settings_within_settings_count(mine):
    inner = bigain.build_reducer("lgtm", ratio=0.5, scorer=mine(FORMULA))
    rules = [{"reducer": inner, "timesteps": [0, 500]}]
    for outer in (KVMerge(inner), bigain.build_reducer("scheduled", rules=rules)):
        assert code_of(outer) == code_of(inner) != {}


def test_bigains_own_code_is_known_by_its_version():
    assert (
        code_of(
            bigain.build_reducer(
                "scheduled", rules=[{"reducer": "identity", "layers": [0]}], otherwise={"name": "lgtm", "ratio": 0.5}
            )
        )
        == {}
    )
    assert provenance("cpu")["versions"]["bigain"]


def test_packages_that_register_something_are_named():
    brought = {entry.package for kind in ("scorers", "reducers") for entry in bigain.registry.entries(kind)}
    versions = provenance("cpu")["versions"]
    for package in brought:
        name, _, version = package.partition(" ")
        assert versions[name] == version
