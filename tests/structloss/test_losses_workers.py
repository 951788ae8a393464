"""Reading the student's own code in the background: the same results, bounded, and no error is lost."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from structloss import StructureAwareLoss, StructureBatch, StructureCollator, VisitCache
from structloss.losses import CODE, Example, OwnCodeError, structural_gap
from tests.structloss.loss_examples import head_for

LOSS = StructureAwareLoss(gap_temperature=0.4, same_kind=0.3, literal=0.9)


def noisy(labels: torch.Tensor, vocabulary: int, share: float, seed: int) -> torch.Tensor:
    """What a student prefers that is wrong in `share` of its tokens."""
    draw = torch.Generator().manual_seed(seed)
    wrong = torch.rand(labels.shape, generator=draw) < share
    return torch.where(wrong, torch.randint(vocabulary, labels.shape, generator=draw), labels)


def assert_same(a: StructureBatch, b: StructureBatch) -> None:
    assert a.student is not None
    assert b.student is not None
    for name in ("label", "kind", "parent", "byte_span", "token_span", "sizes", "error_share"):
        assert torch.equal(getattr(a.student, name), getattr(b.student, name)), name
    for name in ("student_hidden_index", "confidence", "gap"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("options", [{"workers": 1}, {"workers": 3, "max_pending": 2}, {"workers": 2, "max_ready": 1}])
def test_workers_change_no_result(tokenizer, examples, batch, options) -> None:
    plain = VisitCache.for_loss(LOSS, tokenizer)
    with VisitCache.for_loss(LOSS, tokenizer, **options) as threaded:
        for seed in range(12):
            # Samples come in other batches and orders from visit to visit; some are not seen yet.
            rows = np.random.default_rng(seed).permutation(3)[: 1 + seed % 3]
            some = [examples[row] for row in rows]
            part = StructureCollator(tokenizer.pad_token_id)(some)["structure"]
            assert_same(plain.attach(part, some), threaded.attach(part, some))
            argmax = noisy(part.labels, len(tokenizer), 0.1 + 0.02 * seed, seed)
            for cache in (plain, threaded):
                cache.update(some, argmax)
        assert len(plain) == len(threaded) == 3
        a, b = plain.state_dict(), threaded.state_dict()
        assert a.keys() == b.keys()
        assert all((a[key] == b[key]).all() for key in a)
        assert_same(plain.attach(batch, examples), threaded.attach(batch, examples))


def test_the_gap_is_that_of_the_loss(tokenizer, examples, batch) -> None:
    with VisitCache.for_loss(LOSS, tokenizer, workers=2) as visits:
        visits.update(examples, noisy(batch.labels, len(tokenizer), 0.2, 3))
        seen = visits.attach(batch, examples)
    expected = structural_gap(seen.student, seen.teacher, temperature=0.4, same_kind=0.3, literal=0.9)
    assert torch.equal(seen.gap, expected)
    assert seen.gap.max() > 0.1
    assert VisitCache(tokenizer).attach(batch, examples).gap is None


def test_the_loss_takes_the_gap_of_the_batch(tokenizer, examples, batch, monkeypatch) -> None:
    loss = StructureAwareLoss(alpha=2.0, ramp_shape="constant", gap_temperature=0.4, same_kind=0.3, literal=0.9)
    hidden, weight = head_for(tokenizer, batch)
    argmax = noisy(batch.labels, len(tokenizer), 0.2, 3)
    plain = VisitCache(tokenizer)
    with VisitCache.for_loss(loss, tokenizer, workers=1) as visits:
        for cache in (plain, visits):
            cache.update(examples, argmax)
        computed = loss(hidden, weight, plain.attach(batch, examples), progress=0.0)
        seen = visits.attach(batch, examples)
    monkeypatch.setattr("structloss.losses.structure_aware.structural_gap", None)
    given = loss(hidden, weight, seen, progress=0.0)
    assert torch.equal(given.loss, computed.loss)
    assert given.metrics.keys() == computed.metrics.keys()
    assert all(torch.equal(given.metrics[name], computed.metrics[name]) for name in given.metrics)
    assert given.metrics["gap_mean"] > 0
    other = replace(seen, gap=1.0 - seen.gap)
    assert loss(hidden, weight, other, progress=0.0).loss != computed.loss


def failing_gap(student, teacher) -> torch.Tensor:
    if (teacher.sizes == min(failing_gap.sizes)).any():
        raise MemoryError("no room for this one")
    return structural_gap(student, teacher)


def test_an_error_of_a_worker_names_the_sample_and_stops_the_trainer(tokenizer, examples, batch) -> None:
    failing_gap.sizes = [example.tree.size for example in examples]
    with VisitCache(tokenizer, gap=failing_gap, workers=1) as visits:
        visits.update(examples, batch.labels)
        with pytest.raises(OwnCodeError) as caught:
            visits.attach(batch, examples)
    assert "'sample-2'" in str(caught.value)
    assert isinstance(caught.value.__cause__, MemoryError)
    with pytest.raises(OwnCodeError, match="sample-2"):
        visits.state_dict()
    with pytest.raises(OwnCodeError, match="sample-2"), VisitCache(tokenizer, gap=failing_gap, workers=1) as visits:
        visits.update(examples, batch.labels)  # closing must not swallow it
    plain = VisitCache(tokenizer, gap=failing_gap)
    plain.update(examples, batch.labels)
    with pytest.raises(OwnCodeError, match="sample-2"):
        plain.attach(batch, examples)


def no_room(student, teacher) -> torch.Tensor:
    raise MemoryError("no room for any")


def test_of_two_errors_the_second_comes_out_too(tokenizer, examples) -> None:
    gate = threading.Event()

    def ids() -> list[np.ndarray]:
        gate.wait()
        return [np.zeros(1, dtype=np.int32)]

    with VisitCache(tokenizer, gap=no_room, workers=1) as visits:
        assert visits._workers is not None
        for example in examples[:2]:
            visits._workers.submit([example], ids)
        gate.set()
        for example in examples[:2]:
            with pytest.raises(OwnCodeError, match=example.id):
                visits.drain()


def held_gap(gate: threading.Event, student, teacher) -> torch.Tensor:
    assert gate.wait(60)
    return structural_gap(student, teacher)


def test_the_trainer_waits_when_too_much_is_pending(tokenizer, examples, batch) -> None:
    gate = threading.Event()
    with VisitCache(tokenizer, gap=partial(held_gap, gate), workers=1, max_pending=2) as visits:
        visits.update(examples, batch.labels)
        visits.update(examples, batch.labels)
        third = threading.Thread(target=visits.update, args=(examples, batch.labels))
        third.start()
        third.join(0.05)
        assert third.is_alive(), "a third batch would make the queue longer than max_pending"
        gate.set()
        third.join(60)
        assert not third.is_alive()


def worker_threads() -> int:
    return sum(thread.name.startswith("structloss-own-code") for thread in threading.enumerate())


def test_closing_ends_the_threads_and_keeps_what_was_stored(tokenizer, examples, batch) -> None:
    visits = VisitCache.for_loss(LOSS, tokenizer, workers=2)
    visits.update(examples, batch.labels)
    visits.close()
    visits.close()
    assert worker_threads() == 0
    assert torch.equal(visits.attach(batch, examples).student.label, batch.teacher.label)
    assert len(visits.state_dict()) == 3
    with pytest.raises(RuntimeError, match="^workers: closed"):
        visits.update(examples, batch.labels)


def test_an_error_of_the_trainer_ends_the_threads_and_passes(tokenizer, examples, batch) -> None:
    visits = VisitCache.for_loss(LOSS, tokenizer, workers=2)

    def train() -> None:
        with visits:
            visits.update(examples, batch.labels)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert worker_threads() == 0
    assert len(visits.state_dict()) == 3


def test_a_program_that_never_closes_ends(tmp_path) -> None:
    code = """
import sys
import numpy as np
from structloss.losses.own_code import OwnCodeReader
from structloss.losses.workers import OwnCodeWorkers
workers = OwnCodeWorkers(lambda examples, ids: print("read", flush=True) or [], max_pending=3)
for _ in range(3):
    workers.submit([], list)
raise SystemExit(7)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 7, done.stderr
    assert done.stdout == "read\n" * 3


class AttachInALoader:
    """A collator that looks the cache up, which a loader's process should leave to the training process."""

    def __init__(self, visits: VisitCache, pad: int) -> None:
        self.visits = visits
        self.collate = StructureCollator(pad)

    def __call__(self, examples: list[Example]) -> tuple[torch.Tensor, str]:
        structure = self.collate(examples)["structure"]
        gap = self.visits.attach(structure, examples).gap
        try:
            self.visits.update(examples, structure.labels)
        except RuntimeError as error:
            return gap, str(error)
        return gap, ""


def test_a_forked_loader_waits_for_the_threads_and_cannot_submit(tokenizer, examples, batch) -> None:
    with VisitCache.for_loss(LOSS, tokenizer, workers=2) as visits:
        visits.update(examples, noisy(batch.labels, len(tokenizer), 0.2, 1))
        collate = AttachInALoader(visits, tokenizer.pad_token_id)
        loader = DataLoader(examples, 3, collate_fn=collate, num_workers=1, multiprocessing_context="fork")
        ((gap, error),) = list(loader)
        assert error.startswith("workers: this is a forked process")
        assert torch.equal(gap, visits.attach(batch, examples).gap)
        visits.update(examples, batch.labels)
        assert visits.attach(batch, examples).gap.max() < 0.1, "the training process goes on"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"workers": -1}, "workers"), ({"max_ready": -1}, "workers, max_r"), ({"workers": 1, "max_pending": 0}, "max_p")],
)
def test_the_cache_names_the_faulty_argument(tokenizer, arguments, named) -> None:
    with pytest.raises(ValueError, match=f"^{named}"):
        VisitCache(tokenizer, **arguments)


# --- rollouts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_rollout_decides_the_gap_and_a_visit_the_students_tree(tokenizer, examples, batch, workers, tmp_path) -> None:
    rollout = tokenizer("\n    return 1", add_special_tokens=False)["input_ids"]
    with VisitCache.for_loss(LOSS, tokenizer, workers=workers) as visits:
        visits.update(examples, batch.labels)
        before = visits.attach(batch, examples)
        visits.update_rollouts(examples[:1], [torch.tensor(rollout)])
        seen = visits.attach(batch, examples)
        assert torch.equal(seen.student.label, before.student.label)
        assert torch.equal(seen.student_hidden_index, before.student_hidden_index)
        assert torch.equal(seen.gap[1:], before.gap[1:])
        assert before.gap[0].max() < 0.05
        assert seen.gap[0].mean() > 0.5, "a loop is missing from `return 1`"
        assert seen.confidence.tolist() == [1, 1, 1]

        visits.update(examples, batch.labels)
        assert torch.equal(visits.attach(batch, examples).gap, seen.gap), "a visit does not replace a rollout"
        np.savez(tmp_path / "visits.npz", **visits.state_dict())
        visits.drop_rollouts()
        assert torch.equal(visits.attach(batch, examples).gap, before.gap)
    again = VisitCache.for_loss(LOSS, tokenizer)
    with np.load(tmp_path / "visits.npz") as state:
        again.load_state_dict(dict(state))
    assert_same(again.attach(batch, examples), seen)


def test_a_broken_rollout_is_trusted_less_and_an_unseen_sample_gets_its_gap(tokenizer, examples, batch) -> None:
    visits = VisitCache.for_loss(LOSS, tokenizer)
    visits.update_rollouts(examples[2:], [tokenizer("\n    return ((( = 3 3")["input_ids"]])
    seen = visits.attach(batch, examples)
    assert seen.confidence[:2].tolist() == [0, 0]
    assert 0 < seen.confidence[2] < 1
    assert torch.equal(seen.student.label, batch.teacher.label)
    assert seen.gap[2].max() > 0.3


def test_rollouts_want_a_gap_function_and_a_row_each(tokenizer, examples) -> None:
    with pytest.raises(ValueError, match="^update_rollouts: wants a cache that computes gaps"):
        VisitCache(tokenizer).update_rollouts(examples, [[1], [1], [1]])
    with pytest.raises(ValueError, match="^ids: wants one row an example"):
        VisitCache.for_loss(LOSS, tokenizer).update_rollouts(examples, [[1]])


def test_states_of_the_first_release_load(tokenizer, examples, batch) -> None:
    visits = VisitCache(tokenizer)
    code = examples[0].regions == CODE
    visits.load_state_dict({"sample-0": examples[0].input_ids[code]})
    assert visits.attach(batch, examples).confidence.tolist() == [1, 0, 0]


def test_a_batch_checks_its_gap(batch) -> None:
    with pytest.raises(ValueError, match="^gap: wants one a node of the teacher's trees"):
        replace(batch, gap=torch.zeros(3, 1), confidence=torch.ones(3))
    with pytest.raises(ValueError, match="^gap: wants confidence"):
        replace(batch, gap=torch.zeros(batch.teacher.label.shape))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_argmax_of_a_gpu_is_read_without_waiting(tokenizer, examples, batch) -> None:
    argmax = noisy(batch.labels, len(tokenizer), 0.2, 5)
    with VisitCache.for_loss(LOSS, tokenizer, workers=2) as visits:
        visits.update(examples, argmax.cuda())
        on_gpu = visits.attach(batch.to("cuda"), examples)
    assert on_gpu.gap.is_cuda
    plain = VisitCache.for_loss(LOSS, tokenizer)
    plain.update(examples, argmax)
    assert_same(on_gpu.to("cpu"), plain.attach(batch, examples))
