"""A small byte-level tokenizer, trained on the spot, and a batch of examples for the losses."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from structloss import StructureBatch, StructureCollator
from structloss.losses import Example
from tests.structloss.loss_examples import make_examples

CORPUS = [
    "Return the sum of the even numbers in xs.\ndef f(xs):\n    total = 0\n    for x in xs:\n"
    "        if x % 2 == 0:\n            total += x\n    return total\n",
    "def g(s, k):\n    return [c.upper() for c in s if c != k]\n",
]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<eos>", "<think>", "</think>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")


@pytest.fixture
def examples(tokenizer) -> list[Example]:
    return make_examples(tokenizer)


@pytest.fixture
def batch(tokenizer, examples) -> StructureBatch:
    return StructureCollator(tokenizer.pad_token_id)(examples)["structure"]
