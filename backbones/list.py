"""List the built-in networks and what they cost: `python -m backbones.list`.

Parameters, multiply-adds and FLOPs (2 x multiply-adds) for one image, beside published figures where there are some.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from backbones.command_line import run_command

if TYPE_CHECKING:
    from backbones.networks.costs import NetworkCost

HEADER = ("network", "parameters", "multiply-adds", "FLOPs", "published", "difference", "source")
UNITS = ("", "10⁶", "10⁹", "10⁹", "", "", "")


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """What to list.

    Attributes:
        input_size: Side of the square input, in pixels; published figures are for 112.
        json: Print one JSON object and nothing else; `--json` alone means yes.
    """

    input_size: int = 112
    json: Literal["yes", "no"] = "no"


def list_networks(options: ListOptions) -> None:
    """Print the cost of every network of `backbones.networks.iresnet.ARCHITECTURES`.

    Raises:
        ValueError: for an input size that is too small.
    """
    from json import dumps

    from backbones.networks.costs import network_cost
    from backbones.networks.iresnet import ARCHITECTURES

    costs = [network_cost(name, input_size=options.input_size) for name in ARCHITECTURES]
    told = {"input_size": options.input_size, "networks": [_entry(cost) for cost in costs]}
    sys.stdout.write(f"{dumps(told, indent=2)}\n" if options.json == "yes" else _text(costs))


def _entry(cost: "NetworkCost") -> dict[str, Any]:
    from dataclasses import asdict

    from backbones.networks.costs import PUBLISHED, PUBLISHED_SIZE

    published = PUBLISHED.get(cost.name, ()) if cost.input_size == PUBLISHED_SIZE else ()
    return {
        "name": cost.name,
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
        "flops": cost.flops,
        "published": [
            asdict(figure)
            | {
                "parameters_difference": figure.parameters_difference(cost),
                "operations_difference": figure.operations_difference(cost),
            }
            for figure in published
        ],
    }


def _text(costs: Sequence["NetworkCost"]) -> str:
    from backbones.networks.costs import PUBLISHED, PUBLISHED_SIZE

    size = costs[0].input_size
    sources: list[str] = []
    rows = [HEADER, UNITS]
    for cost in costs:
        own = (cost.name, f"{cost.parameters / 1e6:.3f}", f"{cost.multiply_adds / 1e9:.3f}", f"{cost.flops / 1e9:.3f}")
        beside: list[tuple[str, str, str]] = []
        for figure in PUBLISHED.get(cost.name, ()) if size == PUBLISHED_SIZE else ():
            if figure.source not in sources:
                sources.append(figure.source)
            source = f"[{sources.index(figure.source) + 1}]"
            difference = figure.parameters_difference(cost)
            if difference is not None:
                beside.append((f"{figure.parameters} parameters", f"{difference:+.2%}", source))
            beside.append((f"{figure.operations} {figure.unit}", f"{figure.operations_difference(cost):+.2%}", source))
        for line, extra in enumerate(beside or [("", "", "")]):
            rows.append((*(own if line == 0 else ("", "", "", "")), *extra))
    heading = f"one RGB image of {size} x {size} pixels, embedding of 512 dimensions"
    legend = (
        "multiply-adds: of convolutions and matrix products; FLOPs: 2 x multiply-adds; difference: ours from theirs"
    )
    numbered = [f"[{number}] {source}" for number, source in enumerate(sources, start=1)]
    return "".join(
        f"{line}\n" for line in (heading, legend, "", *_aligned(rows), *([""] if sources else []), *numbered)
    )


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (
            cell.rjust(width) if 1 <= column <= 3 or column == 5 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(
        ListOptions,
        list_networks,
        argv,
        prog="python -m backbones.list",
        description=str(__doc__),
        switches=["json"],
    )


if __name__ == "__main__":
    sys.exit(main())
