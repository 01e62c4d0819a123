"""Files in which the kernel describes a machine: what they say, and that an unknown is none."""

import pytest

from tiercast_profiles.kernel_files import read_choice, read_memory_info, read_number, read_words


@pytest.fixture
def file(tmp_path):
    """Writes a file and gives its path; None leaves it out."""

    def write(text):
        path = tmp_path / "file"
        if text is not None:
            path.write_bytes(text)
        return path

    return write


@pytest.mark.parametrize(("text", "said"), [(b" a b\n", "a b"), (b"\n", None), (None, None), (b"\xff", "\ufffd")])
def test_words_are_without_the_space_around_them(file, text, said):
    assert read_words(file(text)) == said


@pytest.mark.parametrize(("text", "said"), [(b"12\n", 12), (b"-1", None), (b"max", None), (b"", None), (None, None)])
def test_a_number_is_one_without_a_sign(file, text, said):
    assert read_number(file(text)) == said


@pytest.mark.parametrize(
    ("text", "said"), [(b"always [madvise] never\n", "madvise"), (b"default\n", "default"), (b"", None), (None, None)]
)
def test_the_choice_is_what_stands_in_brackets(file, text, said):
    assert read_choice(file(text)) == said


def test_sizes_of_memory_are_bytes_and_counts_are_counts(file):
    text = b"MemTotal:       2 kB\nHugePages_Free:    3\nBroken\nOdd: many kB\n"
    assert read_memory_info(file(text)) == {"MemTotal": 2048, "HugePages_Free": 3}
    assert read_memory_info(file(None) / "none") == {}
