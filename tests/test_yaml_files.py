"""Config files as they come: what YAML lets pass in silence is told, and nothing blows up."""

import pytest

from sftlab.yaml_files import read_yaml, scalar


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


@pytest.mark.parametrize(("word", "number"), [("1e-3", 1e-3), ("-2E5", -2e5), ("1.e+2", 100.0), ("1.5e-05", 1.5e-5)])
def test_powers_of_ten_are_numbers(word, number):
    assert scalar(word) == number and isinstance(scalar(word), float)


@pytest.mark.parametrize("word", ["e5", "1e", "v1e5", "1e5x", "1-e5", "1e5.jsonl", "2e3/4"])
def test_what_only_looks_like_one_stays_a_text(tmp_path, word):
    assert scalar(word) == word
    (tmp_path / "c.yaml").write_text(f"a: {word}\n")
    assert read_yaml(tmp_path / "c.yaml", "--config") == {"a": word}


@pytest.mark.parametrize(
    ("word", "number"), [("010", 8), ("-017", -15), ("1:30", 90), ("1:00:00", 3600), ("1:30.5", 90.5)]
)
def test_numbers_that_yaml_reads_in_another_base_are_refused(tmp_path, word, number):
    (tmp_path / "c.yaml").write_text(f"epochs: [{word}]")
    with pytest.raises(ValueError, match=rf"{word} is the number {number} in base (8|60): write that"):
        read_yaml(tmp_path / "c.yaml", "--config")
    (tmp_path / "c.yaml").write_text(f"epochs: '{word}'")
    assert read_yaml(tmp_path / "c.yaml", "--config") == {"epochs": word}
