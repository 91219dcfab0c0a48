import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep no tensors of a test where others would find them."""
    monkeypatch.setenv("BIGAIN_CACHE", str(tmp_path / "cache"))
