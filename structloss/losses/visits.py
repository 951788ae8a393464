"""The student's own code from visit to visit: what it preferred, or wrote, when a sample was last seen."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from structloss.losses.batch import CODE, StructureBatch, first_token_hidden_index
from structloss.losses.collator import Example
from structloss.losses.own_code import GapFunction, OwnCode, OwnCodeReader
from structloss.losses.structure_aware import StructureAwareLoss
from structloss.losses.token_weights import structural_gap
from structloss.losses.workers import OwnCodeWorkers
from structloss.trees import TokenBytes, TreeBatch, num_kinds

VISIT, ROLLOUT = "visit:", "rollout:"


class _Submitted(NamedTuple):
    """A row of a batch that the workers read."""

    batch: Future[list[OwnCode]]
    row: int


class VisitCache:
    """Remembers, per sample id, the student's own code: token ids, read as code by the tolerant parser.

    Two sources. *Visits*: `update` stores the tokens that the student preferred, teacher-forced, when the loss last
    saw the sample. *Rollouts*: `update_rollouts` stores code that the student wrote freely; where there is one, the
    gap and its confidence come from it. `attach` sets all of this beside the teacher's trees at the next visit. A
    sample never seen gets the teacher's tree with confidence 0, so its gaps are 0.

    Holds one small integer array a sample and source; `state_dict` makes a resumed run continue with the same gaps.
    With `workers` also what was read (a tree is about as large as that of the `Example`), of the last `max_ready` rows.

    Args:
        tokenizer: the student's fast tokenizer.
        language: of the code.
        gap: computes `StructureBatch.gap` when a sample is read; None = the loss computes the gap itself. The
            function of a loss: `VisitCache.for_loss`.
        workers: threads that read in the background from `update` on, so that `attach` only looks up. 0 = `attach`
            reads. The results are the same.
        max_pending: batches that may wait for the workers; `update` waits where there are more.
        max_ready: rows whose trees are kept; older ones are read again when they are needed.

    Close it after training (`with VisitCache(...) as visits:`, or `close`) where it has workers.

    Raises:
        ValueError: numbers out of range, a language that does not exist, and see `vocabulary_bytes`.
        OwnCodeError: any method, where reading failed; names the sample.
    """

    def __init__(
        self,
        tokenizer: Any,
        language: str = "python",
        *,
        gap: GapFunction | None = None,
        workers: int = 0,
        max_pending: int = 4,
        max_ready: int = 100_000,
    ) -> None:
        if workers < 0 or max_ready < 0:
            raise ValueError(f"workers, max_ready: want numbers >= 0, got {workers} and {max_ready}")
        num_kinds(language)  # an unknown one is refused here, not at the second visit
        self.language = language
        self.token_bytes = TokenBytes.from_tokenizer(tokenizer)
        self.max_ready = max_ready
        self._reader = OwnCodeReader(self.token_bytes, language, gap)
        self._workers = OwnCodeWorkers(self._reader, workers, max_pending) if workers else None
        self._ids: dict[str, np.ndarray] = {}
        self._read: dict[str, _Submitted] = {}

    @classmethod
    def for_loss(cls, loss: StructureAwareLoss, tokenizer: Any, language: str = "python", **options: Any) -> VisitCache:
        """A cache that computes the gaps as `loss` would."""
        gap = partial(structural_gap, temperature=loss.gap_temperature, same_kind=loss.same_kind, literal=loss.literal)
        return cls(tokenizer, language, gap=gap, **options)

    def __bool__(self) -> bool:
        """True, also of an empty cache: ``if visits`` asks whether there is one."""
        return True

    def __len__(self) -> int:
        """Samples whose own code is known."""
        return len({key.partition(":")[2] for key in (*self._ids, *self._read)})

    def update(self, examples: Sequence[Example], argmax: torch.Tensor) -> None:
        """Store the preferred tokens of each row's code.

        Args:
            examples: the B examples of the batch.
            argmax: (B, T) int64: at position t the token that the student preferred there, -1 = not known. On a GPU
                it is fetched without waiting for it where there are workers.
        """
        longest = max((len(example) for example in examples), default=0)
        if argmax.dim() != 2 or len(examples) != argmax.shape[0] or argmax.shape[1] < longest:
            raise ValueError(
                f"argmax: wants (B, T) of {len(examples)} examples of up to {longest} tokens, got "
                f"{tuple(argmax.shape)}; give StructureLossOutput.argmax and the collator's own `examples`"
            )
        fetched = _fetch(argmax)

        def code_tokens() -> list[np.ndarray]:
            preferred = fetched()
            return [preferred[row, np.flatnonzero(example.regions == CODE)] for row, example in enumerate(examples)]

        self._store(VISIT, examples, code_tokens)

    def update_rollouts(self, examples: Sequence[Example], ids: Sequence[Any]) -> None:
        """Store code that the student wrote; it decides the samples' gaps until it is replaced or dropped.

        The tokens of a rollout have no place in the teacher-forced sequence, so L_align goes on with the trees of
        the visits, and the gap has to be computed here.

        Args:
            examples: the samples. ids: for each the token ids of its code alone (a sequence, array or tensor), as they
                were sampled, without reasoning; see `structloss.integrations.refresh_rollouts`.

        Raises:
            ValueError: a cache without `gap`, or another number of ids.
        """
        if self._reader.gap is None:
            raise ValueError("update_rollouts: wants a cache that computes gaps, made with gap=... or for_loss")
        if len(examples) != len(ids):
            raise ValueError(f"ids: wants one row an example ({len(examples)}), got {len(ids)}")
        rows = [np.asarray(row.cpu() if isinstance(row, torch.Tensor) else row, dtype=np.int32) for row in ids]
        self._store(ROLLOUT, examples, lambda: rows)

    def drop_rollouts(self) -> None:
        """Forget all rollouts; the gaps come from the visits again."""
        for stored in (self._ids, self._read):
            for key in [key for key in stored if key.startswith(ROLLOUT)]:
                del stored[key]

    def attach(self, batch: StructureBatch, examples: Sequence[Example]) -> StructureBatch:
        """The batch with `student`, `student_hidden_index`, `confidence` and, with a gap function, `gap` filled in.

        Args:
            examples: the B examples that the batch was collated from.

        Raises:
            ValueError: other examples than the batch's, code in another language, an id that stood for another
                sample at its last visit.
        """
        if len(examples) != len(batch):
            raise ValueError(
                f"examples: wants the {len(batch)} that the batch was collated from, got {len(examples)}; the collator "
                "returns them beside the batch"
            )
        for example in examples:
            if example.tree.language != self.language:
                raise ValueError(
                    f"examples: {example.id!r} is {example.tree.language}, but this cache reads {self.language}; use "
                    f"VisitCache(tokenizer, {example.tree.language!r}) for it"
                )
        visits, rollouts = self._take(VISIT, examples), self._take(ROLLOUT, examples)
        trees, tokens = [], []
        for example, own in zip(examples, visits, strict=True):
            trees.append(example.tree if own is None else own.tree)
            tokens.append(example.token_bytes if own is None else _placed(example, own))
        student = TreeBatch.from_trees(trees, tokens=tokens)
        deciding = [visit if rollout is None else rollout for visit, rollout in zip(visits, rollouts, strict=True)]
        confidence = torch.tensor([0.0 if own is None else 1.0 - own.tree.error_share for own in deciding])
        gap = None
        if self._reader.gap is not None:
            gap = torch.zeros(batch.teacher.label.shape)
            for row, own in enumerate(deciding):
                if own is not None and own.gap is not None:
                    gap[row, : len(own.gap)] = torch.from_numpy(own.gap)
        device = batch.labels.device
        return replace(
            batch,
            student=student.to(device),
            student_hidden_index=first_token_hidden_index(student).to(device),
            confidence=confidence.to(device),
            gap=None if gap is None else gap.to(device),
        )

    def _store(self, source: str, examples: Sequence[Example], ids: Any) -> None:
        if self._workers is None:
            for example, row in zip(examples, ids(), strict=True):
                self._ids[source + example.id] = row
            return
        batch = self._workers.submit(examples, ids)
        for row, example in enumerate(examples):
            key = source + example.id
            self._ids.pop(key, None)
            self._read.pop(key, None)  # so that the order of the keys is that of the visits
            self._read[key] = _Submitted(batch, row)
        self._keep_ids_only(len(self._read) - self.max_ready)

    def _keep_ids_only(self, count: int) -> None:
        """Of the `count` rows that were read longest ago."""
        for key in list(islice(self._read, max(count, 0))):
            self._ids[key] = self._result(self._read[key]).ids
            del self._read[key]

    def _result(self, submitted: _Submitted) -> OwnCode:
        assert self._workers is not None
        return self._workers.result(submitted.batch)[submitted.row]

    def _take(self, source: str, examples: Sequence[Example]) -> list[OwnCode | None]:
        """What is known of each example; reads what no worker has read."""
        keys = [source + example.id for example in examples]
        found: list[OwnCode | None] = [self._result(self._read[key]) if key in self._read else None for key in keys]
        unread = [row for row, key in enumerate(keys) if key in self._ids]
        if source == VISIT:
            for row, example in enumerate(examples):
                own = found[row]
                ids = own.ids if own is not None else self._ids.get(keys[row])
                if ids is not None and len(ids) != (wanted := int((example.regions == CODE).sum())):
                    raise ValueError(
                        f"examples: {example.id!r} had {len(ids)} code tokens at its last visit and has "
                        f"{wanted} now; an id must always mean the same sample"
                    )
        if unread:
            read = self._reader([examples[row] for row in unread], [self._ids[keys[row]] for row in unread])
            for row, own in zip(unread, read, strict=True):
                found[row] = own
        return found

    def state_dict(self) -> dict[str, np.ndarray]:
        """Arrays by source and sample id (for `numpy.savez`); waits for the workers."""
        return self._ids | {key: self._result(submitted).ids for key, submitted in self._read.items()}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Replaces everything; also takes the arrays by sample id of the first release."""
        known = (VISIT, ROLLOUT)
        self._read.clear()
        self._ids = {
            key if key.startswith(known) else VISIT + key: np.asarray(ids, dtype=np.int32) for key, ids in state.items()
        }

    def drain(self) -> None:
        """Wait for the workers; an error of theirs comes out here at the latest."""
        if self._workers is not None:
            self._workers.drain()

    def close(self) -> None:
        """End the workers; what was stored can still be attached and saved."""
        if self._workers is not None:
            self._workers.close()
            self._workers.drain()

    def __enter__(self) -> VisitCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.close()
        elif self._workers is not None:
            self._workers.close()  # an error of a worker would hide the one that is under way


def _placed(example: Example, own: OwnCode) -> np.ndarray:
    """(T, 2) byte spans of the example's positions in the student's own source."""
    spans = np.full_like(example.token_bytes, -1)
    spans[example.regions == CODE] = own.spans
    return spans


def _fetch(tokens: torch.Tensor) -> Any:
    """A function that gives `tokens` as an int32 array; it waits for the device, this call does not."""
    if not tokens.is_cuda:
        array = tokens.cpu().numpy().astype(np.int32)
        return lambda: array
    host = torch.empty(tokens.shape, dtype=torch.int32, pin_memory=True)
    host.copy_(tokens, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def array_when_copied() -> np.ndarray:
        copied.synchronize()
        return host.numpy()

    return array_when_copied
