"""Checkpoint files: read without running code, converted whole or not at all, by function and by tool."""

from __future__ import annotations

import argparse
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mm_ummae import __version__
from mm_ummae.checkpoints import files as checkpoint_files
from mm_ummae.checkpoints.files import LeftOut, file_hash, find_state, read_checkpoint, write_checkpoint
from mm_ummae.checkpoints.conversion import convert_checkpoint, to_ours, to_published
from mm_ummae.models import UMMAE, UMMAEDecoder, UMMAEHead, UMSwin

from .golden import GoldenCase

ROOT = Path(__file__).parents[1]
TOOL = ROOT / 'tools' / 'convert_checkpoint.py'
State = dict[str, Tensor]


def published(name: str) -> State:
    return GoldenCase(name).published_state()


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def training_file(state: State, path: Path) -> Path:
    """What an MAE-style script leaves: weights, optimizer, epoch, scaler, and its options as an object."""
    options = argparse.Namespace(batch_size=128, lr=1.5e-4, output_dir=pathlib.PosixPath('out'), betas=(0.9, 0.95))
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    scaler = dict(scale=65536.0, growth_tracker=3)
    torch.save(dict(model=state, optimizer=optimizer.state_dict(), epoch=199, scaler=scaler, args=options), path)
    return path


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a real MMEngine run, with its logs, schedulers and optimizer."""
    folder = tmp_path_factory.mktemp('run')
    torch.manual_seed(0)
    model = UMMAE(
        UMSwin('test', 64, secondary_token=True),
        UMMAEDecoder(256, 32, depth=1, num_heads=2, img_size=64),
        UMMAEHead(32),
        data_preprocessor=dict(type='SelfSupDataPreprocessor'),
    )
    Runner(
        model=model,
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=[dict(inputs=torch.rand(3, 64, 64), data_samples=DataSample()) for _ in range(2)],
            batch_size=2,
            sampler=dict(type='DefaultSampler'),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
        param_scheduler=dict(type='LinearLR', start_factor=0.1),
        default_scope='mmpretrain',
        experiment_name=folder.name,
    ).train()
    return folder / 'epoch_1.pth'


# Reading


@pytest.fixture(params=['current', 'before-2.6'])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way to read, so that the older one is tested where PyTorch does not need it too."""
    if request.param == 'before-2.6':
        monkeypatch.setattr(checkpoint_files, 'CAN_LEAVE_OUT', False)


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


@pytest.mark.usefixtures('reader')
def test_a_file_runs_no_code(tmp_path: Path) -> None:
    """A pickle that runs a command: refused and named, and the command does not run."""
    attack = Attack(f'touch {tmp_path / "ran"}')
    torch.save(dict(model=published('cls_swin'), args=attack), tmp_path / 'model.pth')
    message = (
        r'the checkpoint .*model\.pth cannot be read\. It holds (posix|nt)\.system, and restoring that could run code'
    )
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / 'model.pth', tmp_path / 'ours.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['model.pth']
    torch.load(tmp_path / 'model.pth', weights_only=False)
    assert (tmp_path / 'ran').exists()  # it does run where a reader trusts the file


@pytest.mark.usefixtures('reader')
def test_other_objects_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / 'model.pth')
    with pytest.raises(
        ValueError, match=r'It holds torch\.nn\.modules\.linear\.Linear, .* save its weights alone: torch'
    ):
        read_checkpoint(tmp_path / 'model.pth')


@pytest.mark.usefixtures('reader')
def test_what_training_adds_is_left_out(tmp_path: Path) -> None:
    """Options of a script are not restored: an inert object stands for them."""
    state = published('simmim_swin')
    content = read_checkpoint(training_file(state, tmp_path / 'model.pth'))
    assert same(find_state(content, 'model.pth'), state)
    assert type(content['args']) is LeftOut and not vars(content['args'])
    assert content['epoch'] == 199 and content['optimizer']['param_groups'][0]['betas'] == (0.9, 0.999)


@pytest.mark.usefixtures('reader')
def test_a_run_of_mmengine(run: Path) -> None:
    """Its logs, with numpy arrays and scalars in them, are left out; plain values stay."""
    content = read_checkpoint(run)
    assert content['meta']['epoch'] == 1 and content['meta']['mmengine_version']
    assert all(type(log) is LeftOut for log in content['message_hub']['log_scalars'].values())
    expected = torch.load(run, weights_only=False)['state_dict']
    assert same(find_state(content, run), expected) and len(expected) > 100


def test_allowing_ends_with_the_reading(run: Path) -> None:
    allowed = getattr(torch.serialization, 'get_safe_globals', list)
    before = set(map(repr, allowed()))
    read_checkpoint(run)
    assert set(map(repr, allowed())) == before


@pytest.mark.parametrize(
    'wrap',
    [
        lambda state: dict(model=state),
        lambda state: dict(state_dict=state, epoch=3),
        lambda state: state,
        lambda state: dict(model={f'module.{name}': value for name, value in state.items()}),
    ],
    ids=['model', 'state_dict', 'bare', 'module'],
)
def test_every_form_of_a_file(wrap: Callable[[State], dict], tmp_path: Path) -> None:
    state = published('cls_swin')
    torch.save(wrap(state), tmp_path / 'model.pth')
    convert_checkpoint(tmp_path / 'model.pth', tmp_path / 'ours.pth')
    assert same(read_checkpoint(tmp_path / 'ours.pth')['state_dict'], to_ours(state))


@pytest.mark.usefixtures('reader')
def test_old_format_of_torch(tmp_path: Path) -> None:
    """Files of PyTorch before 1.6, which are no zip archives."""
    state = published('cls_pvt')
    options = argparse.Namespace(lr=1.0)
    torch.save(dict(model=state, args=options), tmp_path / 'model.pth', _use_new_zipfile_serialization=False)
    assert same(find_state(read_checkpoint(tmp_path / 'model.pth'), ''), state)


# Converting


@pytest.mark.parametrize('name', ['ummae_swin', 'ummae_pvt', 'ummae_vit', 'simmim_pvt', 'cls_swin', 'det_pvt'])
def test_round_trip_of_files(name: str, tmp_path: Path) -> None:
    """Bit for bit, and without being told the image size, which the first file remembers."""
    state = published(name)
    source = training_file(state, tmp_path / 'released.pth')
    ours = convert_checkpoint(source, tmp_path / 'ours.pth')
    back = convert_checkpoint(ours, tmp_path / 'back.pth')
    again = convert_checkpoint(back, tmp_path / 'again.pth')
    contents = [torch.load(path, weights_only=True) for path in (ours, back, again)]
    assert [set(content) for content in contents] == [{'meta', 'state_dict'}, {'meta', 'model'}, {'meta', 'state_dict'}]
    assert same(contents[0]['state_dict'], to_ours(state))
    assert same(contents[1]['model'], state)
    assert same(contents[2]['state_dict'], contents[0]['state_dict'])


def test_meta(tmp_path: Path) -> None:
    """Where the weights come from, what they are and their licence, in both directions."""
    source = training_file(published('ummae_swin'), tmp_path / 'released.pth')
    ours = convert_checkpoint(source, tmp_path / 'ours.pth')
    arch = dict(depths=[2, 2, 2, 2], embed_dims=[32, 64, 128, 256], num_heads=[2, 4, 8, 16], position_dims=8)
    arch |= dict(mlp_ratios=[4, 4, 4, 4], img_size=128, decoder_embed_dims=64, decoder_depth=1)
    meta = dict(mm_ummae_version=__version__, source='released.pth', source_sha256=file_hash(source), kind='um-mae')
    meta |= dict(backbone='swin', arch=arch, licence='CC BY-NC 4.0 for the released weights')
    assert read_checkpoint(ours)['meta'] == meta

    back = read_checkpoint(convert_checkpoint(ours, tmp_path / 'back.pth'))['meta']
    assert back == {**meta, 'source': 'ours.pth', 'source_sha256': file_hash(ours)}


def test_licence(run: Path, tmp_path: Path) -> None:
    """That of the source goes along; weights of one's own are not given the released files'."""
    own = convert_checkpoint(run, tmp_path / 'published.pth', img_size=64)
    assert read_checkpoint(own)['meta']['licence'] == 'not stated'
    named = convert_checkpoint(run, tmp_path / 'named.pth', img_size=64, licence='CC0')
    back = convert_checkpoint(named, tmp_path / 'back.pth')
    assert read_checkpoint(back)['meta']['licence'] == 'CC0'


def test_a_run_converts(run: Path, tmp_path: Path) -> None:
    """A checkpoint of MMEngine to published naming and back: the same weights, and nothing but weights."""
    path = convert_checkpoint(run, tmp_path / 'published.pth', to='published', img_size=64)
    content = torch.load(path, weights_only=True)
    state = find_state(read_checkpoint(run), run)
    assert same(content['model'], to_published(state, 64)) and same(to_ours(content['model']), state)
    assert path.stat().st_size < 0.5 * run.stat().st_size  # no optimizer


def test_hash_suffix(tmp_path: Path) -> None:
    """OpenMMLab's name for published files; the same source gives the same file, whatever its name."""
    source = training_file(published('cls_swin'), tmp_path / 'released.pth')
    path = convert_checkpoint(source, tmp_path / 'model.pth', hash_suffix=True)
    assert path.name == f'model-{file_hash(path)[:8]}.pth'
    other = convert_checkpoint(source, tmp_path / 'other.pth')
    assert file_hash(other) == file_hash(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(['released.pth', path.name, 'other.pth'])


def test_views_are_written_without_the_memory_around_them(tmp_path: Path) -> None:
    write_checkpoint(dict(meta={}, model=dict(weight=torch.zeros(1_000_000)[:10])), tmp_path / 'model.pth')
    assert (tmp_path / 'model.pth').stat().st_size < 5_000


# Nothing half-written


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3000])


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (truncated, r'the checkpoint .*model\.pth cannot be read\. Was it truncated, or not made by torch\.save\?'),
        (cut_short, r'cannot be read\. Was it truncated'),
        (lambda path: path.write_bytes(b''), r'cannot be read\. Was it truncated'),
        (lambda path: path.write_text('<html>404</html>'), r'cannot be read\. Was it truncated'),
        (lambda path: path.unlink(), r'the checkpoint .*model\.pth does not exist'),
        (lambda path: torch.save([1, 2], path), r'the checkpoint .*model\.pth holds no state_dict of tensors'),
        (lambda path: torch.save(dict(model=dict(a=1)), path), r'holds no state_dict of tensors'),
        (lambda path: torch.save(dict(model=dict()), path), r'holds no state_dict of tensors'),
        (
            lambda path: torch.save({'a': torch.ones(1), 'module.a': torch.ones(1)}, path),
            r'holds names both with and without module\.: a$',
        ),
        (
            lambda path: torch.save(dict(a=torch.ones(1)), path),
            r'the checkpoint .*model\.pth cannot be converted\. there is neither patch_embed\.proj',
        ),
    ],
)
@pytest.mark.usefixtures('reader')
def test_bad_sources_leave_nothing(damage: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    """The error names the file, and a target of an earlier call stays as it was."""
    path, target = training_file(published('cls_swin'), tmp_path / 'model.pth'), tmp_path / 'ours.pth'
    target.write_text('of an earlier call')
    damage(path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert_checkpoint(path, target)
    assert target.read_text() == 'of an earlier call'
    assert {p.name for p in tmp_path.iterdir()} <= {'model.pth', 'ours.pth'}


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing fails in the middle: neither a half file nor a temporary one is left, and the old one stays."""
    source, target = training_file(published('cls_swin'), tmp_path / 'model.pth'), tmp_path / 'ours.pth'
    target.write_text('of an earlier call')

    def fail(content: dict, file: Any) -> None:
        file.write(b'half')
        raise OSError('No space left on device')

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(OSError, match='No space left'):
        convert_checkpoint(source, target)
    assert target.read_text() == 'of an earlier call'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['model.pth', 'ours.pth']


def test_the_target_is_replaced_at_once(tmp_path: Path) -> None:
    """Who has the old file open goes on reading the old one: it is exchanged, not written over."""
    source, target = training_file(published('cls_swin'), tmp_path / 'model.pth'), tmp_path / 'ours.pth'
    target.write_text('of an earlier call')
    with target.open() as reader:
        convert_checkpoint(source, target)
        assert reader.read() == 'of an earlier call'
    assert same(read_checkpoint(target)['state_dict'], to_ours(published('cls_swin')))


def test_illegal_arguments(tmp_path: Path) -> None:
    source = training_file(published('cls_swin'), tmp_path / 'model.pth')
    before = source.read_bytes()
    for kwargs, message in (
        (dict(target=tmp_path / 'x.pth', to='timm'), r"to is 'timm', but it must be one of ours, published"),
        (dict(target=tmp_path / 'x.pth', to='published'), r"to is 'published', but that is its naming already"),
        (dict(target=tmp_path), r'target is .*, but it must be a file in a folder that exists'),
        (dict(target=tmp_path / 'none' / 'x.pth'), r'target is .*none.x\.pth, but it must be a file in a folder'),
        (dict(target=source), r'target is .*model\.pth, but that is the source'),
    ):
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(source, **kwargs)
    assert source.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ['model.pth']


# The tool


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location('convert_checkpoint_tool', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tool_as_a_user_calls_it(tmp_path: Path) -> None:
    source = training_file(published('ummae_swin'), tmp_path / 'released.pth')
    command = [sys.executable, str(TOOL), str(source), str(tmp_path / 'ours.pth')]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert 'ours.pth: 166 tensors in our naming' in done.stdout
    assert 'um-mae, swin: depths [2, 2, 2, 2], embed_dims [32, 64, 128, 256]' in done.stdout
    assert file_hash(source) in done.stdout and 'licence: CC BY-NC 4.0' in done.stdout
    assert 'needs neck.published_positions=True' in done.stdout
    assert same(read_checkpoint(tmp_path / 'ours.pth')['state_dict'], to_ours(published('ummae_swin')))


def test_tool_to_published(tool: ModuleType, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tool.main([str(run), str(tmp_path / 'model.pth'), '--img-size', '64', '--hash-suffix', '--licence', 'CC0'])
    assert re.fullmatch(r'model-[0-9a-f]{8}\.pth', path.name)
    out = capsys.readouterr().out
    assert 'tensors in published naming' in out and 'licence: CC0' in out and 'published_positions=True' in out
    assert read_checkpoint(path)['model']['decoder_pos_embed'].shape == (1, 16, 32)
    wide = tool.main([str(run), str(tmp_path / 'wide.pth'), '--img-size', '32', '128'])
    back = read_checkpoint(tool.main([str(wide), str(tmp_path / 'back.pth')]))  # the shape is in the file
    assert back['meta']['arch']['img_size'] == [32, 128]
    assert same(back['state_dict'], find_state(read_checkpoint(run), run))


def test_tool_says_what_is_wrong(
    tool: ModuleType, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / 'model.pth')
    with pytest.raises(
        SystemExit, match=r'^error: the checkpoint .*epoch_1\.pth cannot be converted\. img_size is not'
    ):
        tool.main([str(run), target])
    with pytest.raises(SystemExit, match=r'^error: the checkpoint nowhere\.pth does not exist'):
        tool.main(['nowhere.pth', target])
    with pytest.raises(SystemExit):
        tool.main([str(run), target, '--img-size', '1', '2', '3'])
    assert '--img-size takes one or two numbers' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
