"""Improved residual networks for faces (IR), as introduced with ArcFace.

Shapes: b batch, h and w pixels, c channels, d embedding dimension.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

CHANNELS = (64, 128, 256, 512)
STRIDES = (2, 2, 2, 2)


class ResidualUnit(nn.Module):
    """BN, 3x3, BN, PReLU, 3x3 with the stride, BN, plus a shortcut (1x1 and BN where the shape changes).

    The branch is a `Sequential`, so that `backbones.inference.fold_batchnorm` sees which layer feeds which.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
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
        return self.branch(features) + self.shortcut(features)


class IResNet(nn.Module):
    """A residual network from square RGB images to embeddings that are not normalised.

    A 3x3 stem of stride 1 keeps small faces sharp; each of the four stages halves the resolution in its first unit.
    The whole last feature map, not its mean, is projected: where a feature lies matters in aligned faces.

    Source: Deng et al., "ArcFace", CVPR 2019, section 3.1 (the block after Han et al., CVPR 2017).

    Args:
        units: residual units per stage; [3, 4, 14, 3] is ResNet50.
        embedding_dim: d.
        input_size: height and width of the images in pixels, at least 16.
        dropout: probability that an input of the projection is dropped in training.
        channels: channels per stage.

    Raises:
        ValueError: for an `input_size` under 16, where the last stages would see single pixels.
    """

    def __init__(
        self,
        units: Sequence[int],
        *,
        embedding_dim: int = 512,
        input_size: int = 112,
        dropout: float = 0.0,
        channels: Sequence[int] = CHANNELS,
    ) -> None:
        super().__init__()
        if input_size < 16:
            raise ValueError(f"input_size is {input_size} pixels, expected at least 16; give a larger input size")
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
        for count, channels_out, stride in zip(units, channels, STRIDES, strict=True):
            first = ResidualUnit(channels_in, channels_out, stride)
            others = (ResidualUnit(channels_out, channels_out, 1) for _ in range(count - 1))
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
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Embed images [b, 3, input_size, input_size], normalised to about [-1, 1], as [b, embedding_dim]."""
        return self.head(self.stages(self.stem(images)))


ARCHITECTURES: dict[str, Callable[..., IResNet]] = {
    "iresnet18": partial(IResNet, (2, 2, 2, 2)),
    "iresnet34": partial(IResNet, (3, 4, 6, 3)),
    "iresnet50": partial(IResNet, (3, 4, 14, 3)),
    "iresnet100": partial(IResNet, (3, 13, 30, 3)),
}


def build_architecture(name: str, *, embedding_dim: int = 512, input_size: int = 112, dropout: float = 0.0) -> IResNet:
    """Build the network called `name` with fresh weights from torch's default generator.

    Raises:
        ValueError: for a name that is not in `ARCHITECTURES`.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}, expected one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name](embedding_dim=embedding_dim, input_size=input_size, dropout=dropout)


def _convolution(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False)
