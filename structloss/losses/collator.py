"""From texts to batches: tokens with their regions, the teacher's tree, and the padding of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from structloss.losses.batch import CODE, IGNORE_INDEX, PROMPT, REASONING, StructureBatch, TeacherTopk
from structloss.trees import Tree, TreeBatch, innermost_nodes, parse, token_byte_spans
from structloss.trees.options import DEFAULT, TreeOptions

REGIONS = {"prompt": PROMPT, "reasoning": REASONING, "code": CODE}


@dataclass(frozen=True)
class Example:
    """One tokenised training example with its syntax tree; T tokens.

    id: names the sample (the cache of the student's own code is keyed by it).
    input_ids: (T,) int32. regions: (T,) int8, see `StructureBatch`.
    token_bytes: (T, 2) int64 byte span of each token in the tree's source, -1 = not in it.
    token_node: (T,) int64 innermost node of each token, -1 = none.
    tree: of `code_prefix` + code. code_prefix: the part of the program that stands in the prompt.
    group_id, passed: for the pathway loss; -1 and None = in no group.
    topk: (T, k) class ids and (T, k) log-probabilities of the teacher's stored distributions, see `TeacherTopk`; None =
        not stored.
    """

    id: str
    input_ids: np.ndarray
    regions: np.ndarray
    token_bytes: np.ndarray
    token_node: np.ndarray
    tree: Tree
    code_prefix: str = ""
    group_id: int = -1
    passed: bool | None = None
    topk: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.input_ids)


def encode_example(
    tokenizer: Any,
    segments: Sequence[tuple[str, str]],
    *,
    id: str,
    code_prefix: str = "",
    language: str = "python",
    tree_options: TreeOptions = DEFAULT,
    group_id: int = -1,
    passed: bool | None = None,
) -> Example:
    """Tokenise one example and parse its code.

    The segments are joined and tokenised at once, as at generation time; a token belongs to the segment that
    holds its last character. An end-of-text token of the code is written into the text as such.

    Args:
        tokenizer: a fast tokenizer of transformers (offsets are needed).
        segments: (region, text) in order; region is "prompt", "reasoning" or "code". The one code
            segment is the program, after `code_prefix`.
        id: names the sample.
        tree_options: what the trees of the loss keep; the student's own code is read the same way.
        code_prefix: the part of the program that stands in the prompt already, such as the signature.

    Raises:
        ValueError: a tokenizer without offsets, an unknown region, an example without code tokens, a group without
            a verdict.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            "tokenizer: wants a fast tokenizer of transformers, whose offsets tie tokens to syntax nodes, got a "
            f"{type(tokenizer).__name__} without; load it with use_fast=True"
        )
    if group_id >= 0 and passed is None:
        raise ValueError(
            f"passed: example {id!r} is in group {group_id} without a verdict, wants True or False; run its tests, or "
            "leave group_id at -1"
        )
    bounds: list[int] = []
    kinds: list[int] = []
    for entry in segments:
        if isinstance(entry, str) or len(entry) != 2:
            raise ValueError(f"segments: wants (region, text) pairs such as ('code', 'x = 1'), got {entry!r}")
        region, text = entry
        if region not in REGIONS:
            raise ValueError(f"segments: unknown region {region!r}, wants one of {sorted(REGIONS)}")
        bounds.append((bounds[-1] if bounds else 0) + len(text))
        kinds.append(REGIONS[region])
    text = "".join(part for _, part in segments)
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    last_character = np.maximum(offsets[:, 1] - 1, 0)
    segment = np.searchsorted(np.asarray(bounds), last_character, side="right")
    regions = np.asarray(kinds, dtype=np.int8)[np.minimum(segment, len(kinds) - 1)]
    if not (regions == CODE).any():
        raise ValueError(
            f"segments: example {id!r} has no code token, wants a ('code', text) segment that is not empty; leave the "
            "example out where the answer holds no code"
        )

    code_segments = [number for number, kind in enumerate(kinds) if kind == CODE]
    if len(code_segments) != 1:
        raise ValueError(f"segments: wants exactly one code segment, example {id!r} has {len(code_segments)}")
    code_text = segments[code_segments[0]][1]
    code_start = bounds[code_segments[0]] - len(code_text)
    in_code = (regions == CODE) & ~np.isin(encoded["input_ids"], list(tokenizer.all_special_ids))
    for token in tokenizer.all_special_tokens:
        code_text = code_text.removesuffix(token)
    spans = token_byte_spans(code_text, np.clip(offsets - code_start, 0, len(code_text)))
    prefix_bytes = len(code_prefix.encode())
    token_bytes = np.where(in_code[:, None] & (spans >= 0), spans + prefix_bytes, -1)
    tree = parse(code_prefix + code_text, language, tree_options)
    return Example(
        id=id,
        input_ids=np.asarray(encoded["input_ids"], dtype=np.int32),
        regions=regions,
        token_bytes=token_bytes,
        token_node=innermost_nodes(tree, token_bytes),
        tree=tree,
        code_prefix=code_prefix,
        group_id=group_id,
        passed=passed,
    )


class StructureCollator:
    """Pads examples to a batch: `input_ids`, `attention_mask`, `structure` (a `StructureBatch`) and `examples`.

    Labels are the tokens of the reasoning and the code; the prompt and the padding are ignored. Where any example has
    `topk`, the batch has; the tokens of the others have no teacher there.

    Args:
        pad_token_id: id to pad with.
        with_groups: give `group_id` and `passed` even where no example of a batch is in a group, as a loss with a
            pathway term wants.

    Raises:
        ValueError: no padding id; a batch of nothing, or of what `encode_example` did not make; `topk` of other tokens.
    """

    def __init__(self, pad_token_id: int, *, with_groups: bool = False) -> None:
        if isinstance(pad_token_id, bool) or not isinstance(pad_token_id, (int, np.integer)):
            raise ValueError(
                f"pad_token_id: wants a token id, got {pad_token_id!r}; a tokenizer without a padding token may pad "
                "with another one (tokenizer.pad_token = tokenizer.eos_token): padding is masked"
            )
        self.pad_token_id = pad_token_id
        self.with_groups = with_groups

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        if not examples:
            raise ValueError("examples: wants at least one, got none")
        for example in examples:
            if not isinstance(example, Example):
                raise ValueError(
                    f"examples: wants what encode_example returns, got a {type(example).__name__}; a Trainer that "
                    "drops columns needs remove_unused_columns=False"
                )
        rows, width = len(examples), max(len(example) for example in examples)
        input_ids = np.full((rows, width), self.pad_token_id, dtype=np.int64)
        attention_mask = np.zeros((rows, width), dtype=np.int64)
        labels = np.full((rows, width), IGNORE_INDEX, dtype=np.int64)
        regions = np.zeros((rows, width), dtype=np.int64)
        token_node = np.full((rows, width), -1, dtype=np.int64)
        for row, example in enumerate(examples):
            tokens = len(example)
            input_ids[row, :tokens] = example.input_ids
            attention_mask[row, :tokens] = 1
            labels[row, :tokens] = np.where(example.regions == PROMPT, IGNORE_INDEX, example.input_ids)
            regions[row, :tokens] = example.regions
            token_node[row, :tokens] = example.token_node
        grouped = self.with_groups or any(example.passed is not None for example in examples)
        structure = StructureBatch(
            labels=torch.from_numpy(labels),
            regions=torch.from_numpy(regions),
            token_node=torch.from_numpy(token_node),
            teacher=TreeBatch.from_trees(
                [example.tree for example in examples], tokens=[example.token_bytes for example in examples]
            ),
            group_id=torch.tensor([example.group_id for example in examples]) if grouped else None,
            passed=torch.tensor([example.passed is not False for example in examples]) if grouped else None,
            topk=_padded_topk(examples, width),
        )
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(attention_mask),
            "structure": structure,
            "examples": list(examples),
        }


def _padded_topk(examples: Sequence[Example], width: int) -> TeacherTopk | None:
    stored = [(row, example, example.topk) for row, example in enumerate(examples) if example.topk is not None]
    if not stored:
        return None
    for _, example, (ids, logprobs) in stored:
        if ids.ndim != 2 or len(ids) != len(example) or ids.shape != logprobs.shape:
            raise ValueError(
                f"topk: example {example.id!r} has {len(example)} tokens, so ids and log-probabilities want shape "
                f"({len(example)}, k), got {ids.shape} and {logprobs.shape}"
            )
    shape = (len(examples), width, max(ids.shape[1] for _, _, (ids, _) in stored))
    ids_out, logprobs_out = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.float32)
    for row, example, (ids, logprobs) in stored:
        ids_out[row, : len(example), : ids.shape[1]] = ids
        logprobs_out[row, : len(example), : ids.shape[1]] = logprobs
    return TeacherTopk(torch.from_numpy(ids_out), torch.from_numpy(logprobs_out))
