"""Which parameters go to which optimizer, and several optimizers behind the interface of one."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from training.optimizers import Together, build_optimizer, trunk_matrices_of


def small(tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=tied,
        )
    )


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_the_trunks_matrices_only(tied: bool) -> None:
    model = small(tied)
    names = {id(p): name for name, p in model.named_parameters()}
    chosen = {names[i] for i in trunk_matrices_of(model)}
    assert len(chosen) == 2 * 7
    assert all("_proj" in name for name in chosen)
    optimizer = build_optimizer(model, trunk_matrices_of(model), name="muon", learning_rate=0.1, weight_decay=0.2)
    assert isinstance(optimizer, Together)
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len(names)
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert all((decay[name] == 0.2) == (p.dim() == 2) for name, p in model.named_parameters())


def test_adamw_alone() -> None:
    model = small()
    optimizer = build_optimizer(model, trunk_matrices_of(model), name="adamw", learning_rate=0.1, weight_decay=0.2)
    assert type(optimizer) is torch.optim.AdamW


def run_steps(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (step + 1))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        ids = torch.randint(0, 50, (2, 7), generator=generator)
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        scheduler.step()
        assert len({group["lr"] for group in optimizer.param_groups}) == 1, "the scheduler reaches every group"


def test_state_survives_a_checkpoint() -> None:
    model = small()
    optimizer = build_optimizer(model, trunk_matrices_of(model), name="muon", learning_rate=0.02, weight_decay=0.1)
    run_steps(model, optimizer, 3, seed=1)
    again = copy.deepcopy(model)
    restored = build_optimizer(again, trunk_matrices_of(again), name="muon", learning_rate=0.5, weight_decay=0.1)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [group["lr"] for group in restored.param_groups] == [group["lr"] for group in optimizer.param_groups]
    fresh = copy.deepcopy(model)
    run_steps(model, optimizer, 2, seed=2)
    run_steps(again, restored, 2, seed=2)
    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), name
    without = build_optimizer(fresh, trunk_matrices_of(fresh), name="muon", learning_rate=0.02, weight_decay=0.1)
    run_steps(fresh, without, 2, seed=2)
    assert not torch.equal(fresh.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)
