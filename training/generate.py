"""Greedy generation in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from training.text import generation_prompt


@torch.inference_mode()
def generate(
    model: Any, tokenizer: Any, problems: Sequence[dict[str, Any]], *, batch_size: int, max_new_tokens: int
) -> Iterator[list[tuple[str, bool]]]:
    """Greedy completions of `generation_prompt`, a batch at a time in the order of the problems.

    Yields: a list of (completion, ended); `ended` is false when the limit on new tokens cut it.
    """
    model.eval()
    # The model's own generation configuration may sample or penalise; a fresh one is greedy.
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    for start in range(0, len(problems), batch_size):
        batch = problems[start : start + batch_size]
        inputs = tokenizer(
            [generation_prompt(problem) for problem in batch],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_token_type_ids=False,
        ).to(model.device)
        output = model.generate(**inputs, generation_config=greedy)
        new = output[:, inputs["input_ids"].shape[1] :]
        ended = (new == tokenizer.eos_token_id).any(1).tolist()
        texts = tokenizer.batch_decode(new, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        yield [(text.split(tokenizer.eos_token)[0], done) for text, done in zip(texts, ended, strict=True)]
