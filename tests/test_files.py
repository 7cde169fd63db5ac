"""What reading and writing a file does to what stands at its path, and which paths are refused, in one line."""

import os
import re
import stat
import subprocess
import sys
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt_gym.errors import InputError, printable, quoted
from graphopt_gym.files import check_output, file_stem, make_folder, read_file, read_text, write_file, write_text

BAD_PATHS = ["a" * 5000, "a/" * 2500 + "b", "nul\0byte", "\0"]
AS_ROOT = os.geteuid() == 0


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def one_line(error):
    text = str(error.value)
    assert text.isprintable()
    assert 0 < len(text) < 600
    return text


def test_write_file__follows_a_link_and_keeps_it(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to("target")
    assert write_file(link, b"new") == link
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    dangling, far = tmp_path / "dangling", tmp_path / "folder" / "far"
    dangling.symlink_to(far)
    with pytest.raises(InputError, match=r"cannot write .*No such file"):
        write_file(dangling, b"new")
    write_file(dangling, b"new", make_folders=True)
    assert dangling.is_symlink()
    assert far.read_bytes() == b"new"
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with pytest.raises(InputError, match="cannot write"):
        write_file(loop, b"new")
    assert loop.is_symlink()


def test_write_file__writes_into_a_pipe_and_keeps_it(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_file(pipe, b"x" * 100_000)
    reader.join(10)
    assert read == [b"x" * 100_000]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_write_file__writes_into_a_device_and_keeps_it():
    write_file("/dev/null", b"gone")
    check_output("/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(InputError, match="cannot write '/dev/full': No space left"):
        write_file("/dev/full", b"more")


WRITES_OUT = """
from graphopt_gym.files import check_output, write_text
print("before")
check_output("/dev/stdout")
write_text("/dev/stdout", "written\\n")
print("after")
"""


@pytest.mark.parametrize("to_file", [False, True])
def test_write_file__to_standard_output_comes_between_what_is_printed(tmp_path, to_file):
    """A regular file behind standard output is not replaced: what is printed later goes to the same one."""
    with open(tmp_path / "out", "w+") as file:
        done = subprocess.run(
            [sys.executable, "-c", WRITES_OUT], stdout=file if to_file else subprocess.PIPE, text=True, check=True
        )
        file.seek(0)
        assert (file.read() if to_file else done.stdout) == "before\nwritten\nafter\n"


def test_write_file__takes_the_mode_of_the_umask_or_of_the_file_before(tmp_path):
    old = os.umask(0o077)
    try:
        assert mode_of(write_file(tmp_path / "secret", b"1")) == 0o600
        os.umask(0o002)
        assert mode_of(write_file(tmp_path / "shared", b"1")) == 0o664
        (tmp_path / "shared").chmod(0o640)
        assert mode_of(write_file(tmp_path / "shared", b"2")) == 0o640
        (tmp_path / "link").symlink_to("secret")
        assert mode_of(write_file(tmp_path / "link", b"2")) == 0o600
    finally:
        os.umask(old)


def test_write_file__takes_the_longest_names_that_there_are(tmp_path):
    path = tmp_path / ("n" * 255)
    check_output(path)
    assert write_text(path, "é\ud800").read_bytes() == "é\\ud800".encode()
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.skipif(AS_ROOT, reason="root writes what is protected")
def test_write_file__does_not_replace_what_is_write_protected(tmp_path):
    path = write_file(tmp_path / "kept", b"old")
    path.chmod(0o444)
    for use in (check_output, lambda at: write_file(at, b"new")):
        with pytest.raises(InputError, match="write-protected"):
            use(path)
    assert path.read_bytes() == b"old"


def test_write_file__leaves_the_old_file_and_nothing_else_where_it_fails(tmp_path, monkeypatch):
    path = write_file(tmp_path / "file", b"old")

    def fails(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(InputError, match="No space left on device; give a path"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("path", BAD_PATHS)
@pytest.mark.parametrize("use", [check_output, make_folder, read_file, read_text, lambda path: write_file(path, b"")])
def test_files__refuse_paths_that_cannot_be_in_one_line(path, use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        use(path)
    assert "cannot be" in one_line(error) or "cannot write" in one_line(error)
    assert not os.listdir(tmp_path)


def test_check_output__refuses_what_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    check_output(None)
    check_output(tmp_path / "new")
    check_output(tmp_path / "file")
    for path in (tmp_path, tmp_path / "file" / "below", tmp_path / "absent" / "file", "/proc/none"):
        with pytest.raises(InputError, match="cannot write"):
            check_output(path)
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(InputError, match=r"cannot write .*exists"):
        make_folder(tmp_path / "file")
    assert make_folder(tmp_path / "a" / "b").is_dir()


def test_check_output__refuses_an_input_under_each_of_its_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_file("a.npz", b"graph")
    os.symlink("a.npz", "link")
    os.link("a.npz", "hard")
    write_file("copy", b"graph")
    for name in ("a.npz", "./a.npz", "link", "hard", tmp_path / "a.npz"):
        with pytest.raises(InputError, match=r"is the input .*which would be lost; give another path"):
            check_output(name, inputs=("v100x4", "a.npz"))
    check_output("copy", inputs=("a.npz", None, 3, "\0", "x" * 5000))
    check_output("new", inputs=("a.npz",))
    check_output("/dev/null", inputs=("/dev/null",))


def test_read_file__stops_at_its_limit(tmp_path):
    path = write_file(tmp_path / "file", b"12345")
    assert read_file(path, limit=5) == b"12345"
    with pytest.raises(InputError, match="holds more than 4 bytes"):
        read_file(path, limit=4)
    with pytest.raises(InputError, match="graph file '/dev/zero' holds more than 1,000 bytes"):
        read_file("/dev/zero", "graph file", limit=1000)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_file(tmp_path)
    write_file(path, b"\xff")
    with pytest.raises(InputError, match="is not a text file in UTF-8"):
        read_text(path)


@given(st.text())
def test_input_error__is_one_printable_line_whatever_text_it_quotes(text):
    assert str(InputError(f"field {text}: wrong")).isprintable()
    assert printable(text).isprintable()
    assert quoted(text).isprintable()


def test_file_stem__keeps_plain_names_and_tells_all_others_apart():
    assert [file_stem(name) for name in ("bert_base", "v100x4", "a-1.2")] == ["bert_base", "v100x4", "a-1.2"]
    names = [
        "a/b",
        "a_b",
        "../a",
        ".a",
        "-a",
        "",
        " ",
        "A|b",
        "😀",
        "模型",
        "\ud800",
        "nul\0",
        "x" * 500,
        "x" * 501,
        "two\n",
    ]
    stems = [file_stem(name) for name in names]
    assert len(set(stems)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}", stem) for stem in stems)


def test_quoted__shortens_what_is_long_and_takes_numbers_that_python_does_not_print():
    assert quoted("short") == "'short'"
    assert len(quoted("x" * 5000)) < 250
    assert quoted(10**5000) == "a number of 16610 bits"
    assert quoted([10**5000]) == "a list"


@given(content=st.binary(max_size=2000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
def test_write_file__gives_back_what_was_written(tmp_path, content):
    assert read_file(write_file(tmp_path / "file", content)) == content


PRINTS = """
import ctypes, sys
from graphopt_gym.files import silenced
say = ctypes.CDLL(None).puts
say(b"before")
with silenced():
    say(b"inside")
    with silenced():
        print("inside")
print("python")
say(b"after")
"""


@pytest.mark.parametrize("closed", [False, True])
def test_silenced__drops_what_c_prints_meanwhile_and_nothing_else(closed):
    code = f"import os; os.close(1)\n{PRINTS}" if closed else PRINTS
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert sorted(done.stdout.split()) == ([] if closed else ["after", "before", "python"])
    assert closed or done.stderr == ""
