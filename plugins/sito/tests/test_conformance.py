"""What bigain asks of every reducer."""

from bigain_sito import SiTo

from bigain.testing import parametrize_with_checks


@parametrize_with_checks([SiTo])
def test_conformance(subject, check):
    check(subject)
