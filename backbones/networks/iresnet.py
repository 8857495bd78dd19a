"""Improved residual networks for faces (IR), as introduced with ArcFace, plain and with squeeze-and-excitation (IR-SE).

Shapes: b batch, h and w pixels, c channels, d embedding dimension.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from backbones.networks.recomputation import checkpointed

CHANNELS = (64, 128, 256, 512)
STRIDES = (2, 2, 2, 2)
SQUEEZE = 16

UNITS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    152: (3, 8, 36, 3),
    200: (6, 26, 60, 6),
}
"""Residual units per stage by depth, which counts two convolutions each, the stem's and the projection.

By that count 152, whose units are those of the bottleneck ResNet of that name, has 102 layers, and 200 has 198.
"""


class SqueezeExcitation(nn.Module):
    """Scales every channel by a factor in (0, 1) that the means of all channels decide.

    The two 1x1 convolutions have no bias, as the authors found best.

    Source: Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(1, channels // SQUEEZE)
        self.gate = nn.Sequential(
            OrderedDict(
                pool=nn.AdaptiveAvgPool2d(1),
                squeeze=nn.Conv2d(channels, squeezed, kernel_size=1, bias=False),
                activation=nn.ReLU(),
                excite=nn.Conv2d(squeezed, channels, kernel_size=1, bias=False),
                sigmoid=nn.Sigmoid(),
            )
        )

    def forward(self, features: Tensor) -> Tensor:
        """Scale [b, c, h, w] channel by channel."""
        return features * self.gate(features)


class ResidualUnit(nn.Module):
    """BN, 3x3, BN, PReLU, 3x3 with the stride, BN, plus a shortcut (1x1 and BN where the shape changes).

    The branch is a `Sequential`, so that `backbones.encoders.inference.fold_batchnorm` sees which layer feeds which.

    Args:
        channels_in: c of the input.
        channels_out: c of the output.
        stride: of the second convolution and of the shortcut.
        squeeze_excitation: whether the branch ends in a `SqueezeExcitation`.
        drop: probability, in [0, 1), that an image goes without the branch in training. The others' branches are
            divided by 1 - drop, so that evaluation needs no factor.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: int,
        *,
        squeeze_excitation: bool = False,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.drop = drop
        self.branch = nn.Sequential(
            OrderedDict(
                norm_in=nn.BatchNorm2d(channels_in),
                convolution1=_convolution(channels_in, channels_out),
                norm1=nn.BatchNorm2d(channels_out),
                activation=nn.PReLU(channels_out),
                convolution2=_convolution(channels_out, channels_out, stride),
                norm2=nn.BatchNorm2d(channels_out),
            )
        )
        if squeeze_excitation:
            self.branch.add_module("attention", SqueezeExcitation(channels_out))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                OrderedDict(
                    convolution=nn.Conv2d(channels_in, channels_out, kernel_size=1, stride=stride, bias=False),
                    norm=nn.BatchNorm2d(channels_out),
                )
            )

    def forward(self, features: Tensor) -> Tensor:
        """Map [b, channels_in, h, w] to [b, channels_out, ceil(h / stride), ceil(w / stride)]."""
        branch = self.branch(features)
        if self.training and self.drop > 0.0:
            # drawn on the CPU on any device: this generator's state is what a checkpoint of the training holds
            kept = torch.rand(len(branch)) >= self.drop
            branch = branch * (kept / (1.0 - self.drop)).to(branch)[:, None, None, None]
        return branch + self.shortcut(features)


class IResNet(nn.Module):
    """A residual network from square RGB images to embeddings that are not normalised.

    A 3x3 stem of stride 1 keeps small faces sharp; each of the four stages halves the resolution in its first unit.
    The whole last feature map, not its mean, is projected: where a feature lies matters in aligned faces.

    Sources: Deng et al., "ArcFace", CVPR 2019, section 3.1 (the block after Han et al., CVPR 2017); Huang et al., "Deep
    Networks with Stochastic Depth", ECCV 2016.

    Args:
        units: residual units per stage; see `UNITS`.
        embedding_dim: d.
        input_size: height and width of the images in pixels, at least 16.
        dropout: probability that an input of the projection is dropped in training.
        channels: channels per stage.
        squeeze_excitation: whether every unit ends in a `SqueezeExcitation` (IR-SE).
        stochastic_depth: probability, in [0, 1), that an image goes without the last unit's branch in training; it
            rises linearly from the first unit on: unit l of n is dropped with l / n of it. Drawn per image from
            torch's default generator.
        checkpoint_activations: keep the inputs of the units only and compute the rest again in the backward pass:
            less memory for a third more work, and the same gradients and statistics bit for bit.

    Raises:
        ValueError: for an `input_size` under 16, where the last stages would see single pixels, or a probability
            outside its range.
    """

    def __init__(
        self,
        units: Sequence[int],
        *,
        embedding_dim: int = 512,
        input_size: int = 112,
        dropout: float = 0.0,
        channels: Sequence[int] = CHANNELS,
        squeeze_excitation: bool = False,
        stochastic_depth: float = 0.0,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        if input_size < 16:
            raise ValueError(f"input_size is {input_size} pixels, expected at least 16; give a larger input size")
        if not 0.0 <= stochastic_depth < 1.0:
            raise ValueError(f"stochastic_depth is {stochastic_depth}, expected 0 to below 1; 0.2 is usual")
        self.checkpoint_activations = checkpoint_activations
        self.embedding_dim = embedding_dim
        self.input_size = input_size
        self.stem = nn.Sequential(
            OrderedDict(
                convolution=_convolution(3, channels[0]),
                norm=nn.BatchNorm2d(channels[0]),
                activation=nn.PReLU(channels[0]),
            )
        )
        stages: list[nn.Module] = []
        channels_in, side = channels[0], input_size
        drops = (stochastic_depth * unit / sum(units) for unit in range(1, sum(units) + 1))
        unit = partial(ResidualUnit, squeeze_excitation=squeeze_excitation)
        for count, channels_out, stride in zip(units, channels, STRIDES, strict=True):
            first = unit(channels_in, channels_out, stride, drop=next(drops))
            others = (unit(channels_out, channels_out, 1, drop=next(drops)) for _ in range(count - 1))
            stages.append(nn.Sequential(first, *others))
            channels_in, side = channels_out, -(-side // stride)  # a padded stride rounds up
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(
            OrderedDict(
                norm=nn.BatchNorm2d(channels_in),
                dropout=nn.Dropout(dropout),
                flatten=nn.Flatten(),
                projection=nn.Linear(channels_in * side * side, embedding_dim),
                embedding_norm=nn.BatchNorm1d(embedding_dim),
            )
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # slow there, and nothing to draw
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Embed images [b, 3, input_size, input_size], normalised to about [-1, 1], as [b, embedding_dim]."""
        features = self.stem(images)
        if self.checkpoint_activations and self.training and torch.is_grad_enabled():
            units = (unit for stage in self.stages.children() for unit in stage.children())
            for unit in units:
                features = checkpointed(unit, features)
            return self.head(features)
        return self.head(self.stages(features))


ARCHITECTURES: dict[str, Callable[..., IResNet]] = {
    **{f"iresnet{depth}": partial(IResNet, units) for depth, units in UNITS.items()},
    **{f"irse{depth}": partial(IResNet, units, squeeze_excitation=True) for depth, units in UNITS.items()},
}


def build_architecture(
    name: str,
    *,
    embedding_dim: int = 512,
    input_size: int = 112,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    checkpoint_activations: bool = False,
) -> IResNet:
    """Build the network called `name` with fresh weights from torch's default generator; see `IResNet`.

    Raises:
        ValueError: for a name that is not in `ARCHITECTURES`, and as `IResNet`.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}, expected one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name](
        embedding_dim=embedding_dim,
        input_size=input_size,
        dropout=dropout,
        stochastic_depth=stochastic_depth,
        checkpoint_activations=checkpoint_activations,
    )


def _convolution(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False)
