"""torch.compile: one graph is the loss of every step and the maps of every prediction, with the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from mm_ummae.models import UMSwin

from tests.builders import ALL, SHALLOW, made, seeded
from .test_um_mae import made_ummae
from .test_um_simmim import made_simmim

ARCH = dict(arch=SHALLOW[UMSwin], img_size=64)


def compiled(function: Callable) -> tuple[Callable, CompileCounterWithBackend]:
    """With an error where the graph would break, and what counts compilations."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend('eager')
    return torch.compile(function, fullgraph=True, backend=counter), counter


@pytest.mark.parametrize('make', [made_ummae, made_simmim], ids=['UMMAE', 'UMSimMIM'])
def test_loss_is_one_graph_for_all_steps(make: Callable[..., nn.Module]) -> None:
    """From the draw of masks to the loss; a new mask is new data, not a new program."""
    model, losses = make(backbone=ARCH), []
    weights = list(model.parameters())

    def loss(images: Tensor) -> Tensor:
        return model.loss(images)['loss']

    fast, counter = compiled(loss)
    images = seeded(2, 3, 64, 64)
    for seed in range(3):
        both = []
        for function in (fast, loss):
            torch.manual_seed(seed)  # of the mask
            value = function(images)
            both.append((value, *torch.autograd.grad(value, weights)))
        for ours, expected in zip(*both, strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
        losses.append(both[0][0].item())
    assert len(set(losses)) == 3, 'the same mask in each step'
    assert counter.frame_count == 1


@torch.no_grad()
def test_predictions_follow_the_weights() -> None:
    """In eval mode too, where a model that is not compiled keeps its bias: neither uses what the other has made."""
    model = made(UMSwin, SHALLOW[UMSwin], img_size=64, out_indices=ALL, window_size=4).eval()
    fast, counter = compiled(model)
    for step in range(3):
        images = seeded(1, 3, 72, 56, seed=step)
        for ours, theirs in zip(fast(images), model(images), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        for name, weight in model.named_parameters():
            if 'position_bias' in name:
                weight.mul_(-1.5)
    assert counter.frame_count == 1
