"""Muon on stacks of matrices does what torch's own does one by one."""

import pytest
import torch
from torch import nn

from adaptmedseg.training.muon import BatchedMuon, orthogonalise
from adaptmedseg.training.optimisers import step_all

SHAPES = [(16, 48), (48, 16), (16, 48), (20, 20), (64, 16), (20, 20)]


def test_equals_torchs_muon_to_the_bit():
    generator = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    mine = BatchedMuon(ours, lr=0.01, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        mine.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_rows_become_nearly_orthonormal():
    rows = orthogonalise(torch.randn(3, 8, 64, generator=torch.Generator().manual_seed(1))).float()
    values = torch.linalg.svdvals(rows)
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_parameters_without_gradient_stay():
    moved, kept = nn.Parameter(torch.ones(4, 8)), nn.Parameter(torch.ones(4, 8))
    optimiser = BatchedMuon([moved, kept], lr=0.1, weight_decay=0.1)
    moved.grad = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    optimiser.step()
    assert (kept == 1).all()
    assert (moved != 1).any()


def test_refuses_vectors():
    with pytest.raises(ValueError, match="matrices only"):
        BatchedMuon([nn.Parameter(torch.ones(4))], lr=0.1, weight_decay=0.0)


def test_several_optimisers_share_one_scale_of_losses() -> None:
    """What fp16 takes: each divides its gradients once, as if the loss had never been scaled."""
    values = []
    for scaled in (False, True):
        first, second = (torch.nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
        optimisers = [torch.optim.SGD([first], lr=0.1), torch.optim.SGD([second], lr=0.1)]
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16) if scaled else None
        loss = (first**2).sum() + (second**2).sum()
        (loss if scaler is None else scaler.scale(loss)).backward()
        step_all(optimisers, scaler)
        assert first.grad is None
        values.append((first.detach(), second.detach()))
    torch.testing.assert_close(values[1], values[0])
    torch.testing.assert_close(values[0][1], torch.tensor([0.8, 1.6]))
