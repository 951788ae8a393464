"""The student: a tokenizer and a model, made from a configuration or loaded from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from training.config import ConfigError, StudentConfig
from training.text import END_OF_TEXT, PADDING, REASONING_END, REASONING_START


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every digit, with a space before it, is a token of its own.

    So a literal can be copied digit by digit, and the token in front of it is a word and not a space.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" ?\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PADDING, END_OF_TEXT, REASONING_START, REASONING_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=PADDING, padding_side="left"
    )


def load_tokenizer(path: str | Path) -> Any:
    """A saved or published tokenizer, with what training needs: fast, a padding token, an end-of-text token."""
    tokenizer = AutoTokenizer.from_pretrained(str(path), padding_side="left")
    if not tokenizer.is_fast:
        raise ConfigError(f"student.pretrained: the tokenizer of {path} is slow; one with offsets is needed")
    if tokenizer.eos_token is None:
        raise ConfigError(f"student.pretrained: the tokenizer of {path} has no end-of-text token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def build_student(config: StudentConfig, tokenizer: Any, *, seed: int, max_positions: int) -> Any:
    """The untrained student (or the pretrained one), the same for every arm of a seed."""
    if config.pretrained:
        return AutoModelForCausalLM.from_pretrained(config.pretrained, dtype=torch.float32)
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=max_positions,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
