"""Everything registered keeps to the contract; a package of one's own is tested with the same three lines."""

from bigain.testing import parametrize_with_checks


@parametrize_with_checks()
def test_conformance(subject, check):
    check(subject)
