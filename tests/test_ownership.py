"""Which files are believed to be this user's alone."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxlab.errors import UntrustedError
from mlxlab.files import make_folder, replaced
from mlxlab.ownership import read_own, require_own

OTHER = 12345


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cache/mlxlab/file"
    with replaced(path) as content:
        content.write(b"content")
    return path


@pytest.fixture
def give_away(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a file another user's; unless root runs this, all files become so."""

    def give(path: Path) -> None:
        own = os.geteuid()
        if own == 0:
            os.chown(path, OTHER, OTHER, follow_symlinks=False)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: own + 1)

    return give


def refused(path: Path, reason: str) -> None:
    for check in (read_own, require_own):
        with pytest.raises(UntrustedError) as caught:
            check(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_own_file_is_read(file: Path) -> None:
    assert read_own(file) == b"content"
    assert read_own(file, secret=True) == b"content"
    require_own(file)
    require_own(file.parent)


def test_others_may_read_what_is_no_secret(file: Path) -> None:
    file.chmod(0o644)
    assert read_own(file) == b"content"
    with pytest.raises(UntrustedError, match="others may read or write it"):
        read_own(file, secret=True)


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_can_write_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    refused(file, "others may write it")


def test_a_file_of_another_user_is_refused(
    file: Path, give_away: Callable[[Path], None]
) -> None:
    give_away(file)
    with pytest.raises(UntrustedError, match="others may write it"):
        read_own(file)
    with pytest.raises(UntrustedError):
        require_own(file)


@pytest.mark.parametrize("mode", [0o770, 0o707])
@pytest.mark.parametrize("above", [0, 1])
def test_a_folder_on_the_way_that_others_can_write_is_refused(
    file: Path, mode: int, above: int
) -> None:
    folder = file.parents[above]
    folder.chmod(mode)
    refused(file, f"others may write {folder} (chmod go-w {folder})")


def test_a_folder_of_another_user_is_refused(
    file: Path, give_away: Callable[[Path], None]
) -> None:
    give_away(file.parent)
    with pytest.raises(UntrustedError, match=r"another user's|others may write"):
        read_own(file)
    with pytest.raises(UntrustedError, match=r"another user's|others may write"):
        require_own(file)


def test_a_sticky_folder_may_be_anyones_to_write(file: Path) -> None:
    file.parents[1].chmod(0o1777)
    assert read_own(file) == b"content"


def test_a_link_in_place_of_the_file_is_refused(file: Path) -> None:
    moved = file.rename(file.with_name("moved"))
    file.symlink_to(moved)
    with pytest.raises(UntrustedError, match="a link in place of a file"):
        read_own(file)
    require_own(file)  # leads from our folder to our file


@pytest.mark.parametrize("text", ["{target}", "../elsewhere/really"])
def test_where_links_lead_through_counts(file: Path, text: str) -> None:
    target = file.parents[2] / "elsewhere/really"
    target.parent.mkdir(mode=0o700)
    file.parent.rename(target)
    file.parent.symlink_to(text.format(target=target))
    assert read_own(file) == b"content"
    require_own(file)
    target.parent.chmod(0o777)
    refused(file, f"others may write {target.parent} ")


def test_a_link_of_another_user_is_refused(
    file: Path, give_away: Callable[[Path], None]
) -> None:
    """One planted in a sticky folder leads wherever its owner likes."""
    link = file.parents[2] / "link"
    link.symlink_to(file.parent)
    assert read_own(link / "file") == b"content"
    give_away(link)
    with pytest.raises(UntrustedError):
        read_own(link / "file")


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UntrustedError, match="too many links"):
        require_own(tmp_path / "a/file")


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(UntrustedError, match="not a regular file"):
        read_own(tmp_path / "pipe")


def test_a_file_without_end_is_refused(file: Path) -> None:
    os.truncate(file, 2**40)
    with pytest.raises(UntrustedError, match="more than 100,000,000 bytes"):
        read_own(file)


def test_what_is_missing_is_missing(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for check in (read_own, require_own):
        with pytest.raises((FileNotFoundError, UntrustedError)):
            check(tmp_path / "no")
    with pytest.raises(FileNotFoundError):
        read_own(tmp_path / "no/such")


def test_folders_are_made_for_this_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_folder(tmp_path / "a/b")
        with replaced(tmp_path / "c/d/file"):
            pass
    finally:
        os.umask(before)
    made = [tmp_path / name for name in ("a", "a/b", "c", "c/d")]
    assert {path.stat().st_mode & 0o777 for path in made} == {0o700}
    make_folder(tmp_path / "a/b")
