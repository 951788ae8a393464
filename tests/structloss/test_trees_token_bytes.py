"""What sampled token ids stand for: against the tokenizers' own decoding and their offsets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from structloss.trees import (
    TokenBytes,
    byte_level_alphabet,
    innermost_nodes,
    parse,
    token_byte_spans,
    vocabulary_bytes,
)

CORPUS = ["def f(xs):\n    return sum(x * 2 for x in xs if x != 'é')\n" * 3, "日本 = '🙂👩‍👩‍👧' # ☂\n" * 3]
# Added tokens that look like parts of the byte alphabet, hold spaces, or are special under an unusual name.
ADDED = ["<think>", "né", "<|im start|>", "▁▁", "Ġqz"]
SPECIAL = ["<pad>", "<eos>", "<｜end▁of▁sentence｜>"]


def byte_level() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return with_added_tokens(backend)


def byte_fallback() -> PreTrainedTokenizerFast:
    """As the tokenizers of Llama 2 and Gemma: words begin with ▁, what is not in the vocabulary falls to bytes."""
    pieces = [*SPECIAL, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefrtsux()[]=:12'", "▁x", "\n"]
    backend = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [("▁", "x")], byte_fallback=True, unk_token="<unk>")
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return with_added_tokens(backend)


def with_added_tokens(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in ADDED])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        additional_special_tokens=SPECIAL[2:],
        clean_up_tokenization_spaces=False,
    )


TOKENIZERS = {"byte-level": byte_level(), "byte-fallback": byte_fallback()}
READERS = {name: TokenBytes.from_tokenizer(tokenizer) for name, tokenizer in TOKENIZERS.items()}
TEXTS = st.text(alphabet=st.sampled_from("xab1 =()[]:'\n\té\u00a0日本☂🙂👩‍👧\u0085"), max_size=30)
kinds = pytest.mark.parametrize("name", list(TOKENIZERS))


def solid(spans: np.ndarray, source: bytes) -> list[bytes]:
    return [source[start:end] for start, end in spans.tolist() if start >= 0]


@kinds
@given(text=TEXTS)
def test_ids_of_a_text_give_the_text_and_the_nodes_that_its_offsets_give(name: str, text: str) -> None:
    encoded = TOKENIZERS[name](text, return_offsets_mapping=True, add_special_tokens=False)
    source, spans = READERS[name].read(encoded["input_ids"])
    assert source == text.encode()
    tree = parse(source)
    offsets = np.array(encoded["offset_mapping"]).reshape(-1, 2)
    assert (innermost_nodes(tree, spans) == innermost_nodes(tree, token_byte_spans(text, offsets))).all()


# Added tokens are left out: the decoder reads those of Latin letters by the byte alphabet, "né" as b"n\xe9".
OWN_IDS = TOKENIZERS["byte-level"].backend_tokenizer.get_vocab_size(with_added_tokens=False)


@given(ids=st.lists(st.integers(0, OWN_IDS - 1), max_size=25))
def test_any_byte_level_ids_agree_with_their_decoding(ids: list[int]) -> None:
    """Random ids cut characters anywhere; the decoder shows U+FFFD where the bytes are no character."""
    tokenizer, reader = TOKENIZERS["byte-level"], READERS["byte-level"]
    source, spans = reader.read(ids)
    wanted = [i for i in ids if i not in tokenizer.all_special_ids]
    assert source.decode("utf-8", "replace") == tokenizer.backend_tokenizer.decode(wanted, skip_special_tokens=False)
    assert b"".join(solid(spans, source)).translate(None, b" \t\n\r\f\v") == source.translate(None, b" \t\n\r\f\v")


@kinds
@given(text=TEXTS, cut=st.tuples(st.integers(0, 40), st.integers(0, 40)))
def test_a_cut_stream_keeps_the_bytes_of_its_tokens(name: str, text: str, cut: tuple[int, int]) -> None:
    ids = TOKENIZERS[name](text, add_special_tokens=False)["input_ids"]
    source, spans = READERS[name].read(ids[slice(*sorted(cut))], prefix=b"def f():\n")
    assert source.removeprefix(b"def f():\n") in text.encode()
    assert (spans[:, 0][spans[:, 0] >= 0] >= len(b"def f():\n")).all()
    ends = spans[:, 1][spans[:, 1] >= 0]
    assert (np.diff(ends) > 0).all(), "each token has bytes of its own, also those of one character"
    innermost_nodes(parse(source), spans)


@kinds
def test_special_tokens_stand_for_nothing_and_added_ones_for_their_text(name: str) -> None:
    tokenizer, pieces = TOKENIZERS[name], vocabulary_bytes(TOKENIZERS[name])
    for token in SPECIAL:
        assert pieces[tokenizer.convert_tokens_to_ids(token)] == b""
    for token in ADDED:
        assert pieces[tokenizer.convert_tokens_to_ids(token)] == token.encode(), token
    ids = tokenizer.convert_tokens_to_ids(["x", SPECIAL[2], "<think>", "né"])
    source, spans = READERS[name].read(ids)
    assert source == "x<think>né".encode()
    assert spans.tolist() == [[0, 1], [-1, -1], [1, 8], [8, 11]]


@kinds
def test_ids_outside_of_the_vocabulary_stand_for_nothing(name: str) -> None:
    source, spans = READERS[name].read([-1, 10**6, *TOKENIZERS[name].convert_tokens_to_ids(["x"])], prefix=b"y\n")
    assert source == b"y\nx"
    assert spans.tolist() == [[-1, -1], [-1, -1], [2, 3]]
    assert READERS[name].read([])[1].shape == (0, 2)


def test_holes_in_the_ids_are_empty() -> None:
    backend = Tokenizer(models.BPE({"a": 0, "b": 5}, []))
    backend.decoder = decoders.ByteLevel()
    assert vocabulary_bytes(PreTrainedTokenizerFast(tokenizer_object=backend)) == [b"a", b"", b"", b"", b"", b"b"]


def test_the_alphabet_is_that_of_the_tokenizers_library() -> None:
    alphabet = byte_level_alphabet()
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(alphabet.values()) == list(range(256))


def test_other_tokenizers_are_refused() -> None:
    with pytest.raises(ValueError, match="^tokenizer: wants a fast tokenizer"):
        vocabulary_bytes(object())
    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="^tokenizer: wants a byte-level or byte-fallback decoder"):
        vocabulary_bytes(PreTrainedTokenizerFast(tokenizer_object=backend))
