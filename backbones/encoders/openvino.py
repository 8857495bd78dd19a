"""A network compiled by OpenVINO, for CPUs."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

PRECISIONS = {"openvino-bf16": "bf16", "openvino-fp32": "f32"}
MISSING = "openvino is not installed; run `pip install 'embedding-compat[openvino]'`, or use --engine torch"


def is_installed() -> bool:
    """Say whether OpenVINO can be imported."""
    try:
        import openvino  # noqa: F401
    except ImportError:
        return False
    return True


class OpenvinoEngine:
    """A function from float32 images [b, 3, h, w] to float32 [b, d], for the one b that it was compiled for.

    Args:
        folded: a network in evaluation mode, its norms folded.
        sample: float32 [b, 3, h, w], whose shape it is compiled for.
        precision: a key of `PRECISIONS`.

    Raises:
        ImportError: where OpenVINO is not installed.
    """

    def __init__(self, folded: nn.Module, sample: Tensor, precision: str) -> None:
        try:
            import openvino
        except ImportError as error:
            raise ImportError(MISSING) from error
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' own, about each other
            program = torch.export.export(folded, (torch.zeros(sample.shape),))
            model = openvino.convert_model(program)
        self._compiled: Any = openvino.Core().compile_model(model, "CPU", settings(PRECISIONS[precision]))

    def __call__(self, images: Tensor) -> Tensor:
        """Embed [b, 3, h, w] as [b, d]."""
        output = self._compiled([images.contiguous().numpy()])[0]
        return torch.from_numpy(output.copy())  # the next call overwrites the output


def settings(hint: str) -> dict[str, Any]:
    """Return OpenVINO's settings for a precision hint: one stream, and the threads that torch would take."""
    return {
        "INFERENCE_PRECISION_HINT": hint,
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
