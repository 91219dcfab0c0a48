"""What bigain asks of every scorer."""

from bigain.testing import parametrize_with_checks


@parametrize_with_checks(["haar_high_band", "dct_high_band"])
def test_conformance(subject, check):
    check(subject)
