"""tools/visualize.py and tools/visualize_features.py: the sheets that they write, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from mm_ummae.visualization.sheets import GREY, PANEL
from tests.runs import CLASSIFY, PRETRAIN, SIMMIM

UMMAE = f'{PRETRAIN} ummae.pth images'
COMPARED = f'--compare {PRETRAIN} ummae.pth --compare {SIMMIM} simmim.pth'


@pytest.fixture(scope='module')
def files(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images, and checkpoints with random weights: ummae.pth, simmim.pth and um-swin-test.pth."""
    folder = tmp_path_factory.mktemp('files')
    (folder / 'images').symlink_to(demo_data / 'imagenet' / 'unlabelled')
    for seed, config in enumerate((PRETRAIN, SIMMIM, CLASSIFY)):
        cfg = Config.fromfile(config).model
        cfg.backbone.pop('init_cfg', None)
        torch.manual_seed(seed)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(cfg)
        torch.save(dict(state_dict=model.state_dict()), folder / f'{config.stem.partition("_")[0]}.pth')
    return list(folder.iterdir())


@pytest.fixture
def draw(
    tool: Callable[[str], ModuleType], files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., np.ndarray]:
    """The sheet of a command line, in a folder with those files: ``draw('CONFIG FILE images --seed 1')``."""
    for path in files:
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)

    def run(words: str, name: str = 'visualize') -> np.ndarray:
        out = tool(name).main([*words.split(), '--out', 'new/sheet.png'])
        assert out == Path('new/sheet.png')
        return np.asarray(Image.open(out).convert('RGB'))

    return run


# Reconstructions


def test_a_folder_gets_a_row_for_each_of_its_first_images(
    draw: Callable[..., np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    image = draw(f'{UMMAE} --limit 3')
    assert image.shape[1] > 5 * PANEL and 3 * PANEL < image.shape[0] < 4 * PANEL
    assert (image == GREY).all(2).any(), 'no masked units to see'
    assert capsys.readouterr().out.endswith('3 reconstructions in new/sheet.png\n')


def test_reconstructions_repeat_with_their_seed(draw: Callable[..., np.ndarray]) -> None:
    first, same, other = (draw(f'{UMMAE}/00000003.jpg --image-size 64 --seed {seed}') for seed in '001')
    assert np.array_equal(first, same) and not np.array_equal(first, other)


def test_checkpoints_and_seeds_are_compared_side_by_side(
    draw: Callable[..., np.ndarray], tool: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seed gives the same masks to models that mask alike; columns of the same name are numbered."""
    columns: dict[str, list] = {}
    sheet = tool('visualize').comparison_sheet
    monkeypatch.setattr(tool('visualize'), 'comparison_sheet', lambda x: (columns.update(x), sheet(x))[1])
    image = draw(f'{UMMAE} {COMPARED} --limit 2 --seeds 3 4')
    assert 7 * PANEL < image.shape[1] < 9 * PANEL and 4 * PANEL < image.shape[0] < 5 * PANEL + 100
    name = f'UMMAE, UMSwin\n{tmp_path.name}/ummae'
    names = (name, f'{name} (2)', f'UMSimMIM, UMSwin\n{tmp_path.name}/simmim')
    assert list(columns) == [f'{name}\nmask seed {seed}' for name in names for seed in (3, 4)]

    def same(first: str, second: str, field: str) -> bool:
        pairs = zip(columns[first], columns[second], strict=True)
        return all(torch.equal(getattr(a, field), getattr(b, field)) for a, b in pairs)

    ummae_3, ummae_4, again_3, again_4, simmim_3, simmim_4 = columns
    assert all(same(ummae_3, title, 'image') for title in columns)
    assert same(ummae_3, again_3, 'hidden') and same(ummae_4, again_4, 'hidden')
    for pair in ((ummae_3, ummae_4), (simmim_3, simmim_4), (ummae_3, simmim_3)):
        assert not same(*pair, 'hidden') and not same(*pair, 'reconstruction')
    columns.clear()
    draw(f'{UMMAE}/00000003.jpg {COMPARED} --titles one two three --image-size 64')
    assert list(columns) == ['one\nmask seed 0', 'two\nmask seed 0', 'three\nmask seed 0']


# Feature maps


def test_feature_maps_of_every_checkpoint(draw: Callable[..., np.ndarray], capsys: pytest.CaptureFixture[str]) -> None:
    """Of a pre-training model, a classifier, and a classifier's backbone with the weights of a pre-training."""
    sheets = [
        draw(f'{words} --limit 2', 'visualize_features')[60:]  # without titles
        for words in (
            UMMAE,
            f'{CLASSIFY} um-swin-test.pth images',
            f'{CLASSIFY} ummae.pth images',
            f'{UMMAE} --image-size 96',
        )
    ]
    assert capsys.readouterr().out.endswith('feature maps of 2 images in new/sheet.png\n')
    pre_trained, classifier, start, small = sheets
    assert pre_trained.shape == classifier.shape != small.shape
    assert not np.array_equal(pre_trained, classifier)
    # The same stages but for the last norm, which a classifier does not have
    four = start.shape[1] * 4 // 5 - 6
    assert np.array_equal(start[:, :four], pre_trained[:, :four])


# Errors


@pytest.mark.parametrize(
    ('command', 'message'),
    [
        # Before anything is read
        ('visualize no.py no.pth no --compare x.py x.pth --titles one', r'--titles has 1 names, but .* 2 checkpoints'),
        ('visualize no.py no.pth no --seeds 1 1', r'--seeds \[1, 1\] must not repeat'),
        ('visualize no.py no.pth no --out a.txt', r"a\.txt has the suffix '\.txt', but a sheet is written as \.png"),
        ('visualize no.py no.pth no --limit 0', r'limit is 0, but at least one image'),
        ('visualize no.py no.pth nowhere', r'nowhere'),
        ('visualize_features no.py no.pth nowhere', r'nowhere'),
        ('visualize_features no.py no.pth no --out a.gif', r"a\.gif has the suffix '\.gif'"),
        # Models and sizes
        (f'visualize {CLASSIFY} um-swin-test.pth images', r'is ImageClassifier, but only pre-training models'),
        (f'visualize {PRETRAIN} um-swin-test.pth images', r'not fit UMMAE.* missing: .*\.secondary_token.*head\.fc'),
        (f'visualize {PRETRAIN} no.pth images', r'no\.pth does not exist'),
        (f'visualize {UMMAE} --image-size 100', r'image height is 100 px, but Uniform Sampling needs .* of 32'),
        (f'visualize_features {PRETRAIN} no.pth images', r'no\.pth does not exist'),
        (f'visualize_features {UMMAE} --image-size 0', r'image_size is 0, but'),
    ],
)
def test_wrong_arguments_are_refused(
    command: str, message: str, draw: Callable[..., np.ndarray], tool: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    name, *words = command.split()
    with pytest.raises(SystemExit, match=message):
        tool(name).main(words)
    assert {path.suffix for path in tmp_path.iterdir()} == {'', '.pth'}, 'something was written'
