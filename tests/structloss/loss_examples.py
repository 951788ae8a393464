"""Three small programs as training examples, a head for them, and their losses by full logits."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from structloss import StructureBatch, StructureCollator, VisitCache, encode_example
from structloss.losses import CODE, Example

PROGRAMS = [
    ("sum of xs", "add each x", "    total = 0\n    for x in xs:\n        total += x\n    return total"),
    ("keep é in s ☂", "filter", '    return [c for c in s if c == "é☂"]'),
    ("nothing", "do nothing", "    return 0"),
]


def make_examples(tokenizer, **extra) -> list[Example]:
    return [
        encode_example(
            tokenizer,
            [
                ("prompt", prompt + "\ndef f(xs):\n<think>"),
                ("reasoning", f"\n{why}\n</think>"),
                ("code", f"\n{code}<eos>"),
            ],
            id=f"sample-{number}",
            code_prefix="def f(xs):",
            **extra,
        )
        for number, (prompt, why, code) in enumerate(PROGRAMS)
    ]


def head_for(tokenizer, batch, *, dtype=torch.float64, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*batch.labels.shape, dim, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(len(tokenizer), dim, generator=generator, dtype=dtype, requires_grad=True)
    return hidden, weight


def token_nll(hidden, weight, labels):
    """(B, T) loss of the token at each position, by full logits; 0 where ignored."""
    logits = hidden[:, :-1] @ weight.T
    nll = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none", ignore_index=-100)
    return torch.cat([torch.zeros_like(nll.view(len(labels), -1)[:, :1]), nll.view(len(labels), -1)], 1)


def seen_batch(tokenizer, examples, batch, *, literal=False) -> StructureBatch:
    """The batch at its second visit: the student preferred the teacher's tokens, or `pass` for each `x`."""
    cache = VisitCache(tokenizer)
    preferred = batch.labels.clone()
    if literal:
        zero = tokenizer.convert_tokens_to_ids("0")
        preferred[(preferred == zero) & (batch.regions == CODE)] = tokenizer.convert_tokens_to_ids("7")
    cache.update(examples, preferred)
    return cache.attach(batch, examples)


def grouped_batch(tokenizer) -> StructureBatch:
    """The three programs as candidates of one problem; the second failed its tests."""
    rows = make_examples(tokenizer, group_id=3, passed=True)
    rows[1] = replace(rows[1], passed=False)
    return StructureCollator(tokenizer.pad_token_id)(rows)["structure"]
