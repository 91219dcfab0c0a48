"""What bigain asks of every scorer and reducer."""

from bigain.testing import parametrize_with_checks


@parametrize_with_checks(["template_range", "template_pairs"])
def test_conformance(subject, check):
    check(subject)
