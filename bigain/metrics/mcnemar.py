"""McNemar's test of two methods on the same images."""

from scipy.stats import binomtest

__all__ = ["mcnemar"]


def mcnemar(first_alone: int, second_alone: int) -> float:
    """Return the exact two-sided p of two methods being right equally often.

    Images that both or neither get right say nothing about the difference. Of the others, each
    method would win half by chance: a binomial test, exact for any number of images.

    Args:
        first_alone: Images that only the first method gets right.
        second_alone: Images that only the second gets right.

    Returns:
        p, 1 where no image tells them apart.

    References:
        Note on the sampling error of the difference between correlated proportions or
        percentages (McNemar, 1947).
    """
    apart = first_alone + second_alone
    return float(binomtest(first_alone, apart, 0.5).pvalue) if apart else 1.0
