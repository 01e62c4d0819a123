"""Folders that only one process needs: whose are removed at a start, and whose are not."""

import fcntl
import os

import pytest

from tiercast_profiles.errors import FileProblem
from tiercast_runtime.scratch import OWNER, PREFIX, remove_abandoned, scratch_folder


def _folder(parent, owner="1\n"):
    folder = parent / f"{PREFIX}left"
    folder.mkdir()
    if owner is not None:
        (folder / OWNER).write_text(owner)
    return folder


def test_a_folder_without_a_living_owner_goes_with_what_is_in_it(tmp_path):
    folder = _folder(tmp_path)
    (folder / "deeper").mkdir()
    (folder / "deeper" / "table").write_bytes(b"rows")
    remove_abandoned(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_owner_holds_its_lock_stays(tmp_path):
    with scratch_folder(tmp_path) as mine:
        (mine / "table").write_bytes(b"rows")
        remove_abandoned(tmp_path)
        assert (mine / "table").read_bytes() == b"rows"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("owner", [None, ""])
def test_a_folder_that_was_made_a_moment_ago_stays(tmp_path, owner):
    folder = _folder(tmp_path, owner)
    remove_abandoned(tmp_path)
    assert folder.exists()


def test_the_folder_of_another_user_stays(tmp_path, monkeypatch):
    folder = _folder(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    remove_abandoned(tmp_path)
    assert folder.exists()


def test_a_link_to_a_folder_elsewhere_stays_and_so_does_that(tmp_path):
    (tmp_path / "here").mkdir()
    folder = _folder(tmp_path)
    (tmp_path / "here" / f"{PREFIX}link").symlink_to(folder)
    remove_abandoned(tmp_path / "here")
    assert (tmp_path / "here" / f"{PREFIX}link" / OWNER).exists()


def test_where_files_cannot_be_locked_nothing_is_taken_for_abandoned(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with scratch_folder(tmp_path) as mine:
        remove_abandoned(tmp_path)
        assert mine.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    with pytest.raises(FileProblem, match="give another folder"), scratch_folder(tmp_path / "no" / "where"):
        pass
