"""What every command line shares: options from a dataclass, mistakes in one line, progress on standard error.

Only the standard library and jsonargparse are imported here, so that `--help` answers at once.
"""

import errno
import json
import os
import re
import sys
import time
import traceback
from argparse import ArgumentError, HelpFormatter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Sized
from dataclasses import fields
from typing import Any, TypeVar

from jsonargparse import ArgumentParser

Options = TypeVar("Options")
Item = TypeVar("Item")

_YES_OR_NO = {"yes", "no", "true", "false"}
_LOGIN = re.compile(r"://([^\s/@:]*):\S*@")
"""User and password before the host of an address; a password may hold / and @ itself."""
_TOKEN = re.compile(r"(https?)://[^\s/@:]+@")
"""What stands alone before a web server is a secret; before a database it is a user's name."""
_SECRET = re.compile(
    r"(?i)\b([\w%.-]*(?:key|secret|token|passw|pwd|sas|signature|\bsig(?==)|credential)[\w%.-]*)=[^\s&'\"]+"
)
"""Options of addresses (`secret_access_key=`, `account_key=`) whose values are not for a terminal."""
_NOT_WRITABLE = "cannot be written (read-only, or no right to); name another folder"
_NO_ROOM = "cannot be written: no space is left; make room, and run again"
_REMEDIES = {
    errno.EROFS: _NOT_WRITABLE,
    errno.EACCES: _NOT_WRITABLE,
    errno.EPERM: _NOT_WRITABLE,
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.ENOENT: "is not there; correct the path",
    errno.ENOTDIR: "lies in a file where a folder is expected; name another folder",
    errno.EISDIR: "is a folder where a file is expected; name a file",
    errno.ENAMETOOLONG: "has a longer name than the disk takes; choose a shorter one",
    errno.EMFILE: "cannot be opened, too many files are; raise the limit by `ulimit -n 4096`",
}
"""What is wrong with a path, and what to do, where the system says no more than a number."""
USER_MISTAKE = 2
INTERRUPTED = 130  # 128 + SIGINT, what a shell reports for Ctrl-C


def run_command(
    options_class: type[Options],
    function: Callable[[Options], object],
    argv: Sequence[str] | None,
    *,
    prog: str,
    description: str,
    switches: Collection[str] = (),
) -> int:
    """Fill `options_class` from the command line, call `function` with it and return the process's exit code.

    Every field of the dataclass is an option (`--batch-rows` or `--batch_rows`), a nested dataclass gives dotted ones
    (`--augmentation.shift 0.1`), a list takes several words (`--compare A B`), and a `field(kw_only=False)` is given by
    its place; a first one that is a list takes all words before the first option. `--config run.yaml` reads options
    from a file, and those after it override it. The `Attributes:` section of the dataclass's docstring becomes the text
    of `--help`.

    Args:
        options_class: a `kw_only` dataclass.
        function: the work; a ValueError, OSError or ImportError it raises becomes one line on standard error. Set
            COMPAT_TRACEBACK=1 to see where it was raised.
        argv: arguments without the program's name; None reads `sys.argv`.
        prog: how the command is called, for `--help`.
        description: first lines of `--help`.
        switches: fields that take yes or no and may stand alone, for yes (`--json`).

    Returns:
        0 when done, 2 for a mistake in the options or the data, 130 when interrupted.
    """
    # Before torch, numpy and faiss load their OpenMP: threads that spin while they wait starve every other process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        given = _with_values(sys.argv[1:] if argv is None else argv, switches)
        function(_parse(options_class, given, prog=prog, description=description))
    except SystemExit as finished:  # --help and --print_config end this way
        return finished.code if isinstance(finished.code, int) else USER_MISTAKE
    except KeyboardInterrupt:
        print("interrupted: the same command run again goes on from the last committed state", file=sys.stderr)
        return INTERRUPTED
    except ArgumentError as mistake:
        return _complain(f"{mistake}; `{prog} --help` lists the options")
    except (ValueError, OSError, ImportError) as mistake:
        return _complain(_explained(mistake) or type(mistake).__name__)
    return 0


def _explained(mistake: Exception) -> str:
    """A mistake in words; one of the system's with what to do."""
    if not isinstance(mistake, OSError) or mistake.errno not in _REMEDIES:
        return str(mistake)
    remedy = _REMEDIES[mistake.errno]
    if not isinstance(mistake.filename, str | bytes):
        return f"a file {remedy} ({mistake.strerror})"
    path = os.fsdecode(mistake.filename)
    if remedy == _NOT_WRITABLE and os.access(path, os.F_OK) and not os.access(path, os.R_OK):
        remedy = "cannot be read (no right to); ask for the right, or name another"
    return f"{path} {remedy}"


class _Parser(ArgumentParser):
    """A parser whose help shows options as people write them, with dashes."""

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        shown = super().format_help(formatter)
        return re.sub(r"(?<![\w-])--[a-z][\w.]*", lambda option: option[0].replace("_", "-"), shown)


def _parse(options_class: type[Options], argv: Sequence[str], *, prog: str, description: str) -> Options:
    parser = _Parser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of options; options after it override it")
    parser.add_class_arguments(options_class, None, as_positional=True)
    given = [_as_field(argument) for argument in argv]
    dataclass: Any = options_class  # no type says "a dataclass", so the checker is told nothing
    lists = {f"--{field.name}" for field in fields(dataclass) if "list[" in str(field.type)}
    first = [field for field in fields(dataclass) if not field.kw_only][:1]
    if first and "list[" in str(first[0].type):
        given = _places_gathered(given)
    values = parser.instantiate(parser.parse_args(_gathered(given, lists)))
    return dataclass(**{field.name: values[field.name] for field in fields(dataclass)})  # all but `config`


def _with_values(argv: Sequence[str], switches: Collection[str]) -> list[str]:
    """The arguments, `=yes` added to each switch that no word for yes or no follows."""
    alone = {f"--{name}" for name in switches}
    following = [*argv, ""][1:]
    return [
        f"{word}=yes" if _as_field(word) in alone and after not in _YES_OR_NO else word
        for word, after in zip(argv, following, strict=True)
    ]


def _as_field(argument: str) -> str:
    # People write --old-queries, the field is old_queries.
    name, equals, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if argument.startswith("--") else argument


def _gathered(arguments: list[str], lists: set[str]) -> list[str]:
    """Words that follow the options of lists (`--compare A B`, `--compare A --compare B`) as the list that is read."""
    gathered: list[str] = []
    found: dict[str, list[str]] = {}
    while arguments:
        name, equals, word = arguments[0].partition("=")
        if name not in lists:
            gathered.append(arguments.pop(0))
            continue
        count = next((i for i, word in enumerate(arguments[1:]) if word.startswith("--")), len(arguments) - 1)
        words = [word] if equals else arguments[1 : count + 1]
        if not words:
            raise ValueError(f"{name.replace('_', '-')} needs a value or several; none follows it")
        found.setdefault(name, []).extend(words)
        arguments = arguments[1 if equals else count + 1 :]
    for name, words in found.items():
        written_out = len(words) == 1 and words[0].startswith("[")
        gathered += [name, words[0] if written_out else json.dumps(words)]
    return gathered


def _places_gathered(arguments: list[str]) -> list[str]:
    """The words before the first option as one list."""
    count = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    if not count or arguments[0].startswith("["):
        return arguments
    return [json.dumps(arguments[:count]), *arguments[count:]]


def _complain(message: str) -> int:
    if os.environ.get("COMPAT_TRACEBACK") == "1":
        print(_without_logins(traceback.format_exc()), end="", file=sys.stderr)
    print("error:", _without_logins(" ".join(message.split())), file=sys.stderr)
    return USER_MISTAKE


def _without_logins(text: str) -> str:
    """The text, stars for the logins in addresses: a misspelt option is shown with its value."""
    return _SECRET.sub(r"\1=***", _TOKEN.sub(r"\1://***@", _LOGIN.sub(r"://\1:***@", text)))


def progress(
    items: Iterable[Item], description: str, *, total: int | None = None, every: float = 5.0
) -> Iterator[Item]:
    """Pass `items` on and show how far along they are: a bar on a terminal, now and then a plain line elsewhere.

    Args:
        items: what to walk through; `range(n)` counts steps.
        description: a word or two, shown in front.
        total: how many items there are, where `len(items)` does not know.
        every: least seconds between two plain lines; work done sooner than that prints nothing.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, description, total=total, console=Console(stderr=True), transient=True)
        return
    last = time.monotonic()
    of_total = "" if total is None else f"/{total}"
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last >= every:
            last = time.monotonic()
            print(f"{description}: {done}{of_total}", file=sys.stderr, flush=True)
