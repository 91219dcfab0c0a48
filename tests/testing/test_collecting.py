"""Cases for pytest: what is collected, how it is called, and what a broken plugin does."""

import ast
import subprocess
import sys

import pytest

import bigain
from bigain import registry
from bigain.errors import SettingError
from bigain.reducers.base import Identity
from bigain.reducers.bipartite import BipartiteReducer
from bigain.reducers.lgtm import LGTM
from bigain.reducers.tome import ToMe
from bigain.scorers.base import TokenScorer
from bigain.scorers.laplacian import LaplacianL1
from bigain.testing import ContractError, check_scorer, checks_of, parametrize_with_checks
from bigain.testing.collecting import cases_of, label

pytest_plugins = ["pytester"]


def identifiers(subjects):
    return [identifier for _, _, _, identifier in cases_of(subjects)]


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        (Identity(), "Identity"),
        (LaplacianL1(), "LaplacianL1"),
        (LaplacianL1("replicate"), "LaplacianL1-padding_replicate"),
        (ToMe(0.5), "ToMe-ratio_0.5"),
        (ToMe(0.3, randomize=False, cell=(1, 3), mode="prune"), "ToMe-ratio_0.3-randomize_False-cell_1x3-mode_prune"),
        (LGTM(0.5, LaplacianL1("replicate")), "LGTM-ratio_0.5-scorer_LaplacianL1-padding_replicate"),
    ],
    ids=repr,
)
def test_a_label_tells_the_settings_that_are_not_defaults(subject, expected):
    assert label(subject) == expected


def test_each_check_of_each_subject_is_a_case():
    names = {kind: [check.name for check in checks_of(kind)] for kind in ("scorers", "reducers")}
    assert identifiers([ToMe(0.5)]) == [f"ToMe-ratio_0.5-{name}" for name in names["reducers"]]
    assert identifiers([LaplacianL1]) == [
        f"LaplacianL1{settings}-{name}" for settings in ("", "-padding_replicate") for name in names["scorers"]
    ]
    mixed = identifiers(["laplacian_l1", ToMe(0.5), Identity])
    starts = ("laplacian_l1-", "laplacian_l1-padding_replicate-", "ToMe-ratio_0.5-", "Identity-")
    assert all(any(identifier.startswith(start) for identifier in mixed) for start in starts)
    assert len(mixed) == 2 * len(names["scorers"]) + 2 * len(names["reducers"])


def test_one_subject_needs_no_list():
    assert identifiers("identity") == identifiers(["identity"])
    assert identifiers(Identity) == identifiers([Identity])


def test_nothing_given_means_everything_registered():
    found = identifiers(None)
    for kind in ("scorers", "reducers"):
        for name in bigain.available(kind):
            assert any(identifier.startswith(f"{name}-") for identifier in found)


class NoExamples(TokenScorer):
    def __init__(self, power: int):
        self.power = power

    def raw(self, tokens, grid):
        return tokens.float().abs().pow(self.power).sum(dim=-1)


class EmptyExamples(TokenScorer):
    @classmethod
    def examples(cls):
        return []


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (NoExamples, r"NoExamples\.examples\(\) raises TypeError: .*'power'.*Override the classmethod examples\(\)"),
        (EmptyExamples, r"EmptyExamples\.examples\(\) is empty\. Override the classmethod examples\(\)"),
        (BipartiteReducer, r"BipartiteReducer\.examples\(\) raises TypeError"),
        ("no_such_name", "'no_such_name' is no scorer, no reducer, and no class or name of one"),
        (dict, "dict derives neither from TokenScorer nor from TokenReducer"),
        (3, "3 is no scorer, no reducer"),
    ],
)
def test_what_cannot_be_built_is_one_failing_case(given, reason):
    ((subject, name, check, identifier),) = cases_of([given])
    assert name == "check_can_be_built"
    assert identifier.endswith("-check_can_be_built")
    with pytest.raises(ContractError, match=reason):
        check(subject)


def test_a_plugin_that_cannot_be_imported_is_one_failing_case(tmp_path, monkeypatch):
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bigain.scorers]\nexplosive = explosive_plugin:Energy\n")
    (tmp_path / "explosive_plugin.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    registry.refresh()
    try:
        found = {identifier: (subject, check) for subject, _, check, identifier in cases_of()}
        subject, check = found["explosive-check_can_be_built"]
        with pytest.raises(ContractError, match="ZeroDivisionError: division by zero"):
            check(subject)
        assert "identity-check_pickles" in found
    finally:
        monkeypatch.undo()
        registry.refresh()


def test_expected_failures_are_strict(pytester):
    pytester.makepyfile("""
        from bigain.scorers.base import TokenScorer
        from bigain.testing import parametrize_with_checks

        class Wide(TokenScorer):
            def raw(self, tokens, grid):
                return tokens.double().abs().sum(dim=-1)

        reasons = {"check_scores_have_shape_and_type": "known to be wide", "check_large_means_detail": "not so"}

        @parametrize_with_checks([Wide], expected_failed_checks=reasons)
        def test_conformance(subject, check):
            check(subject)
    """)
    result = pytester.runpytest_inprocess("-rxXf", "-k", "shape or detail or pickles", "-p", "no:cacheprovider")
    result.assert_outcomes(xfailed=1, failed=1, passed=1)
    result.stdout.fnmatch_lines(
        [
            "*Wide-check_large_means_detail*",
            "*XPASS(strict)*",
            "XFAIL*check_scores_have_shape_and_type* - known to be wide",
        ]
    )


def test_an_expected_failure_of_no_check_is_refused():
    with pytest.raises(SettingError, match="expected_failed_checks names check_pickle; the checks are"):
        parametrize_with_checks([Identity], expected_failed_checks={"check_pickle": "misspelt"})


class WideAndForgetful(NoExamples):
    def __init__(self):
        self.seen = 0

    def raw(self, tokens, grid):
        self.seen += 1
        return tokens.float().abs().sum(dim=-1).double()


def test_the_message_tells_every_failure_why_it_matters_and_what_was_seen():
    with pytest.raises(ContractError) as caught:
        check_scorer(WideAndForgetful())
    assert str(caught.value).startswith("""\
WideAndForgetful(seen=0) fails 3 checks.

check_scores_have_shape_and_type
  why:  Reducers index scores by the grid's tokens and compare them in float32.
  seen: scores are torch.float64, expected torch.float32
        on grid (6, 6), 3 rows of 8 channels, layer 0, stage None

check_no_state_between_calls
  why:  What one forward pass leaves behind would change the next, and figures would depend on what ran before.
  seen: its attributes changed, to {'seen': 3}
        on grid (6, 6), 3 rows of 8 channels, layer 0, stage None

check_compiles_to_one_graph
  why:  A graph break or a recompilation inside a denoising loop costs more than the reduction saves.
""")
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value.__cause__, AssertionError)


def test_every_check_says_why_in_one_sentence():
    for kind in ("scorers", "reducers"):
        names = [check.name for check in checks_of(kind)]
        assert len(set(names)) == len(names)
        for check in checks_of(kind):
            assert check.name.startswith("check_")
            assert check.why.endswith(".")
            assert len(check.why) > 40


def test_importing_loads_neither_pytest_nor_a_model_library():
    heavy = ("pytest", "hypothesis", "diffusers", "lightning", "torchmetrics", "matplotlib")
    program = (
        "import sys, bigain, bigain.testing\nfrom bigain.reducers.tome import ToMe\n"
        "bigain.testing.check_reducer(ToMe(0.5))\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == []


def test_names_classes_and_objects_are_checked_alike():
    from bigain.scorers.magnitude import L2Norm
    from bigain.testing import check_reducer, check_scorer

    for given in ("l2_norm", L2Norm, L2Norm()):
        check_scorer(given)
    with pytest.raises(SettingError, match=r"This checks scorers: give an object.*; got ToMe"):
        check_scorer(bigain.build_reducer("tome", ratio=0.5))
    with pytest.raises(SettingError, match="There is no reducer named 'l2_norm'"):
        check_reducer("l2_norm")


def test_a_specimen_takes_a_model_as_well_as_what_makes_one():
    from torch import nn

    from bigain.testing import Specimen

    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    specimen = Specimen(model)
    assert specimen.made() is not model
    assert isinstance(specimen.made(), nn.TransformerEncoderLayer)
    assert str(specimen) == "TransformerEncoderLayer"
