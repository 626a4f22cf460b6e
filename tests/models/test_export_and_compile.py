"""TorchScript, torch.compile and fake tensors: the same numbers and shapes as eager mode."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode

from mm_ummae.models import UMPVT, UMSwin
from tests.builders import ALL, SMALL, Pyramid, draw, made, made_simmim, made_ummae, maps, seeded

pytestmark = pytest.mark.slow

SHALLOW = {  # the fewest blocks that cover all branches, for the slow compiler
    UMSwin: dict(SMALL[UMSwin], depths=(2, 1, 1, 1)),
    UMPVT: dict(SMALL[UMPVT], depths=(1, 1, 1, 1)),
}
both_kinds = pytest.mark.parametrize('kind', SMALL, ids=lambda kind: kind.__name__)


def shallow(kind: Pyramid) -> nn.Module:
    windows = dict(window_size=4) if kind is UMSwin else {}  # shifted windows and padding at 72x56 px
    return made(kind, SHALLOW[kind], img_size=64, out_indices=ALL, **windows).eval()


@both_kinds
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@torch.no_grad()
def test_traced_model_takes_any_batch_size(kind: Pyramid) -> None:
    """Traced from one image, saved and loaded; sizes of images are constants of the trace."""
    model, file = shallow(kind), io.BytesIO()
    torch.jit.save(torch.jit.trace(model, seeded(1, 3, 72, 56)), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for n in (1, 2, 5):
        images = seeded(n, 3, 72, 56, seed=n)
        torch.testing.assert_close(loaded(images), model(images), atol=1e-5, rtol=1e-5)


def gradients(model: nn.Module, images: Tensor) -> list[Tensor]:
    loss = sum(out.square().mean() for out in model.train()(images))
    return list(torch.autograd.grad(loss, list(model.parameters())))


@both_kinds
def test_fake_tensors_and_inference_mode_leave_nothing_behind(kind: Pyramid) -> None:
    """A prediction, or an estimate of memory, before training changes no gradient."""
    images = seeded(2, 3, 72, 40)
    expected, shapes = gradients(shallow(kind), images), [out.shape for out in maps(shallow(kind), images)]
    model = shallow(kind)
    with torch.inference_mode():
        model(images)
    with FakeTensorMode():
        fake, empty = shallow(kind), torch.empty(2, 3, 72, 40)
        outs = maps(fake, empty)
        assert type(outs[0]) is not Tensor and [out.shape for out in outs] == shapes
        assert len(gradients(fake, empty)) == len(expected)
    assert all(map(torch.equal, gradients(model, images), expected))


# torch.compile


def compiled(function: Callable, backend: str) -> tuple[Callable, CompileCounterWithBackend]:
    """With an error where the graph would break, and a counter of compilations."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    return torch.compile(function, fullgraph=True, backend=counter), counter


@pytest.mark.integration
@pytest.mark.parametrize(('make', 'kind'), [(made_ummae, 'swin'), (made_ummae, 'pvt'), (made_simmim, 'swin')])
def test_loss_is_one_graph_for_all_steps(make: Callable[..., nn.Module], kind: str) -> None:
    """From the draw of masks to the loss; a new mask is new data, not a new program."""
    arch = SHALLOW[UMSwin if kind == 'swin' else UMPVT]
    model, losses = make(kind, backbone=dict(arch=arch, img_size=64)), []
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def loss(images: Tensor) -> Tensor:
        return model.loss(images)['loss']

    fast, counter = compiled(loss, 'eager')
    images = seeded(2, 3, 64, 64)
    for seed in range(3):
        both = []
        for function in (fast, loss):
            torch.manual_seed(seed)  # of the mask
            value = function(images)
            both.append((value, *torch.autograd.grad(value, weights)))
        torch.testing.assert_close(*both, atol=1e-5, rtol=1e-4)
        losses.append(both[0][0].item())
    assert len(set(losses)) == 3, 'the same mask in each step'
    assert counter.frame_count == 1


@pytest.mark.integration
def test_compiled_backward() -> None:
    """A masked stage with plain and shifted windows, whose backward is compiled too."""
    arch = dict(embed_dims=8, depths=(2,), num_heads=(2,), position_dims=4)
    model = made(UMSwin, arch, img_size=64, window_size=8, secondary_token=True, out_indices=(0,), final_norm=False)
    fast, counter = compiled(model, 'aot_eager')
    weights = list(model.parameters())
    for step in range(2):
        images, mask = seeded(2, 3, 64, 64, seed=step), draw(2, (64, 64), seed=step)
        both = []
        for function in (fast, model):
            out = function(images, mask)[0]
            both.append((out, *torch.autograd.grad(out.square().sum(), weights)))
        torch.testing.assert_close(*both, atol=1e-3, rtol=1e-3)
    assert counter.frame_count == 1


@pytest.mark.integration
@both_kinds
@torch.no_grad()
def test_predictions_follow_the_weights(kind: Pyramid) -> None:
    """One graph for all predictions, also after the weights have changed."""
    model = shallow(kind)
    fast, counter = compiled(model, 'eager')
    for step in range(3):
        images = seeded(2, 3, 72, 56, seed=step)
        torch.testing.assert_close(fast(images), model(images), atol=1e-5, rtol=1e-5)
        for name, weight in model.named_parameters():
            if 'position_bias' in name or 'pos_embed' in name:
                weight.mul_(-1.5)
    assert counter.frame_count == 1
