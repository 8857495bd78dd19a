"""The command line that every program shares."""

import errno
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backbones.command_line import run_command as backbones_command
from stores.command_line import INTERRUPTED, USER_MISTAKE, progress, run_command

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights.

    Attributes:
        cosine_weight: Weight of the cosine.
    """

    cosine_weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to do.

    Attributes:
        source: Where from.
        batch_rows: Rows at a time.
        names: Several words.
        loss: Weights.
    """

    source: str = field(kw_only=False)
    batch_rows: int = 10
    names: list[str] = field(default_factory=list)
    loss: Weights = field(default_factory=Weights)

    def __post_init__(self):
        if self.batch_rows < 1:
            raise ValueError("batch_rows must be\n at least 1")


def run(*argv, function=repr):
    return run_command(Options, function, argv, prog="python -m tests", description="Test.")


def test_the_two_copies_are_one_text():
    # stores and backbones must not import each other, so each has its own.
    assert (ROOT / "stores/command_line.py").read_bytes() == (ROOT / "backbones/command_line.py").read_bytes()


def test_options_by_place_by_name_by_dots_and_with_dashes():
    seen = []
    assert run("a.npy", "--batch-rows", "3", "--loss.cosine-weight=2", function=seen.append) == 0
    assert run("--batch_rows=3", "--loss.cosine_weight", "2", "a.npy", function=seen.append) == 0
    assert seen == [Options("a.npy", batch_rows=3, loss=Weights(cosine_weight=2.0))] * 2


def test_values_keep_their_dashes():
    seen = []
    run("a-b--c.npy", function=seen.append)
    assert seen[0].source == "a-b--c.npy"


def test_a_file_of_options_is_overridden_by_what_follows(tmp_path):
    (tmp_path / "run.yaml").write_text(json.dumps({"source": "a", "batch_rows": 5, "loss": {"cosine_weight": 3}}))
    seen = []
    assert run("--config", str(tmp_path / "run.yaml"), "--batch-rows", "6", "b", function=seen.append) == 0
    assert seen == [Options("b", batch_rows=6, loss=Weights(cosine_weight=3.0))]


@pytest.mark.parametrize(
    "argv", [["a", "--batch-rows", "many"], ["a", "--colour", "red"], [], ["a", "--batch-rows", "0"], ["a", "b"]]
)
def test_a_mistake_in_the_options_is_one_line(argv, capsys):
    assert run(*argv) == USER_MISTAKE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("mistake", [ValueError("two\nlines"), FileNotFoundError("gone"), ImportError("absent")])
def test_a_mistake_in_the_data_is_one_line(mistake, capsys):
    def fail(options):
        raise mistake

    assert run("a", function=fail) == USER_MISTAKE
    assert capsys.readouterr().err == f"error: {' '.join(str(mistake).split())}\n"


@pytest.mark.parametrize(
    ("number", "path", "told"),
    [
        (
            errno.EROFS,
            "a/.x.partial",
            "a/.x.partial cannot be written (read-only, or no right to); name another folder",
        ),
        (errno.EACCES, "a/b", "a/b cannot be written (read-only, or no right to); name another folder"),
        (errno.ENOSPC, "a/b", "a/b cannot be written: no space is left; make room, and run again"),
        (errno.ENOSPC, None, "a file cannot be written: no space is left; make room, and run again (gone wrong)"),
        (errno.ENOENT, b"a/b", "a/b is not there; correct the path"),
        (errno.EISDIR, 3, "a file is a folder where a file is expected; name a file (gone wrong)"),
        (errno.EIO, "a/b", f"[Errno {errno.EIO}] gone wrong: 'a/b'"),
    ],
)
def test_what_the_system_refuses_is_told_with_what_to_do(number, path, told, capsys):
    def fail(options):
        raise OSError(number, "gone wrong", path)

    assert run("a", function=fail) == USER_MISTAKE
    assert capsys.readouterr().err == f"error: {told}\n"


def test_a_file_that_may_not_be_read(tmp_path, capsys, monkeypatch):
    (tmp_path / "a").touch()

    def fail(options):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "a"))

    monkeypatch.setattr("os.access", lambda _, mode: mode != 4)  # root may read everything
    assert run("a", function=fail) == USER_MISTAKE
    assert "a cannot be read (no right to); ask for the right" in capsys.readouterr().err


def test_a_folder_that_is_a_file_is_told_with_what_to_do(tmp_path, capsys):
    (tmp_path / "file").touch()

    def fail(options):
        (tmp_path / "file" / "x").open("w")

    assert run("a", function=fail) == USER_MISTAKE
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/file/x lies in a file where a folder is expected; name another folder\n"
    )


@pytest.mark.parametrize(
    ("shown", "hidden"),
    [
        ("postgresql://u:s3cret@h/db", "postgresql://u:***@h/db"),
        ("postgresql+psycopg://u:s3/c@ret@h:5432/db", "postgresql+psycopg://u:***@h:5432/db"),
        ("redis://:s3cret@h", "redis://:***@h"),
        ("https://s3cret@h/db", "https://***@h/db"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("postgresql://h/db?user=u&password=s3cret&x=1", "postgresql://h/db?user=u&password=***&x=1"),
        ("lance:gs://b/t?secret_access_key=s3cret&dtype=float16", "lance:gs://b/t?secret_access_key=***&dtype=float16"),
        ("lance:az://b/t?aws_session_token=s3/c%20ret", "lance:az://b/t?aws_session_token=***"),
        ("lance:az://b/t?account_key=s3%3D%3D&sas=s3", "lance:az://b/t?account_key=***&sas=***"),
        ("https://h/t?X-Amz-Signature=s3&sig=s3&sigma=3", "https://h/t?X-Amz-Signature=***&sig=***&sigma=3"),
        ("http://h/a:b@c", "http://h/a:b@c"),
        ("sqlite:///studies/a.db", "sqlite:///studies/a.db"),
        ("a@b", "a@b"),
    ],
)
@pytest.mark.parametrize("command", [run_command, backbones_command])
def test_a_mistake_shows_no_password(shown, hidden, command, capsys, monkeypatch):
    def fail(options):
        raise ValueError(f"cannot open '{shown}' here")

    told = {"prog": "python -m stores.thing", "description": "Do the thing."}
    for argv in (["a", "--storge", shown], ["a", f"--storge={shown}"], ["a", "--batch-rows", shown]):
        assert command(Options, print, argv, **told) == USER_MISTAKE
        error = capsys.readouterr().err
        assert "s3" not in error
        assert hidden in error
    monkeypatch.setenv("COMPAT_TRACEBACK", "1")
    assert command(Options, fail, ["a"], **told) == USER_MISTAKE
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "s3" not in error
    assert error.endswith(f"error: cannot open '{hidden}' here\n")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--names", "IVF16,Flat"], ["IVF16,Flat"]),
        (["--names", "one", "two words", "--batch-rows", "3"], ["one", "two words"]),
        (["--names", '["written", "out"]'], ["written", "out"]),
        (["--names", "one", "--batch-rows", "3", "--names", "two"], ["one", "two"]),
        (["--names=one"], ["one"]),
        ([], []),
    ],
)
def test_a_list_takes_the_words_that_follow_its_name(words, names):
    seen = []
    assert run("a", *words, function=seen.append) == 0
    assert seen[0].names == names


def test_a_list_without_a_word_is_a_mistake(capsys):
    assert run("a", "--names") == USER_MISTAKE
    assert capsys.readouterr().err == "error: --names needs a value or several; none follows it\n"


def test_our_own_faults_are_not_hidden():
    def fail(options):
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        run("a", function=fail)


def test_an_interruption_says_how_to_go_on(capsys):
    def interrupt(options):
        raise KeyboardInterrupt

    assert run("a", function=interrupt) == INTERRUPTED
    assert "run again" in capsys.readouterr().err


def test_help_lists_the_options_and_succeeds(capsys):
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert "Rows at a time" in shown
    assert "--batch-rows BATCH_ROWS" in shown
    assert "--loss.cosine-weight" in shown
    assert "--batch_rows" not in shown


def test_progress_passes_everything_on_and_is_silent_when_quick(capsys):
    assert list(progress(range(5), "rows")) == [0, 1, 2, 3, 4]
    assert list(progress(iter("ab"), "rows", total=2)) == ["a", "b"]
    assert capsys.readouterr().err == ""


def test_progress_prints_plain_lines_where_there_is_no_terminal(capsys):
    list(progress(range(2), "rows", every=0.0))
    assert capsys.readouterr().err == "rows: 1/2\nrows: 2/2\n"


def test_help_imports_neither_arrays_nor_tables():
    script = (
        "import sys; from stores.convert import main; assert main(['--help']) == 0; "
        "sys.exit(','.join(sys.modules.keys() & {'numpy', 'polars', 'zarr', 'torch', 'faiss'}))"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.stderr.strip() == ""
