"""The student's own code from other sources than its last visit: a pass before training, and free rollouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from structloss.integrations.rows import fenced_code
from structloss.integrations.step import require
from structloss.lm_head import linear_cross_entropy
from structloss.losses.batch import CODE, IGNORE_INDEX, PROMPT
from structloss.losses.collator import Example
from structloss.losses.visits import VisitCache
from structloss.models import hidden_and_head

Collate = Callable[[Sequence[Any]], Mapping[str, Any]]


@contextmanager
def _evaluating(model: Any) -> Iterator[torch.device]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        for module in training:
            module.training = True


def capture(model: Any, rows: Sequence[Any], visits: VisitCache, collate: Collate, *, batch_size: int = 8) -> None:
    """Fill `visits` before training, so that the first epoch has gaps.

    One teacher-forced forward pass over the rows; only the code's positions reach the head, and no logits are made.

    Args:
        rows: what `collate` takes: examples, or rows of a data set.
        collate: `RowCollator` or `StructureCollator`.

    Raises:
        ValueError: no cache (a trainer whose loss needs no code of the student has none), or another collator.
    """
    _check_cache(visits)
    with _evaluating(model) as device:
        for start in range(0, len(rows), batch_size):
            inputs = collate([rows[index] for index in range(start, min(start + batch_size, len(rows)))])
            require(inputs, "input_ids", "attention_mask", "structure", "examples")
            structure = inputs["structure"]
            code = torch.where(structure.regions == CODE, structure.labels, IGNORE_INDEX).to(device)
            made = hidden_and_head(
                model,
                input_ids=inputs["input_ids"].to(device),
                attention_mask=inputs["attention_mask"].to(device),
                use_cache=False,
            )
            preferred = linear_cross_entropy(
                made.hidden[:, :-1],
                made.weight,
                code[:, 1:],
                reduction="sum",
                outputs=("argmax",),
                **made.options,
            ).argmax
            assert preferred is not None
            visits.update(inputs["examples"], torch.cat([torch.full_like(code[:, :1], -1), preferred], dim=1))


def refresh_rollouts(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    visits: VisitCache,
    *,
    max_new_tokens: int,
    batch_size: int = 8,
    find_code: Callable[[str], tuple[int, int] | None] | None = None,
    **generation: Any,
) -> int:
    """Let the student write an answer to each example's prompt and store its code (`VisitCache.update_rollouts`).

    Costs a generation, so call it every few hundred steps, for a part of the examples.

    Args:
        model: has `generate`, as the models of transformers have.
        visits: made with a gap function.
        find_code: where the code stands in the text of an answer; default `fenced_code` of the cache's language.
        generation: further arguments of `generate`, such as ``do_sample=True, temperature=0.8``; default greedy.

    Returns: how many answers held code; the others leave what was stored.

    Raises:
        ValueError: no cache or one without a gap function, rows in place of examples, no end-of-text token.
    """
    _check_cache(visits)
    for example in examples:
        if not isinstance(example, Example):
            raise ValueError(
                f"examples: wants what the collator returns as 'examples', got a {type(example).__name__}; "
                "encode_row makes an example of a row"
            )
    find_code = find_code or partial(fenced_code, language=visits.language)
    ends = generation.setdefault("eos_token_id", tokenizer.eos_token_id)
    if ends is None:
        raise ValueError("eos_token_id: the tokenizer has none, wants the id or ids that end an answer")
    ends = [ends] if isinstance(ends, int) else list(ends)
    generation.setdefault("do_sample", False)
    pad = generation.setdefault(
        "pad_token_id", tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    )
    stored = 0
    with _evaluating(model) as device:
        for start in range(0, len(examples), batch_size):
            batch = examples[start : start + batch_size]
            prompts = [example.input_ids[example.regions == PROMPT] for example in batch]
            width = max(len(prompt) for prompt in prompts)
            ids = np.full((len(batch), width), pad, dtype=np.int64)
            mask = np.zeros((len(batch), width), dtype=np.int64)
            for row, prompt in enumerate(prompts):
                ids[row, width - len(prompt) :] = prompt
                mask[row, width - len(prompt) :] = 1
            written = model.generate(
                input_ids=torch.from_numpy(ids).to(device),
                attention_mask=torch.from_numpy(mask).to(device),
                max_new_tokens=max_new_tokens,
                **generation,
            )[:, width:]
            codes = [_code_tokens(answer, ends, visits, find_code) for answer in written.cpu().numpy()]
            found = [(example, code) for example, code in zip(batch, codes, strict=True) if code is not None]
            visits.update_rollouts([example for example, _ in found], [code for _, code in found])
            stored += len(found)
    return stored


def _check_cache(visits: Any) -> None:
    if not isinstance(visits, VisitCache):
        raise ValueError(
            f"visits: wants a VisitCache, got {visits!r}; a trainer has one where its loss has alpha > 0 or "
            "lambda_align > 0"
        )


def _code_tokens(
    answer: np.ndarray, ends: list[int], visits: VisitCache, find_code: Callable[[str], tuple[int, int] | None]
) -> np.ndarray | None:
    """The ids of an answer's code: the tokens that end inside of it."""
    ended = np.flatnonzero(np.isin(answer, ends))
    answer = answer[: ended[0]] if len(ended) else answer
    source, _ = visits.token_bytes.read(answer)
    # A character for each byte: positions stay those of the bytes, also where a character is cut.
    found = find_code(source.decode("latin-1"))
    if found is None:
        return None
    end_of_token = np.cumsum(visits.token_bytes.lengths(answer))
    return answer[(end_of_token > found[0]) & (end_of_token <= found[1])]
