import json
from functools import cache

import pytest
import torch
from torch import nn

from backbones.list import main
from backbones.networks.costs import PUBLISHED, NetworkCost, network_cost
from backbones.networks.iresnet import ARCHITECTURES, build_architecture


@cache
def counted(name: str) -> NetworkCost:
    return network_cost(name)


def slow_multiply_adds(network: nn.Module, size: int) -> tuple[int, int, int]:
    """Multiply-adds layer by layer, elements that norms put out, and elements that slopes put out."""
    found = {"products": 0, "norms": 0, "slopes": 0}

    def count(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            rows, columns = module.kernel_size
            found["products"] += output.numel() * module.in_channels * rows * columns
        elif isinstance(module, nn.Linear):
            found["products"] += output.numel() * module.in_features
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            found["norms"] += output.numel()
        elif isinstance(module, nn.PReLU):
            found["slopes"] += output.numel()

    for module in network.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        network.eval()(torch.empty(1, 3, size, size, device="meta"))
    return found["products"], found["norms"], found["slopes"]


@pytest.mark.parametrize(("name", "size"), [("iresnet18", 64), ("irse34", 36), ("iresnet50", 112)])
def test_costs_equal_a_count_layer_by_layer(name: str, size: int) -> None:
    with torch.device("meta"):
        network = build_architecture(name, input_size=size)
    products, norms, slopes = slow_multiply_adds(network, size)
    cost = network_cost(name, input_size=size)
    assert cost.multiply_adds == products
    assert cost.flops == 2 * products
    assert cost.parameters == sum(parameter.numel() for parameter in network.parameters())
    if name == "iresnet50":  # where the difference from the published figure comes from
        assert (products + 2 * norms + slopes) / 1e9 == pytest.approx(6.330, abs=0.0005)


def test_every_published_figure_is_met() -> None:
    assert set(PUBLISHED) <= set(ARCHITECTURES)
    for name, figures in PUBLISHED.items():
        cost = counted(name)
        for figure in figures:
            differences = (figure.operations_difference(cost), figure.parameters_difference(cost) or 0.0)
            assert max(map(abs, differences)) <= 0.02, (name, figure)


def test_the_units_of_published_figures_are_kept_apart() -> None:
    cost = counted("iresnet50")
    (figure,) = PUBLISHED["iresnet50"]
    assert figure.unit == "multiply-adds"
    assert figure.operations_difference(cost) == pytest.approx(6.3093 / 6.330 - 1, abs=1e-4)
    in_r100 = PUBLISHED["iresnet100"][0]
    assert in_r100.unit == "FLOPs"
    assert in_r100.operations_difference(counted("iresnet100")) == pytest.approx(24.1792 / 24.22 - 1, abs=1e-4)


def test_the_command_prints_a_table_or_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in set(ARCHITECTURES) - {"iresnet18", "iresnet50", "irse18"}:
        monkeypatch.delitem(ARCHITECTURES, name)
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    assert "FLOPs: 2 x multiply-adds" in lines[1]
    row = next(line for line in lines if line.startswith("iresnet50"))
    assert row.split()[:4] == ["iresnet50", "43.591", "6.309", "12.619"]
    assert any("-0.33%" in line for line in lines)
    assert main(["--input-size", "36", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [network["name"] for network in told["networks"]] == ["iresnet18", "iresnet50", "irse18"]
    assert told["input_size"] == 36
    cost = network_cost("irse18", input_size=36)
    assert told["networks"][2]["multiply_adds"] == cost.multiply_adds
    assert told["networks"][1]["published"] == []  # figures for another size


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--input-size", "8"]) == 2
    assert capsys.readouterr().err == (
        "error: input_size is 8 pixels, expected at least 16; give a larger input size\n"
    )
