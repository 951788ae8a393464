"""Generation in batches with a local model: greedy, or sampled from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    batch_size: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    first: int = 0,
    add_special_tokens: bool = False,
) -> Iterator[list[tuple[str, bool]]]:
    """Completions, one for each prompt, a batch at a time in the order of the prompts.

    temperature: 0 is greedy; above it, tokens are drawn from the whole distribution. Repeat a prompt to get several
    samples. A draw depends on `seed`, on its batch and on the place of that batch: `first` is the place of the first
    prompt, for a caller that goes on where it stopped and must not draw the same samples again.

    Yields: a list of (completion, ended); `ended` is false when the limit on new tokens cut it. Special tokens are a
    part of the text, but for the one that ends it.
    """
    if temperature < 0:
        raise ValueError(f"temperature: got {temperature}, wants 0 (greedy) or more")
    model.eval()
    ends = _ends(model, tokenizer)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    # The model's own generation configuration may sample or penalise; a fresh one does only what is said here.
    settings = GenerationConfig(
        **({"do_sample": False} | sampling),
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
    )
    for start in range(0, len(prompts), batch_size):
        inputs = tokenizer(
            list(prompts[start : start + batch_size]),
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=add_special_tokens,
            return_token_type_ids=False,
        ).to(model.device)
        if temperature:
            torch.manual_seed(seed * 1_000_003 + first + start)
        output = model.generate(**inputs, generation_config=settings)
        batch = []
        for new in output[:, inputs["input_ids"].shape[1] :].tolist():
            end = next((i for i, token in enumerate(new) if token in ends), None)
            text = tokenizer.decode(new[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            batch.append((text, end is not None))
        yield batch


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: instruct models have more of them than the tokenizer knows."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    more = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in (tokenizer.eos_token_id, *more) if token is not None})
