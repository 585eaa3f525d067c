"""Changes to the keystore file, on real files and by processes that race each other."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from flowstack.keys import Group, Key, KeySet, digest, editor
from flowstack.keys.editor import (
    add_group,
    add_key,
    add_keys,
    change_group,
    change_key,
    edit,
    remove_group,
    remove_key,
)
from flowstack.keys.reading import KeystoreError, read_keys
from tests.files import state_of
from tests.rights import NOBODY, needs_root, public_folder, told_as_nobody

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def key(name: str, **fields: Any) -> Key:
    return Key(name, digest(name.encode()), **fields)


def line(name: str, rest: str = "") -> str:
    return f"{name} sha256:{digest(name.encode()).hex()}{rest}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(line("alice"))
    path.chmod(0o600)
    return path


def ids(path: Path) -> list[str]:
    reading = read_keys(path)
    assert reading.faults == ()
    return [key.id for key in reading.keys]


def only_the_keystore(path: Path) -> bool:
    return [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_an_added_key_is_read_back_as_it_was(path: Path) -> None:
    batch = key("batch", owner='Batch "night" jobs', rpm=5, disabled=True)
    add_key(path, batch)
    assert read_keys(path).keys == (key("alice"), batch)
    assert only_the_keystore(path)


def test_a_missing_file_is_made_for_its_owner_alone_with_a_line_that_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    add_key(path, key("alice"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().startswith("# Flowstack keys, one a line")
    assert ids(path) == ["alice"]


@needs_root
def test_in_a_directory_that_hands_its_group_down_a_new_file_is_readable_by_that_group(tmp_path: Path) -> None:
    os.chown(tmp_path, 0, NOBODY)
    tmp_path.chmod(0o2750)
    path = tmp_path / "keys"
    add_key(path, key("alice"))
    found = path.stat()
    assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (NOBODY, 0o640)


@needs_root
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660, 0o440])
def test_owner_group_and_mode_stay(path: Path, mode: int) -> None:
    os.chown(path, NOBODY, NOBODY - 1)
    path.chmod(mode)
    add_key(path, key("bob"))
    remove_key(path, "alice")
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (NOBODY, NOBODY - 1, mode)
    assert ids(path) == ["bob"]


def has_attributes(folder: str) -> bool:
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        try:
            os.setxattr(file.fileno(), "user.flowstack", b"probe")
        except OSError as error:
            assert error.errno == errno.ENOTSUP, error
            return False
        return True


def test_extended_attributes_stay_as_access_lists_and_labels_are_kept_in_them(tmp_path: Path) -> None:
    # Not every file system has them: tmpfs has since Linux 6.6, ext4, XFS and Btrfs always.
    folders = [str(tmp_path), "/var/tmp", str(Path(__file__).parent), "/dev/shm"]
    found = next(filter(has_attributes, folders), None)
    assert found, f"no file system with extended attributes was found at {', '.join(folders)}"
    with tempfile.TemporaryDirectory(dir=found) as folder:
        path = Path(folder, "keys")
        path.write_text(line("alice"))
        path.chmod(0o600)
        os.setxattr(path, "user.flowstack", b"kept")
        add_key(path, key("bob"))
        assert os.getxattr(path, "user.flowstack") == b"kept"


def test_a_rewrite_counts_as_a_change_now(path: Path) -> None:
    os.utime(path, (1, 1))
    add_key(path, key("bob"))
    assert path.stat().st_mtime > 1_700_000_000


def test_comments_blank_lines_order_and_spacing_stay(path: Path) -> None:
    before = f"# for alice\n{line('alice', '   owner=a  # hers')}\n\n#tail\u2028{line('bob')}   {line('bob')}# end"
    path.write_text(before)
    add_key(path, key("carol"))
    assert path.read_text() == f"{before}\n{line('carol').replace(' ', '  ')}"
    remove_key(path, "carol")
    assert path.read_text() == f"{before}\n"
    remove_key(path, "bob")
    assert path.read_text() == f"{before}\n".replace(f"   {line('bob')}", "")


def test_crlf_line_ends_stay(path: Path) -> None:
    path.write_bytes(b"# x\r\n" + line("alice").replace("\n", "\r\n").encode())
    add_key(path, key("bob"))
    remove_key(path, "alice")
    assert path.read_bytes() == b"# x\r\n" + line("bob").replace(" ", "  ").replace("\n", "\r\n").encode()


def test_a_removed_key_is_handed_back(path: Path) -> None:
    assert remove_key(path, "alice") == key("alice")
    assert ids(path) == []


def test_removing_an_unknown_key_says_so_and_changes_nothing(path: Path) -> None:
    before = state_of(path)
    with pytest.raises(KeystoreError, match="found no key with the id 'bob'; `flowstack keys list` shows the ids"):
        remove_key(path, "bob")
    assert state_of(path) == before


def test_nothing_is_removed_from_a_missing_file_and_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(KeystoreError, match="does not exist"):
        remove_key(tmp_path / "keys", "alice")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("new", "says"),
    [
        (key("alice", owner="x"), "found the id alice as in line 1"),
        (Key("bob", digest(b"alice")), "found the same hash as in line 1"),
        (key("bob", owner="two\nlines"), "as it would become"),
        (key("bob", note="fsk-0123456789abcdef"), "found a whole key"),
    ],
)
def test_a_key_that_would_make_the_file_faulty_is_not_written(path: Path, new: Key, says: str) -> None:
    before = path.read_bytes()
    with pytest.raises(KeystoreError, match=says):
        add_key(path, new)
    assert path.read_bytes() == before
    assert only_the_keystore(path)


def test_a_file_with_faults_is_not_edited_and_they_are_named(path: Path) -> None:
    path.write_text(line("alice", " rpm=x") + "bob\n")
    before = path.read_bytes()
    with pytest.raises(KeystoreError) as caught:
        add_key(path, key("carol"))
    assert [fault.line for fault in caught.value.faults] == [1, 2]
    assert path.read_bytes() == before


def test_a_file_that_everyone_may_write_is_not_edited(path: Path) -> None:
    path.chmod(0o666)
    with pytest.raises(KeystoreError, match="found mode 0666"):
        add_key(path, key("bob"))


def _overwrite(path: Path) -> None:
    path.write_text(line("mallory"))


def _rename_over(path: Path) -> None:
    other = path.with_name("other")
    other.write_text(line("mallory"))
    other.chmod(0o600)
    other.rename(path)


def _delete(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("meddle", [_overwrite, _rename_over, _delete])
def test_somebody_elses_change_meanwhile_is_not_overwritten(path: Path, meddle: Any) -> None:
    def change(text: str, keys: KeySet) -> str:
        meddle(path)
        return text + line("bob")

    with pytest.raises(KeystoreError, match="was changed by somebody else meanwhile"):
        edit(path, change)
    if meddle is not _delete:
        assert ids(path) == ["mallory"]
        assert only_the_keystore(path)
    else:
        assert list(path.parent.iterdir()) == []


def test_a_file_that_somebody_else_makes_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys"

    def change(text: str, keys: KeySet) -> str:
        _overwrite(path)
        return text + line("bob")

    with pytest.raises(KeystoreError, match="was changed by somebody else meanwhile"):
        edit(path, change, create=True)
    assert path.read_text() == line("mallory")


def test_a_symlink_stays_one_and_its_target_gets_the_change(path: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "etc"
    elsewhere.mkdir()
    link = elsewhere / "keys"
    link.symlink_to("../keys")
    add_key(link, key("bob"))
    assert link.is_symlink()
    assert os.readlink(link) == "../keys"
    assert not path.is_symlink()
    assert ids(path) == ["alice", "bob"]


def test_who_has_the_old_file_open_still_reads_the_old_keys(path: Path) -> None:
    with path.open() as before:
        add_key(path, key("bob"))
        assert before.read() == line("alice")


def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeystoreError, match=r"its directory .*/none does not exist; make it first"):
        add_key(tmp_path / "none" / "keys", key("alice"))


def test_an_edit_waits_for_the_lock_and_gives_up_with_a_reason(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editor, "LOCK_WAIT", 0.1)
    holder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(KeystoreError, match=rf"another edit is in progress .* held by process {os.getpid()} \("):
            add_key(path, key("bob"))
    finally:
        os.close(holder)
    add_key(path, key("bob"))
    assert ids(path) == ["alice", "bob"]


@needs_root
@pytest.mark.parametrize("what", ["edit", "make"])
def test_root_edits_in_another_s_folder_as_that_user(what: str) -> None:
    with public_folder() as folder:
        theirs, path = folder / "theirs", folder / "theirs" / "keys"
        theirs.mkdir()
        os.chown(theirs, NOBODY, NOBODY)
        if what == "edit":
            path.write_text(line("alice"))
            path.chmod(0o640)
            os.chown(path, NOBODY, NOBODY)
        add_key(path, key("bob"))
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (NOBODY, NOBODY)
        assert "bob" in ids(path)
        assert (os.geteuid(), os.getegid()) == (0, 0)


def _plant_link(theirs: Path, precious: Path) -> None:
    (theirs / "keys").symlink_to(precious)


def _plant_hard_link(theirs: Path, precious: Path) -> None:
    os.link(precious, theirs / "keys")


def _plant_directory(theirs: Path, precious: Path) -> None:
    theirs.rename(theirs.with_name("moved"))
    theirs.symlink_to(precious.parent)
    os.chown(theirs, NOBODY, NOBODY, follow_symlinks=False)


@needs_root
@pytest.mark.parametrize("plant", [_plant_link, _plant_hard_link, _plant_directory])
def test_what_another_user_links_to_a_file_of_root_s_root_does_not_change(plant: Any) -> None:
    with public_folder() as folder:
        theirs, precious = folder / "theirs", folder / "roots" / "keys"
        theirs.mkdir()
        os.chown(theirs, NOBODY, NOBODY)
        precious.parent.mkdir()
        precious.write_text(line("alice"))
        precious.chmod(0o644)
        plant(theirs, precious)
        before = state_of(precious)
        with pytest.raises(KeystoreError, match="in a folder of another user's root does what that user may"):
            add_key(theirs / "keys", key("bob"))
        assert state_of(precious) == before
        assert [entry.name for entry in precious.parent.iterdir()] == ["keys"]


@needs_root
def test_a_folder_that_is_swapped_while_root_edits_gets_nothing(path: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    home = tmp_path / "home"
    home.mkdir()
    (home / "keys").write_text(line("alice"))
    (home / "keys").chmod(0o600)
    os.chown(home / "keys", NOBODY, NOBODY)

    def swap(text: str, keys: KeySet) -> str:
        home.rename(tmp_path / "moved")
        home.symlink_to(elsewhere)
        return text + line("bob")

    edit(home / "keys", swap)
    assert not list(elsewhere.iterdir())
    assert ids(tmp_path / "moved" / "keys") == ["alice", "bob"]
    assert (tmp_path / "moved" / "keys").stat().st_uid == NOBODY


@needs_root
def test_a_mode_with_more_rights_than_a_keystore_has_is_not_copied(path: Path) -> None:
    path.chmod(0o4640)
    add_key(path, key("bob"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


RACER = textwrap.dedent("""
    import sys
    from pathlib import Path
    from flowstack.keys import editor
    from flowstack.keys.editor import add_key
    from flowstack.keys import Key, digest
    editor.LOCK_WAIT = 300.0  # whoever comes second may have to wait for all that the first does
    path, name = Path(sys.argv[1]), sys.argv[2]
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
    sys.stdin.readline()
    for number in range(25):
        add_key(path, Key(f"{name}-{number}", digest(f"{name}-{number}".encode())))
""")


def test_of_two_processes_that_add_at_the_same_time_every_key_survives(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, path, name],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("left", "right")
    ]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        assert [racer.wait(300) for racer in racers] == [0, 0]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    assert sorted(ids(path)) == sorted(f"{name}-{number}" for name in ("left", "right") for number in range(25))
    assert only_the_keystore(path)


@needs_root
def test_somebody_who_may_not_keep_the_owner_is_told_to_run_as_it_and_nothing_changes() -> None:
    with public_folder() as folder:
        folder.chmod(0o777)
        path = folder / "keys"
        path.write_text(line("alice"))
        path.chmod(0o644)
        imports = """
            from flowstack.keys.editor import add_key
            from flowstack.keys.store import KeystoreError
            from flowstack.keys import Key, digest
        """
        body = """
            try:
                add_key(path, Key("bob", digest(b"bob")))
            except KeystoreError as error:
                print(error)
        """
        assert "run this as the file's owner or as root" in told_as_nobody(imports, body, path)
        assert ids(path) == ["alice"]
        assert (path.stat().st_uid, only_the_keystore(path)) == (0, True)


def test_a_changed_key_keeps_its_place_and_its_comment_and_all_other_lines_stay(path: Path) -> None:
    path.write_bytes(("# first\r\n" + line("alice", " rpm=5  # hers\r") + "\n" + line("bob", " # his")).encode())
    before, after = change_key(path, "alice", lambda old: evolve(old, rpm=6, disabled=True))
    assert (before, after) == (key("alice", rpm=5), key("alice", rpm=6, disabled=True))
    assert path.read_bytes().decode() == (
        "# first\r\n" + line("alice", " rpm=6 disabled  # hers\r") + "\n" + line("bob", " # his")
    )


def test_a_change_of_a_key_that_is_not_there_or_that_the_change_refuses_writes_nothing(path: Path) -> None:
    before = state_of(path)

    def refuse(old: Key) -> Key:
        raise KeystoreError(())

    with pytest.raises(KeystoreError, match="no key with the id 'bob'"):
        change_key(path, "bob", lambda old: old)
    with pytest.raises(KeystoreError):
        change_key(path, "alice", refuse)
    assert state_of(path) == before


def test_many_keys_are_added_in_one_write_or_none_of_them(path: Path) -> None:
    add_keys(path, [key(f"k{number}") for number in range(5000)])
    assert len(ids(path)) == 5001
    before = path.read_bytes()
    with pytest.raises(KeystoreError, match="as it would become:5003:"):
        add_keys(path, [key("new"), key("k7")])
    assert path.read_bytes() == before

    def refuse(old: KeySet) -> None:
        assert len(old) == 5001
        raise KeystoreError(())

    with pytest.raises(KeystoreError):
        add_keys(path, [key("new")], refuse)
    assert path.read_bytes() == before


def test_a_changed_group_keeps_its_place_and_its_comment_and_all_other_lines_stay(path: Path) -> None:
    text = "# first\r\n" + line("alice", " group=a") + "\t@a  rpm=5   # ours\r\n" + line("bob", " # his")
    path.write_bytes(text.encode())
    before, after = change_group(path, "a", lambda old: evolve(old, rpm=6, tpm=7))
    assert (before, after) == (Group("a", rpm=5), Group("a", rpm=6, tpm=7))
    assert path.read_bytes().decode() == text.replace("@a  rpm=5   #", "@a  rpm=6 tpm=7   #")


def test_a_group_is_added_behind_the_last_line_and_one_that_is_there_is_not_added_again(path: Path) -> None:
    before = path.read_text()
    add_group(path, Group("a", rpm=5, note="x y"))
    assert path.read_text() == before + '@a  rpm=5 note="x y"\n'
    again = state_of(path)
    with pytest.raises(KeystoreError, match="found the group @a as in line 2"):
        add_group(path, Group("a"))
    assert state_of(path) == again


def test_a_group_that_keys_are_in_is_not_removed_and_they_are_named(path: Path) -> None:
    path.write_text("@a rpm=5\n@b\n" + "".join(line(f"k{number}", " group=a") for number in range(12)))
    before = state_of(path)
    with pytest.raises(KeystoreError, match=r"found 12 keys in the group a, expected none: k0, .*, k9 and 2 more;"):
        remove_group(path, "a")
    assert state_of(path) == before
    assert remove_group(path, "b") == Group("b")
    assert "@b" not in path.read_text()
    for number in range(12):
        change_key(path, f"k{number}", lambda old: evolve(old, group=None))
    assert remove_group(path, "a") == Group("a", rpm=5)
    assert path.read_text() == "".join(line(f"k{number}") for number in range(12))


@pytest.mark.parametrize(
    "change", [lambda path: change_group(path, "a", lambda old: old), lambda path: remove_group(path, "a")]
)
def test_a_group_that_is_not_there_is_said_to_be_none_and_nothing_is_written(path: Path, change: Any) -> None:
    before = state_of(path)
    with pytest.raises(KeystoreError, match="found no group with the name 'a'"):
        change(path)
    assert state_of(path) == before


def test_no_command_for_keys_takes_a_group_s_line_for_a_key_s_or_the_reverse(path: Path) -> None:
    path.write_text("@alice rpm=5\n" + line("alice"))
    for name in ("@alice", "@"):
        with pytest.raises(KeystoreError, match="found no key with the id"):
            remove_key(path, name)
        with pytest.raises(KeystoreError, match="found no key with the id"):
            change_key(path, name, lambda old: old)
    remove_key(path, "alice")
    assert path.read_text() == "@alice rpm=5\n"


def test_a_key_does_not_join_a_group_that_is_not_there(path: Path) -> None:
    before = state_of(path)
    with pytest.raises(KeystoreError, match="found 'a', which has no line in this file"):
        change_key(path, "alice", lambda old: evolve(old, group="a"))
    with pytest.raises(KeystoreError, match="found 'a', which has no line in this file"):
        add_key(path, key("bob", group="a"))
    assert state_of(path) == before
