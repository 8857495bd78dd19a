"""BERT as a sentence encoder: the network of Devlin et al., pooled as in Sentence-BERT.

Sources: Devlin et al., "BERT", NAACL 2019; Reimers and Gurevych, "Sentence-BERT", EMNLP 2019; Wang et al., "MiniLM",
NeurIPS 2020.

Shapes: b texts, t tokens, d width.
"""

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class BertShape:
    """The numbers of a BERT network, by their names in `config.json`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float


class _Layer(nn.Module):
    """Self-attention and a two-layer network, each with a residual and a norm after it.

    The names of its parts are those in published weights.
    """

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        width, epsilon = shape.hidden_size, shape.layer_norm_eps
        self.heads = shape.num_attention_heads
        projections = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
        parts = {"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=epsilon)}
        self.attention = nn.ModuleDict({"self": nn.ModuleDict(projections), "output": nn.ModuleDict(parts)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, shape.intermediate_size)})
        parts = {"dense": nn.Linear(shape.intermediate_size, width), "LayerNorm": nn.LayerNorm(width, eps=epsilon)}
        self.output = nn.ModuleDict(parts)

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Map [b, t, d] to [b, t, d]; `visible` [b, 1, 1, t] says which tokens may be attended to."""
        projections: Any = self.attention["self"]
        output: Any = self.attention["output"]
        query, key, value = (
            projections[name](tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        mixed = output["dense"](attended.transpose(1, 2).flatten(2))
        tokens = output["LayerNorm"](tokens + mixed)
        inner = F.gelu(self.intermediate["dense"](tokens))
        return self.output["LayerNorm"](tokens + self.output["dense"](inner))


class SentenceBert(nn.Module):
    """A BERT encoder whose text embedding is the mean of its last layer's tokens, at unit length.

    Args:
        shape: of the network.
    """

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        width = shape.hidden_size
        self.embedding_dim = width
        self.embeddings = nn.ModuleDict(
            OrderedDict(
                word_embeddings=nn.Embedding(shape.vocab_size, width),
                position_embeddings=nn.Embedding(shape.max_position_embeddings, width),
                token_type_embeddings=nn.Embedding(shape.type_vocab_size, width),
                LayerNorm=nn.LayerNorm(width, eps=shape.layer_norm_eps),
            )
        )
        layers = nn.ModuleList(_Layer(shape) for _ in range(shape.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": layers})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed texts as float32 [b, d].

        Args:
            input_ids: int64 [b, t].
            attention_mask: int64 [b, t], 1 for a token and 0 for padding; at least one token each.
        """
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        kinds: Any = self.embeddings["token_type_embeddings"]
        tokens = self.embeddings["word_embeddings"](input_ids) + self.embeddings["position_embeddings"](places)
        tokens = self.embeddings["LayerNorm"](tokens + kinds.weight[0])  # one text each: all tokens are of kind 0
        visible = attention_mask.bool()[:, None, None, :]
        layers: Any = self.encoder["layer"]
        for layer in layers:
            tokens = layer(tokens, visible)
        share = attention_mask.to(torch.float32)[..., None]
        mean = (tokens.float() * share).sum(dim=1) / share.sum(dim=1)
        return F.normalize(mean, dim=1)


def sentence_bert(folder: Path) -> tuple[SentenceBert, int]:
    """Load a sentence encoder and say how many tokens of a text it reads.

    Args:
        folder: with config.json, sentence_bert_config.json, 1_Pooling/config.json and model.safetensors.

    Raises:
        OSError: where a file is missing.
        ValueError: where it is no BERT encoder with mean pooling, or a file does not fit.
    """
    config = _json(folder / "config.json")
    if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
        raise ValueError(
            f"{folder} holds a {config.get('model_type')} with {config.get('hidden_act')}, expected bert with gelu"
        )
    pooling = _json(folder / "1_Pooling" / "config.json")
    if [name for name, chosen in pooling.items() if name.startswith("pooling_mode") and chosen] != [
        "pooling_mode_mean_tokens"
    ]:
        raise ValueError(f"{folder} does not pool by the mean of all tokens, which is all that is supported")
    try:
        shape = BertShape(**{name: config[name] for name in BertShape.__dataclass_fields__})
        max_tokens = min(
            int(_json(folder / "sentence_bert_config.json")["max_seq_length"]), shape.max_position_embeddings
        )
        network = SentenceBert(shape)
        tensors = load_file(folder / "model.safetensors")
        # positions are counted here; the pooler is not part of a sentence encoder
        unused = [name for name in tensors if name == "embeddings.position_ids" or name.startswith("pooler.")]
        for name in unused:
            del tensors[name]
        network.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder} is no BERT sentence encoder ({' '.join(str(error).split())[:200]})") from error
    return network, max_tokens


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no JSON object ({error}); restore the model") from error
