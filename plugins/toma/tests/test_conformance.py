"""What bigain asks of every reducer."""

from bigain_toma import ToMA

from bigain.testing import parametrize_with_checks


@parametrize_with_checks([ToMA])
def test_conformance(subject, check):
    check(subject)
