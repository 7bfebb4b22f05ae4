"""Files and folders under their names are complete, old or new, whatever happens to their writer."""

import pytest

from sftlab.files import whole_file, whole_folder, write_text


def test_a_file_is_the_old_one_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(OSError, match="disk full"), whole_file(path) as partial:
        partial.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old"
    with whole_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_folder_too_and_nothing_of_the_old_one_stays_in_it(tmp_path):
    folder = tmp_path / "made" / "here"
    for name in ("old", "new"):
        with pytest.raises(OSError, match="disk full"), whole_folder(folder) as partial:
            (partial / "half").touch()
            raise OSError("disk full")
        with whole_folder(folder) as partial:
            (partial / name).touch()
            assert not folder.exists() or [path.name for path in folder.iterdir()] == ["old"]
        assert [path.name for path in folder.iterdir()] == [name]
    assert list(folder.parent.iterdir()) == [folder]
