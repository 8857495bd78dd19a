from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backbones.command_line import progress, run_command


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Nested options.

    Attributes:
        rate: between 0 and 1.
    """

    rate: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate is {self.rate}, expected 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Options of a test.

    Attributes:
        data: where the data is.
        count: how many.
        inner: nested.
    """

    data: Path
    count: int = 3
    inner: Inner = field(default_factory=Inner)


def run(argv: list[str], raised: BaseException | None = None) -> tuple[int, list[Outer]]:
    seen: list[Outer] = []

    def work(options: Outer) -> None:
        seen.append(options)
        if raised is not None:
            raise raised

    return run_command(Outer, work, argv, prog="python -m test", description="A test."), seen


def test_options_come_from_a_file_and_arguments_after_it_win(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("data: here\ncount: 5\ninner:\n  rate: 0.25\n")
    config = ["--config", str(tmp_path / "run.yaml")]
    assert run(config) == (0, [Outer(data=Path("here"), count=5, inner=Inner(rate=0.25))])
    assert run([*config, "--inner.rate", "1"]) == (0, [Outer(data=Path("here"), count=5, inner=Inner(rate=1.0))])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: data"),
        (["--data", "x", "--dat", "y"], "unrecognized arguments: --dat y"),
        (["--data", "x", "--count", "many"], "Got value: many"),
        (["--data", "x", "--inner.rate", "2"], "rate is 2.0, expected 0 to 1"),
        (["--config", "no-such-file.yaml"], "File does not exist"),
    ],
)
def test_a_mistake_in_the_options_is_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(argv) == (2, [])
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("raised", [ValueError("two\n  lines"), OSError("two lines"), ImportError("two lines")])
def test_a_mistake_in_the_data_is_one_line(raised: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--data", "x"], raised)[0] == 2
    assert capsys.readouterr().err == "error: two lines\n"


def test_the_traceback_is_there_when_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPAT_TRACEBACK", "1")
    run(["--data", "x"], ValueError("wrong"))
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("error: wrong\n")


def test_a_bug_is_not_dressed_as_a_mistake() -> None:
    with pytest.raises(KeyError):
        run(["--data", "x"], KeyError("bug"))


def test_interruption_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--data", "x"], KeyboardInterrupt())[0] == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert run(["--help"]) == (0, [])
    shown = capsys.readouterr().out
    assert "where the data is" in shown
    assert "--inner.rate" in shown


def test_progress_passes_on_and_prints_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress("abc", "letters", every=0.0)) == ["a", "b", "c"]
    assert capsys.readouterr().err == "letters: 1/3\nletters: 2/3\nletters: 3/3\n"
    assert list(progress(iter(range(2)), "numbers", every=0.0)) == [0, 1]
    assert capsys.readouterr().err == "numbers: 1\nnumbers: 2\n"
    assert list(progress(range(1000), "quick")) == [*range(1000)]
    assert capsys.readouterr().err == ""


def test_progress_draws_a_bar_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(progress(range(3), "bar")) == [0, 1, 2]
    assert capsys.readouterr().out == ""
