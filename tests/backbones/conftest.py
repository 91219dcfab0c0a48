import pytest


@pytest.fixture(autouse=True)
def use_own_cache(own_cache):
    """Every model of these tests keeps what it computes."""
