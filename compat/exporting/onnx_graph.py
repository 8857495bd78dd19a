"""Maps as ONNX graphs, built node by node: what runs is the formula, in few operators that every runtime has.

Shapes: n vectors, source dimension s, target dimension t, hidden units h.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compat.exporting.arrays import UNIFIED_BLOCKS, ArrayMap
from compat.transformers.msresnet import CHANNELS, KERNELS, LEAST_LENGTH, POOLED, MSResNet

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 17
IR_VERSION = 8
"""Old enough for a runtime of 2022."""
INPUT, OUTPUT = "vectors", "mapped"
_TINY = np.array([np.finfo(np.float32).tiny], np.float32)
_EPS = np.array([np.finfo(np.float32).eps], np.float32)
_HIDDEN = ("hidden_weight", "hidden_bias", "output_weight")
_SHORTEST = np.array([1e-12], np.float32)  # as in torch.nn.functional.normalize


class GraphBuilder:
    """An ONNX graph that grows by a node at a time; a value is known by its name."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, operator: str, inputs: Sequence[str], attributes: Mapping[str, Any] | None = None) -> str:
        """Add a node and return its output."""
        from onnx import helper

        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **(attributes or {})))
        return output

    def constant(self, array: np.ndarray) -> str:
        """Add an array that the file holds."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def unit(self, rows: str) -> str:
        """Rows scaled to unit length; one of zeros stays as it is."""
        scaled, length, _ = self._lengths(rows)
        return self.node("Div", [scaled, self.node("Max", [length, self.constant(_TINY)])])

    def short(self, rows: str, factor: float) -> str:
        """Rows scaled to the length `factor`, but for those that are next to nothing."""
        _, length, largest = self._lengths(rows)
        whole = self.node("Max", [self.node("Mul", [length, largest]), self.constant(_SHORTEST)])
        return self.node("Mul", [self.node("Div", [rows, whole]), self.constant(np.array([factor], np.float32))])

    def _lengths(self, rows: str) -> tuple[str, str, str]:
        # Of rows divided by their largest component first: squares of very long or short ones leave float32.
        largest = self.node("ReduceMax", [self.node("Abs", [rows])], {"axes": [1], "keepdims": 1})
        largest = self.node("Max", [largest, self.constant(_TINY)])
        scaled = self.node("Div", [rows, largest])
        square = self.node("Mul", [scaled, scaled])
        total = self.node("ReduceSum", [square, self.constant(np.array([1]))], {"keepdims": 1})
        return scaled, self.node("Sqrt", [total]), largest

    def fitted(self, rows: str, source_dim: int, target_dim: int) -> str:
        """Rows [n, s] cut off or padded with zeros to [n, t]."""
        if source_dim > target_dim:
            bounds = [self.constant(np.array([number])) for number in (0, target_dim, 1)]
            return self.node("Slice", [rows, *bounds])
        if source_dim < target_dim:
            return self.pad(rows, target_dim - source_dim, 0.0)
        return self.node("Identity", [rows])

    def pad(self, rows: str, columns: int, value: float) -> str:
        """Rows [n, d] with columns of one value appended, [n, d + columns]."""
        pads = self.constant(np.array([0, 0, 0, columns]))
        return self.node("Pad", [rows, pads, self.constant(np.array(value, np.float32))])

    def model(self, value: str, dims: tuple[int, int], properties: Mapping[str, str]) -> ModelProto:
        """The whole file: input [n, dims[0]], output [n, dims[1]] which is `value`, any n."""
        from onnx import TensorProto, checker, helper

        self.nodes.append(helper.make_node("Identity", [value], [OUTPUT], name=OUTPUT))
        taken, given = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", dim])
            for name, dim in zip((INPUT, OUTPUT), dims, strict=True)
        )
        graph = helper.make_graph(self.nodes, "map", [taken], [given], initializer=self.constants)
        model = helper.make_model(
            graph,
            producer_name="embedding-compat",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )
        helper.set_model_props(model, dict(properties))
        checker.check_model(model, full_check=True)
        return model


def add_array_map(graph: GraphBuilder, mapped: ArrayMap, rows: str) -> str:
    """Add a map to a graph and return its output [n, t], before it is brought to unit length."""
    tensors = mapped.tensors
    if mapped.kind == "identity":
        return graph.fitted(rows, mapped.source_dim, mapped.target_dim)
    if mapped.kind == "mlp":
        product = graph.node("MatMul", [rows, graph.constant(tensors["weight"])])
        return graph.node("Add", [product, graph.constant(tensors["bias"])])
    affine = _affine(graph, tensors, graph.unit(rows))
    if mapped.kind == "linear":
        return affine
    if mapped.kind == "unified":
        signal = graph.short(affine, math.sqrt(mapped.target_dim))
        for block in range(UNIFIED_BLOCKS):
            branch = _hidden(graph, signal, *(tensors[f"{name}_{block}"] for name in _HIDDEN))
            signal = graph.node("Add", [signal, branch])
        return signal
    scaled = graph.short(rows, math.sqrt(mapped.source_dim))
    return graph.node("Add", [affine, _hidden(graph, scaled, *(tensors[name] for name in _HIDDEN))])


def _hidden(graph: GraphBuilder, rows: str, weight: np.ndarray, bias: np.ndarray, output_weight: np.ndarray) -> str:
    """W2 gelu(W1 x + b1)."""
    hidden = graph.node("MatMul", [rows, graph.constant(weight)])
    hidden = graph.node("Add", [hidden, graph.constant(bias)])
    inner = graph.node("Erf", [graph.node("Mul", [hidden, graph.constant(np.array([0.5**0.5], np.float32))])])
    gate = graph.node("Mul", [hidden, graph.node("Add", [inner, graph.constant(np.ones(1, np.float32))])])
    gate = graph.node("Mul", [gate, graph.constant(np.array([0.5], np.float32))])
    return graph.node("MatMul", [gate, graph.constant(output_weight)])


def _affine(graph: GraphBuilder, tensors: Mapping[str, np.ndarray], directions: str) -> str:
    # W (u - c) / |u - c| + b, where |u - c|^2 = 1 - 2 u c + |c|^2: the transformer's own formula
    weight, bias, centre = (tensors[name] for name in ("weight", "bias", "centre"))
    product = graph.node("MatMul", [directions, graph.constant(weight)])
    if centre.any():
        along = graph.node("MatMul", [directions, graph.constant((-2.0 * centre)[:, None])])
        square = graph.node("Add", [along, graph.constant(np.array([1.0 + centre @ centre], np.float32))])
        distance = graph.node("Sqrt", [graph.node("Max", [square, graph.constant(_EPS)])])
        product = graph.node("Sub", [product, graph.constant(centre @ weight)])
        product = graph.node("Div", [product, distance])
    return graph.node("Add", [product, graph.constant(bias)])


def add_msresnet(graph: GraphBuilder, network: MSResNet, rows: str) -> str:
    """Add the network to a graph and return its output [n, t]."""
    tensors = {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}
    length = max(network.source_dim, LEAST_LENGTH)
    if length > network.source_dim:
        rows = graph.pad(rows, length - network.source_dim, 0.0)
    signal = graph.node("Unsqueeze", [rows, graph.constant(np.array([1]))])
    signal = _normalised(graph, tensors, "stem.0", signal)
    signal = _normalised(graph, tensors, "stem.2", _convolved(graph, tensors, "stem.1", signal, 2))
    signal = graph.node("Relu", [signal])
    length = (length + 1) // 2
    pooled = []
    for branch in range(len(KERNELS)):
        value, left = signal, length
        for number in range(len(CHANNELS)):
            block = f"branches.{branch}.{number}"
            inner = _convolved(graph, tensors, f"{block}.residual.0", value, 2)
            inner = graph.node("Relu", [_normalised(graph, tensors, f"{block}.residual.1", inner)])
            inner = _convolved(graph, tensors, f"{block}.residual.3", inner, 1)
            inner = _normalised(graph, tensors, f"{block}.residual.4", inner)
            shortcut = _convolved(graph, tensors, f"{block}.shortcut.0", value, 2)
            shortcut = _normalised(graph, tensors, f"{block}.shortcut.1", shortcut)
            value = graph.node("Relu", [graph.node("Add", [inner, shortcut])])
            left = (left + 1) // 2
        value = graph.node("MatMul", [value, graph.constant(pooling(left, POOLED))])
        pooled.append(graph.node("Flatten", [value], {"axis": 1}))
    joined = graph.node("Concat", pooled, {"axis": 1})
    product = graph.node("MatMul", [joined, graph.constant(tensors["output.weight"].T)])
    return graph.node("Add", [product, graph.constant(tensors["output.bias"])])


def pooling(length: int, positions: int) -> np.ndarray:
    """Adaptive average pooling as a matrix, float32 [length, positions]: position i is the mean of a stretch.

    The stretch is floor(i length / positions) to ceil((i + 1) length / positions), as in torch.nn.AdaptiveAvgPool1d.
    """
    matrix = np.zeros((length, positions), np.float32)
    for position in range(positions):
        first, stop = position * length // positions, -(-(position + 1) * length // positions)
        matrix[first:stop, position] = 1.0 / (stop - first)
    return matrix


def _convolved(graph: GraphBuilder, tensors: Mapping[str, np.ndarray], name: str, signal: str, stride: int) -> str:
    weight = tensors[f"{name}.weight"]
    padding = weight.shape[2] // 2
    settings = {"kernel_shape": [weight.shape[2]], "strides": [stride], "pads": [padding, padding]}
    return graph.node("Conv", [signal, graph.constant(weight)], settings)


def _normalised(graph: GraphBuilder, tensors: Mapping[str, np.ndarray], name: str, signal: str) -> str:
    parameters = ("weight", "bias", "running_mean", "running_var")
    constants = [graph.constant(tensors[f"{name}.{parameter}"]) for parameter in parameters]
    return graph.node("BatchNormalization", [signal, *constants], {"epsilon": 1e-5})
