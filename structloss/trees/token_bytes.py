"""The bytes that token ids stand for, and where they lie in the text that sampled ids make.

Decoding sampled ids and encoding the text again need not give the same ids back, so positions are taken from the ids
themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

_BYTE_PIECE = re.compile("<0x([0-9A-Fa-f]{2})>")


def byte_level_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE: printable Latin-1 stands for itself, the rest is moved to 256 and up."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {chr(byte): byte for byte in printable}
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    alphabet.update({chr(256 + position): byte for position, byte in enumerate(hidden)})
    return alphabet


def vocabulary_bytes(tokenizer: Any) -> list[bytes]:
    """The bytes that each token id stands for, by id.

    The tokens of `all_special_ids` (end of text, padding) stand for none, and so does an id that no token has. Every
    other added token, such as a ``<think>``, stands for its text.

    Args:
        tokenizer: a fast tokenizer of transformers with a byte-level or a byte-fallback decoder.

    Raises:
        ValueError: a slow tokenizer, or a decoder of another kind.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError("tokenizer: wants a fast tokenizer (one with backend_tokenizer), got a slow one")
    decoder = json.dumps(json.loads(backend.to_str())["decoder"])
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
    if '"ByteLevel"' in decoder:
        alphabet = byte_level_alphabet()
        for token, i in vocabulary.items():
            in_alphabet = all(character in alphabet for character in token)
            pieces[i] = bytes(alphabet[character] for character in token) if in_alphabet else token.encode()
    elif '"ByteFallback"' in decoder:
        for token, i in vocabulary.items():
            byte = _BYTE_PIECE.fullmatch(token)
            pieces[i] = bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()
    else:
        raise ValueError(f"tokenizer: wants a byte-level or byte-fallback decoder, got {decoder}")
    own = backend.get_vocab(with_added_tokens=False)
    for i, added in backend.get_added_tokens_decoder().items():
        if added.content not in own:
            pieces[i] = added.content.encode()
    for i in tokenizer.all_special_ids:
        pieces[i] = b""
    return pieces


class TokenBytes:
    """Turns token ids into the source that they stand for, with each token's byte span in it.

    Args:
        pieces: the bytes of each token id, see :func:`vocabulary_bytes`.

    >>> TokenBytes([b"x", b" =", b" 1", b"\\n"]).read([0, 1, 2, 3])
    (b'x = 1\\n', array([[ 0,  1],
           [ 2,  3],
           [ 4,  5],
           [-1, -1]]))
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        # A head may be padded beyond the vocabulary, and -1 means unknown: both read the empty piece at the end.
        self.pieces = [*pieces, b""]
        self._lengths = np.array([len(piece) for piece in self.pieces], dtype=np.int64)
        self._solid = np.full((len(self.pieces), 2), -1, dtype=np.int64)
        for i, piece in enumerate(self.pieces):
            if solid := piece.strip():
                start = piece.index(solid)
                self._solid[i] = start, start + len(solid)

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> TokenBytes:
        """Of a fast tokenizer; raises as :func:`vocabulary_bytes`."""
        return cls(vocabulary_bytes(tokenizer))

    def read(self, ids: Sequence[int] | np.ndarray, prefix: bytes = b"") -> tuple[bytes, np.ndarray]:
        """The source of `ids` after `prefix`, and the byte span of each token in it.

        ids: T token ids; one outside the vocabulary (a spare row of a padded head, -1) stands for nothing.

        Returns the source, which need not be valid UTF-8 where a character was cut, and int64 (T, 2) spans that begin
        and end on bytes that are not white space, (-1, -1) for a token of white space or nothing: the form that
        :func:`innermost_nodes` and ``TreeBatch.from_trees`` take. A token that holds a part of a character has the
        span of that part.
        """
        known = self._known(ids)
        ends = len(prefix) + np.cumsum(self._lengths[known])
        solid = self._solid[known]
        spans = np.where(solid >= 0, solid + (ends - self._lengths[known])[:, None], -1)
        return prefix + b"".join([self.pieces[i] for i in known.tolist()]), spans

    def lengths(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """int64 (T,) bytes that each of `ids` stands for."""
        return self._lengths[self._known(ids)]

    def _known(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        known = np.asarray(ids, dtype=np.int64)
        last = len(self.pieces) - 1
        return np.where((known >= 0) & (known < last), known, last)
