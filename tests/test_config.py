"""Config files as they come: what YAML lets pass in silence is told, and nothing blows up."""

import pytest

from sftlab.config import read_yaml, scalar


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: 1\nb: 2\na: 3\n", "the key 'a' stands twice"),
        (b"a: {b: 1, b: 2}\n", "the key 'b' stands twice"),
        (b"[" * 5000, "not valid YAML"),
        (b"a: " + b"[" * 200 + b"]" * 200, "nested"),
        (b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
         b"d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e]\n",
         "more than 100,000 values"),
        (b"a: &a [*a]\n", "nested"),
        (b"a: 2024-99-99\n", "not valid YAML"),
        (b"a: \xff\n", "not valid YAML"),
        (b"a: !!python/object/apply:os.system [touch X]\n", "could not determine a constructor"),
        (b"- 1\n", "must hold keys and values, not a list"),
        (b"a: \x00\n", "not valid YAML"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_message(tmp_path, content, said):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_yaml(path, "--config")


def test_good_files_stay_as_they_are(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbfbase: &x {a: 1}\nother: {<<: *x, b: 2}\n")
    assert read_yaml(path, "--config") == {"base": {"a": 1}, "other": {"a": 1, "b": 2}}
    path.write_text("")
    assert read_yaml(path, "--config") == {}


def test_words_that_are_no_yaml_are_texts():
    assert [scalar(word) for word in ("1", "[a", "[" * 5000, "2024-99-99")] == [1, "[a", "[" * 5000, "2024-99-99"]
