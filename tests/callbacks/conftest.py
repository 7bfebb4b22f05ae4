"""What several tests of callbacks train on."""

import pytest
from fitting import write_records


@pytest.fixture(scope="module")
def module_records(tmp_path_factory):
    """The same for all tests of a file."""
    folder = tmp_path_factory.mktemp("records")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFTLAB_CACHE", str(folder / "cache"))
        write_records(folder)
        yield folder


@pytest.fixture
def records(tmp_path, monkeypatch):
    """A folder with small records and a cache of its own."""
    monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    write_records(tmp_path)
    return tmp_path
