"""Export of a backbone or a classifier to one file, which is compared with the network before it is left behind."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from mmpretrain.models import ImageClassifier
from packaging.version import Version
from torch import Tensor, nn

from mm_ummae.checkpoints.files import whole_file
from mm_ummae.models.layers import keep_traced_size

from .loading import Outputs, load_deployed

OPSET = 18
TOLERANCE = 1e-4  # of the largest value of an output


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        suffix (str): Of its name.
        packages (tuple[str, ...]): Needed to write and to check it, beside PyTorch.
        since (str): First version of PyTorch that writes it with any number of images.
        write (Callable): Called with the network, example images, the path and the options of the batch and size.
    """

    suffix: str
    packages: tuple[str, ...]
    since: str
    write: Callable[[nn.Module, Tensor, Path, bool, bool], None]


class Deployed(nn.Module):
    """A backbone or a classifier with nothing but tensors around it.

    Args:
        network (nn.Module): Backbone that returns maps or tokens, or MMPretrain's ``ImageClassifier``, whose scores
            before the softmax are the output.
        mean (list[float], optional): Of the pixel values in the order of the channels, to normalise inside. Default:
            images are normalised before.
        std (list[float], optional): As ``mean``.
    """

    def __init__(self, network: nn.Module, mean: list[float] | None = None, std: list[float] | None = None) -> None:
        super().__init__()
        self.network = network.eval()
        for name, values in (('mean', mean), ('std', std)):
            value = None if values is None else torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor) -> Outputs:
        """(N, 3, H, W) -> outputs."""
        if self.mean is not None:
            images = (images - self.mean) / self.std
        if isinstance(self.network, ImageClassifier):
            return (self.network(images, mode='tensor'),)
        outputs = self.network(images)
        return tuple(outputs) if isinstance(outputs, (list, tuple)) else (outputs,)


def export_network(
    network: Deployed,
    path: str | Path,
    format: str,
    image_size: tuple[int, int],
    batch: int | None = None,
    dynamic_size: bool = False,
) -> dict[str, float]:
    """Write a network to a file, load the file, and compare it at another batch and size.

    Args:
        network (Deployed): On the CPU, in float32.
        path (str | Path): File to write; it appears when it has passed the comparison.
        format (str): One of :data:`FORMATS`.
        image_size (tuple[int, int]): Height and width in pixels.
        batch (int, optional): Fixed number of images. Default: any.
        dynamic_size (bool): Let the file take other sizes too, for formats and networks that allow it. Default False.
    Returns:
        dict[str, float]: Shape of the images as text -> largest difference from the network.
    Raises:
        ImportError: If a package is missing.
        ValueError: If an argument is illegal, the network does not allow what is asked, or the results differ.
    """
    path = Path(path).expanduser()
    if format not in FORMATS:
        raise ValueError(f'format is {format!r}, but it must be one of {", ".join(FORMATS)}')
    kind = FORMATS[format]
    if path.suffix != kind.suffix:
        raise ValueError(f'the file is {path.name}, but the suffix of {format} is {kind.suffix}')
    if not path.parent.is_dir():
        raise ValueError(f'the file is {path}, but its folder does not exist')
    if Version(torch.__version__) < Version(kind.since):
        raise ValueError(f'format is {format!r}, which needs PyTorch {kind.since}, but this is {torch.__version__}')
    if missing := [package for package in kind.packages if find_spec(package) is None]:
        raise ImportError(f'{format} needs {", ".join(missing)}: pip install {" ".join(missing)}')
    if batch is not None and batch < 1:
        raise ValueError(f'batch is {batch}, but it must be at least 1')
    if dynamic_size and format == 'torchscript':
        raise ValueError('dynamic_size is True, but sizes are constants of a trace: choose torch-export or onnx')
    height, width = image_size
    images = _noise(batch or 2, height, width)  # torch.export takes 0 and 1 for constants
    with whole_file(path) as part:
        file = part.with_suffix(kind.suffix)  # the loaders go by it
        try:
            _write(kind, network, images, file, batch is None, dynamic_size)
            differences = _compare(network, file, image_size, batch, dynamic_size)
            file.replace(part)
        finally:
            file.unlink(missing_ok=True)
    return differences


def _write(kind: Format, network: Deployed, images: Tensor, file: Path, any_batch: bool, any_size: bool) -> None:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of tracing and of the exporters
            kind.write(network, images, file, any_batch, any_size)
    except Exception as error:  # the exporters raise many kinds
        sentence = next(iter(str(error).strip().splitlines()), '')
        raise ValueError(f'{type(network.network).__name__} cannot be exported: {sentence} {WAYS}') from error


def _compare(
    network: Deployed, file: Path, size: tuple[int, int], batch: int | None, dynamic_size: bool
) -> dict[str, float]:
    """Differences at other batches and sizes; what the file must not take is tried too."""
    run = load_deployed(file)
    height, width = size
    others = [(2 * height, width)] if dynamic_size else []
    wanted = [(n, *each) for each in (size, *others) for n in ([batch] if batch else [1, 3])]
    refused = [(batch + 1, height, width)] if batch else []
    # As many pixels in another shape would be wrong without an error
    refused += [] if dynamic_size else [(batch or 2, 2 * height, width // 2), (batch or 2, height + 32, width)]
    name = type(network.network).__name__
    differences: dict[str, float] = {}
    for shape in wanted:
        images = _noise(*shape)
        with torch.no_grad():
            expected = network(images)
        try:
            found = run(images)
        except Exception as error:
            raise ValueError(f'the file does not take {_words(shape)}, as {name} does. {WAYS}') from error
        differences[_words(shape)] = _difference(found, expected, name, shape)
    for shape in refused:
        try:
            found = run(_noise(*shape))
        except Exception:
            continue
        with torch.no_grad():
            _difference(found, network(_noise(*shape)), name, shape)
        print_log(f'the file also takes {_words(shape)}, with the right result', 'current')
    return differences


WAYS = 'Give a batch (--batch N), leave the size fixed, or choose another format'


def _difference(found: Outputs, expected: Outputs, name: str, shape: tuple[int, ...]) -> float:
    """Largest difference of two results, or ValueError."""
    shapes = [[tuple(each.shape) for each in outputs] for outputs in (found, expected)]
    if shapes[0] != shapes[1]:
        raise ValueError(f'for {_words(shape)} the file gives {shapes[0]}, but {name} {shapes[1]}. {WAYS}')
    largest = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    scale = max(1.0, *(float(each.abs().max()) for each in expected))
    if not largest <= TOLERANCE * scale:
        raise ValueError(f'for {_words(shape)} the file differs from {name} by {largest:.2g}. {WAYS}')
    return largest


def _noise(batch: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, height, width, generator=generator)


def _words(shape: tuple[int, ...]) -> str:
    return f'{shape[0]} images of {shape[1]}x{shape[2]} px'


# Formats


def _torchscript(network: nn.Module, images: Tensor, file: Path, any_batch: bool, any_size: bool) -> None:
    torch.jit.save(torch.jit.trace(_fixed(network, images, any_batch), images, check_trace=False), str(file))


def _torch_export(network: nn.Module, images: Tensor, file: Path, any_batch: bool, any_size: bool) -> None:
    shapes = (_dynamic(any_batch, any_size),)
    torch.export.save(torch.export.export(network, (images,), dynamic_shapes=shapes), file)


def _onnx(network: nn.Module, images: Tensor, file: Path, any_batch: bool, any_size: bool) -> None:
    shapes = (_dynamic(any_batch, any_size),)
    torch.onnx.export(
        network, (images,), str(file), dynamo=True, dynamic_shapes=shapes, input_names=['images'], opset_version=OPSET,
        external_data=False, verbose=False,
    )  # fmt: skip


def _onnx_torchscript(network: nn.Module, images: Tensor, file: Path, any_batch: bool, any_size: bool) -> None:
    axes = ({0: 'batch'} if any_batch else {}) | ({2: 'height', 3: 'width'} if any_size else {})
    options: dict[str, Any] = dict(dynamic_axes={'images': axes}) if axes else {}
    torch.onnx.export(
        network, (images,), str(file), dynamo=False, input_names=['images'], opset_version=min(OPSET, 17), **options
    )


def _dynamic(any_batch: bool, any_size: bool) -> dict[int, Any]:
    dim = torch.export.Dim
    return ({0: dim('batch')} if any_batch else {}) | ({2: dim.AUTO, 3: dim.AUTO} if any_size else {})


def _fixed(network: nn.Module, images: Tensor, any_batch: bool) -> nn.Module:
    """The network, or one whose trace fails for another number of images."""
    return network if any_batch else _FixedBatch(network, len(images))


class _FixedBatch(nn.Module):
    def __init__(self, network: nn.Module, batch: int) -> None:
        super().__init__()
        self.network, self.batch = network, batch

    def forward(self, images: Tensor) -> Outputs:
        images = keep_traced_size(images)
        return self.network(images.view(self.batch, 3, *map(int, images.shape[2:])))


FORMATS = {
    'torchscript': Format('.pt', (), '2.1', _torchscript),
    'torch-export': Format('.pt2', (), '2.6', _torch_export),
    'onnx': Format('.onnx', ('onnx', 'onnxscript', 'onnxruntime'), '2.6', _onnx),
    'onnx-torchscript': Format('.onnx', ('onnx', 'onnxruntime'), '2.1', _onnx_torchscript),
}
