"""tools/visualize.py and tools/visualize_features.py: the sheets that they write, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from mm_ummae.visualization.sheets import GREY, PANEL
from tests.runs import CLASSIFY, PRETRAIN, SIMMIM

Draw = Callable[..., Path]


@pytest.fixture
def visualize(tool: Callable[[str], ModuleType]) -> ModuleType:
    return tool('visualize')


@pytest.fixture
def draw(visualize: ModuleType, checkpoints: dict[Path, Path]) -> Draw:
    """Reconstructions by the pre-training model of the demo: ``draw(images, *options)``."""
    return lambda *words: visualize.main([str(word) for word in (PRETRAIN, checkpoints[PRETRAIN], *words)])


@pytest.fixture
def columns(visualize: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """What a comparison shows: column title to samples."""
    seen: dict[str, list] = {}
    sheet = visualize.comparison_sheet
    monkeypatch.setattr(visualize, 'comparison_sheet', lambda columns: (seen.update(columns), sheet(columns))[1])
    return seen


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert('RGB'))


# Reconstructions


def test_a_folder_gets_a_row_for_each_of_its_first_images(
    draw: Draw, demo_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = draw(demo_data / 'imagenet' / 'unlabelled', '--limit', 3, '--out', tmp_path / 'new' / 'a.png')
    assert sheet == tmp_path / 'new' / 'a.png'
    image = read(sheet)
    assert image.shape[1] > 5 * PANEL and image.shape[0] > 3 * PANEL
    assert (image == GREY).all(2).any(), 'no masked units to see'
    assert capsys.readouterr().out.endswith(f'3 reconstructions in {sheet}\n')


def test_reconstructions_repeat_with_their_seed(draw: Draw, demo_data: Path, tmp_path: Path) -> None:
    image = demo_data / 'imagenet' / 'unlabelled' / '00000003.jpg'
    sheets = [
        read(draw(image, '--out', tmp_path / f'{i}.png', '--seed', seed, '--image-size', 64))
        for i, seed in enumerate((0, 0, 1))
    ]
    assert np.array_equal(sheets[0], sheets[1]) and not np.array_equal(sheets[0], sheets[2])


def test_checkpoints_and_seeds_are_compared_side_by_side(
    draw: Draw, checkpoints: dict[Path, Path], demo_data: Path, tmp_path: Path, columns: dict[str, list]
) -> None:
    """A seed gives the same masks to models that mask alike; columns of the same name are numbered."""
    others = ('--compare', PRETRAIN, checkpoints[PRETRAIN], '--compare', SIMMIM, checkpoints[SIMMIM])
    arguments = ('--limit', 2, '--seeds', 3, 4, '--out', tmp_path / 'sheet.png')
    image = read(draw(demo_data / 'imagenet' / 'unlabelled', *others, *arguments))
    assert 7 * PANEL < image.shape[1] < 9 * PANEL and 4 * PANEL < image.shape[0] < 5 * PANEL + 100
    folder = checkpoints[PRETRAIN].parent.name
    name = f'UMMAE, UMSwin\n{folder}/ummae'
    names = (name, f'{name} (2)', f'UMSimMIM, UMSwin\n{folder}/simmim')
    assert list(columns) == [f'{name}\nmask seed {seed}' for name in names for seed in (3, 4)]

    def same(first: str, second: str) -> bool:
        pairs = zip(columns[first], columns[second], strict=True)
        return all(torch.equal(a.hidden, b.hidden) for a, b in pairs)

    ummae_3, ummae_4, again_3, again_4, simmim_3, simmim_4 = columns
    assert same(ummae_3, again_3) and same(ummae_4, again_4)
    assert not same(ummae_3, ummae_4) and not same(simmim_3, simmim_4) and not same(ummae_3, simmim_3)
    for samples in columns.values():
        assert all(torch.equal(a.image, b.image) for a, b in zip(samples, columns[ummae_3], strict=True))
    assert not torch.equal(columns[ummae_3][0].reconstruction, columns[simmim_3][0].reconstruction)
    columns.clear()
    titles = ('--titles', 'one', 'two', 'three', '--image-size', 64)
    draw(demo_data / 'imagenet' / 'unlabelled' / '00000003.jpg', *others, *titles, '--out', tmp_path / 'a.png')
    assert list(columns) == ['one\nmask seed 0', 'two\nmask seed 0', 'three\nmask seed 0']


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (('--compare', 'x.py', 'x.pth', '--titles', 'one'), ValueError, r'--titles has 1 names, but .* 2 checkpoints'),
        (('--seeds', 1, 1), ValueError, r'--seeds \[1, 1\] must not repeat'),
        (('--out', 'sheet.txt'), ValueError, r"sheet\.txt has the suffix '\.txt', but a sheet is written as \.png"),
        (('--limit', 0), ValueError, r'limit is 0, but at least one image'),
        ((), FileNotFoundError, r'nowhere'),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(
    options: tuple, error: type[Exception], message: str, visualize: ModuleType, tmp_path: Path
) -> None:
    words = ('no_config.py', 'no_checkpoint.pth', tmp_path / 'nowhere', *options)
    with pytest.raises(error, match=message):
        visualize.main([str(word) for word in words])


def test_wrong_models_and_sizes_are_refused(
    visualize: ModuleType, draw: Draw, checkpoints: dict[Path, Path], demo_data: Path, tmp_path: Path
) -> None:
    """Nothing is written."""
    images, out = demo_data / 'imagenet' / 'unlabelled', tmp_path / 'sheet.png'
    for config, checkpoint, error, message in (
        (CLASSIFY, CLASSIFY, ValueError, r'is ImageClassifier, but only pre-training models reconstruct'),
        (PRETRAIN, CLASSIFY, ValueError, r'does not fit UMMAE.* missing: .*backbone\.secondary_token.*head\.fc'),
        (PRETRAIN, tmp_path / 'nowhere.pth', FileNotFoundError, r'nowhere\.pth does not exist'),
    ):
        words = (config, checkpoints.get(checkpoint, checkpoint), images, '--out', out)
        with pytest.raises(error, match=message):
            visualize.main([str(word) for word in words])
    with pytest.raises(ValueError, match=r'image height is 100 px, but Uniform Sampling needs .* multiple of 32'):
        draw(images, '--image-size', 100, '--out', out)
    assert not out.exists()


# Feature maps


def test_feature_maps_of_every_checkpoint(
    tool: Callable[[str], ModuleType],
    checkpoints: dict[Path, Path],
    demo_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a pre-training model, a classifier, and a classifier's backbone with the weights of a pre-training."""
    visualize = tool('visualize_features')
    sheets = {}
    for name, config, checkpoint, options in (
        ('pre-trained', PRETRAIN, PRETRAIN, ()),
        ('classifier', CLASSIFY, CLASSIFY, ()),
        ('start', CLASSIFY, PRETRAIN, ()),
        ('small', PRETRAIN, PRETRAIN, ('--image-size', 96)),
    ):
        out = tmp_path / 'new' / f'{name}.png'
        images = demo_data / 'imagenet' / 'unlabelled'
        words = (config, checkpoints[checkpoint], images, '--out', out, '--limit', 2, *options)
        assert visualize.main([str(word) for word in words]) == out
        assert capsys.readouterr().out.endswith(f'feature maps of 2 images in {out}\n')
        sheets[name] = read(out)[60:]  # without titles
    assert sheets['pre-trained'].shape == sheets['classifier'].shape != sheets['small'].shape
    assert not np.array_equal(sheets['pre-trained'], sheets['classifier'])
    # The same stages but for the last norm, which a classifier does not have
    four = sheets['start'].shape[1] * 4 // 5 - 6
    assert np.array_equal(sheets['start'][:, :four], sheets['pre-trained'][:, :four])


def test_feature_maps_refuse_wrong_arguments(
    tool: Callable[[str], ModuleType], checkpoints: dict[Path, Path], demo_data: Path
) -> None:
    for checkpoint, images, options, error, message in (
        (checkpoints[PRETRAIN], demo_data / 'nowhere', (), FileNotFoundError, r'nowhere'),
        (checkpoints[PRETRAIN], demo_data, ('--out', 'a.gif'), ValueError, r"a\.gif has the suffix '\.gif'"),
        (checkpoints[PRETRAIN], demo_data, ('--image-size', 0), ValueError, r'image_size is 0, but'),
        ('nowhere.pth', demo_data, (), FileNotFoundError, r'nowhere\.pth does not exist'),
    ):
        with pytest.raises(error, match=message):
            tool('visualize_features').main([str(word) for word in (PRETRAIN, checkpoint, images, *options)])
