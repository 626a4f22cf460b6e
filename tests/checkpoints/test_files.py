"""Checkpoint files: read without executing code, converted completely or not at all, by function and by tool."""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mm_ummae import __version__
from mm_ummae.checkpoints import convert_checkpoint, files, find_state, read_checkpoint, to_ours, write_checkpoint
from mm_ummae.checkpoints.files import file_hash
from tests.builders import made_ummae
from tests.golden import published, same

TOOL = Path(__file__).parents[2] / 'tools' / 'convert_checkpoint.py'
RELEASED = 'CC BY-NC 4.0 for the released weights'
State = dict[str, Tensor]


def training_file(name: str, path: Path) -> Path:
    """File of an MAE-style script: weights, optimizer, epoch, scaler, and the script's options as an object."""
    options = argparse.Namespace(lr=1.5e-4, output_dir=pathlib.PosixPath('out'), betas=(0.9, 0.95))
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(2))]).state_dict()
    scaler = dict(scale=65536.0, growth_tracker=3)
    torch.save(dict(model=published(name), optimizer=optimizer, epoch=199, scaler=scaler, args=options), path)
    return path


def mmengine_runner(folder: Path, epochs: int = 1, **kwargs: Any) -> Runner:
    """MMEngine's own runner, on images of 64 px."""
    samples = [dict(inputs=torch.rand(3, 64, 64), data_samples=DataSample()) for _ in range(2)]
    return Runner(
        model=made_ummae(backbone=dict(img_size=64), neck=dict(img_size=64)),
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=samples,
            batch_size=2,
            sampler=dict(type='DefaultSampler'),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
        param_scheduler=dict(type='LinearLR', start_factor=0.1),
        default_scope='mmpretrain',
        experiment_name=f'{folder.name}-{epochs}',
        **kwargs,
    )


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of an MMEngine run, with its logs, schedulers and optimizer."""
    folder = tmp_path_factory.mktemp('run')
    mmengine_runner(folder).train()
    return folder / 'epoch_1.pth'


# Reading and writing


@pytest.fixture(params=['current', 'before-2.6'])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to read: the older one is tested with newer PyTorch too."""
    if request.param == 'before-2.6':
        monkeypatch.setattr(files, 'CAN_LEAVE_OUT', False)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Messages of the reader."""
    messages: list[str] = []
    monkeypatch.setattr(files, 'print_log', lambda message, *_: messages.append(message))
    return messages


class Attack:
    """Executes a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


@pytest.mark.usefixtures('reader')
def test_reading_executes_no_code(tmp_path: Path) -> None:
    torch.save(dict(model=published('cls_swin'), args=Attack(f'touch {tmp_path / "ran"}')), tmp_path / 'model.pth')
    message = r'the checkpoint .*model\.pth cannot be read\. It holds (posix|nt)\.system, and restoring that could exec'
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / 'model.pth', tmp_path / 'ours.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['model.pth']
    torch.load(tmp_path / 'model.pth', weights_only=False)
    assert (tmp_path / 'ran').exists()  # a reader that trusts the file does execute it


@pytest.mark.usefixtures('reader')
def test_other_objects_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / 'model.pth')
    message = r'It holds torch\.nn\.modules\.linear\.Linear, .* set MM_UMMAE_TRUSTED_CHECKPOINTS=PATH'
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / 'model.pth')


@pytest.mark.usefixtures('reader')
def test_training_objects_are_left_out(tmp_path: Path, run: Path, log: list[str]) -> None:
    """A script's options and MMEngine's logs, with arrays in them, are left out and logged; plain values stay."""
    path = training_file('simmim_swin', tmp_path / 'model.pth')
    content = read_checkpoint(path)
    assert same(find_state(content, path), published('simmim_swin'))
    assert 'args' not in content
    assert log.pop() == f'{path}: not restored: args'
    assert content['epoch'] == 199 and content['optimizer']['param_groups'][0]['betas'] == (0.9, 0.999)

    content = read_checkpoint(run)
    assert content['meta']['epoch'] == 1 and content['meta']['mmengine_version']
    assert content['message_hub']['log_scalars'] == {}
    assert 'message_hub.log_scalars.train/loss' in log.pop()
    assert same(find_state(content, run), torch.load(run, weights_only=False)['state_dict'])


@pytest.mark.usefixtures('reader')
def test_mmengine_resumes_its_own_files(run: Path, tmp_path: Path) -> None:
    """With the safe reader, without the logs in them; PyTorch's default refuses such a file since 2.6."""
    runner = mmengine_runner(tmp_path, 2, resume=True, load_from=str(run))
    runner.load_or_resume()
    assert (runner.epoch, runner.iter) == (1, 1)
    assert same(runner.model.state_dict(), read_checkpoint(run)['state_dict'])
    runner.train()
    content = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    assert content['meta']['iter'] == 2 and content['optimizer']['state'][0]['step'] == 2
    assert 'train/loss' in content['message_hub']['log_scalars']


@pytest.mark.usefixtures('reader')
def test_numbers_and_arrays_of_numpy_are_restored(tmp_path: Path) -> None:
    """Best scores are often such numbers, and a resumed run compares with them."""
    values = dict(score=np.float64(0.5), count=np.int64(3), flag=np.bool_(True), name=np.str_('a'))
    values |= dict(table=np.arange(6.0).reshape(2, 3), columns=np.asfortranarray(np.arange(6).reshape(2, 3)))
    values |= dict(big=np.arange(3, dtype='>i4'), empty=np.zeros((0, 2), np.float16))
    torch.save(dict(state_dict={}, info=values, tuple=(np.ones(1), 2)), tmp_path / 'a.pth')
    content = read_checkpoint(tmp_path / 'a.pth')
    assert content['tuple'] == (np.ones(1), 2)
    assert content['info'].keys() == values.keys()
    for name, value in values.items():
        found = content['info'][name]
        assert type(found) is type(value) and found.dtype == value.dtype
        np.testing.assert_array_equal(found, value)


class Forged:
    """Pickled as the call of a function of NumPy."""

    def __init__(self, function: Callable, arguments: tuple, state: Any = None) -> None:
        self.call = function, arguments, *([] if state is None else [state])

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.usefixtures('reader')
def test_bytes_are_not_read_as_addresses(tmp_path: Path, log: list[str]) -> None:
    """NumPy would build these arrays of objects from a file's bytes."""
    number, array = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    address = (1).to_bytes(8, 'little')
    kind = Forged(np.dtype, ('O8', False, True), (3, '|', None, None, None, -1, -1, 0))
    values = dict(
        objects=np.array([{}, []], dtype=object),
        fields=np.zeros(1, dtype=[('a', 'O')]),
        number=Forged(number, (kind, address)),
        array=Forged(array, (np.ndarray, (0,), b'b'), (1, (1,), kind, False, address)),
        time=np.datetime64('2026-01-01'),
    )
    torch.save(dict(state_dict={}, **values), tmp_path / 'a.pth')
    assert read_checkpoint(tmp_path / 'a.pth') == dict(state_dict={})
    assert log == [f'{tmp_path / "a.pth"}: not restored: {", ".join(values)}']


@pytest.mark.usefixtures('reader')
def test_placeholders_leave_no_trace(tmp_path: Path) -> None:
    options = argparse.Namespace(lr=1.0)
    torch.save(
        dict(a=[options, 1, (options, 2)], meta=dict(config='import os', cfg='a = 1', b=dict(c=options, d=None))),
        tmp_path / 'a.pth',
    )
    assert read_checkpoint(tmp_path / 'a.pth') == dict(a=[None, 1, (None, 2)], meta=dict(b=dict(d=None)))


@pytest.mark.usefixtures('reader')
def test_flipped_bit_is_found(tmp_path: Path) -> None:
    path = write_checkpoint(dict(meta={}, model=dict(a=torch.full((100,), 3.0))), tmp_path / 'a.pth')
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((100,), 3.0).numpy().tobytes()) + 9] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'a\.pth cannot be read\. It is damaged: the checksum of .*data/0 is wrong'):
        read_checkpoint(path)


@pytest.mark.usefixtures('reader')
def test_programs_are_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(1, 1)).save(tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'a\.pth cannot be read\. It is a TorchScript archive, a program\. Save the'):
        read_checkpoint(tmp_path / 'a.pth')


@pytest.mark.usefixtures('reader')
def test_trusted_file_is_restored_and_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    torch.save(dict(layer=nn.Linear(2, 2)), tmp_path / 'a.pth')
    torch.save(dict(layer=nn.Linear(2, 2)), tmp_path / 'b.pth')
    monkeypatch.setenv(
        'MM_UMMAE_TRUSTED_CHECKPOINTS', os.pathsep.join(['~/x.pth', str(tmp_path / '..' / tmp_path.name / 'a.pth')])
    )
    assert isinstance(read_checkpoint(tmp_path / 'a.pth')['layer'], nn.Linear)
    assert 'is trusted (MM_UMMAE_TRUSTED_CHECKPOINTS): its objects may execute code' in log.pop()
    with pytest.raises(ValueError, match='could execute code'):
        read_checkpoint(tmp_path / 'b.pth')


def test_safetensors_there_and_back(tmp_path: Path) -> None:
    state = {'a.weight': torch.rand(3, 4).t(), 'a.steps': torch.tensor(3), 'b': torch.rand(2).half()}
    meta = dict(licence='CC0', arch=dict(depths=[2, 2]))
    path = write_checkpoint(dict(meta=meta, state_dict=state), tmp_path / 'a.safetensors')
    content = read_checkpoint(path)
    assert content['meta'] == meta and same(content['state_dict'], state)
    other = tmp_path / 'other.safetensors'  # of another library
    safetensors.torch.save_file(dict(b=torch.ones(2)), other, dict(author='someone'))
    assert read_checkpoint(other)['meta'] == dict(author='someone')
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r'a\.safetensors cannot be read\. It is truncated'):
        read_checkpoint(path)


def test_safetensors_are_converted(
    tool: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In both directions, with the source's meta."""
    main = tool('convert_checkpoint').main
    source = training_file('ummae_swin', tmp_path / 'released.pth')
    ours = main([str(source), str(tmp_path / 'ours.safetensors')])
    back = main([str(ours), str(tmp_path / 'back.safetensors')])
    out = capsys.readouterr().out
    assert 'ours.safetensors: 166 tensors in our naming' in out and 'tensors in published naming' in out
    assert same(safetensors.torch.load_file(ours), to_ours(published('ummae_swin')))
    assert same(safetensors.torch.load_file(back), published('ummae_swin'))
    assert read_checkpoint(back)['meta']['source'] == 'ours.safetensors'


def test_allowed_names_are_restored_after_reading(run: Path) -> None:
    allowed = getattr(torch.serialization, 'get_safe_globals', list)
    before = set(map(repr, allowed()))
    read_checkpoint(run)
    assert set(map(repr, allowed())) == before


@pytest.mark.usefixtures('reader')
def test_old_format_of_torch(tmp_path: Path) -> None:
    """Files of PyTorch before 1.6 are not zip archives."""
    content = dict(model=published('cls_pvt'), args=argparse.Namespace(lr=1.0))
    torch.save(content, tmp_path / 'model.pth', _use_new_zipfile_serialization=False)
    assert same(find_state(read_checkpoint(tmp_path / 'model.pth'), ''), content['model'])


def test_views_are_written_without_their_storage(tmp_path: Path) -> None:
    path = write_checkpoint(dict(meta={}, model=dict(weight=torch.zeros(1_000_000)[:10])), tmp_path / 'model.pth')
    assert path.stat().st_size < 5_000


# Conversion of files


@pytest.mark.parametrize('name', ['ummae_swin', 'ummae_vit', 'simmim_pvt', 'lomar_vit'])
def test_round_trip_of_files(name: str, tmp_path: Path) -> None:
    """Every bit is restored, without an image size, which the first file stores."""
    source = training_file(name, tmp_path / 'released.pth')
    ours = convert_checkpoint(source, tmp_path / 'ours.pth')
    back = convert_checkpoint(ours, tmp_path / 'back.pth')
    contents = [torch.load(path, weights_only=True) for path in (ours, back)]
    assert [set(content) for content in contents] == [{'meta', 'state_dict'}, {'meta', 'model'}]
    assert same(contents[0]['state_dict'], to_ours(published(name)))
    assert same(contents[1]['model'], published(name))


def test_meta(tmp_path: Path) -> None:
    """Origin, sizes and licence of the weights, in both directions."""
    source = training_file('ummae_swin', tmp_path / 'released.pth')
    ours = convert_checkpoint(source, tmp_path / 'ours.pth')
    arch = dict(depths=[2, 2, 2, 2], embed_dims=[32, 64, 128, 256], num_heads=[2, 4, 8, 16], position_dims=8)
    arch |= dict(mlp_ratios=[4, 4, 4, 4], img_size=128, decoder_embed_dims=64, decoder_depth=1)
    meta = dict(mm_ummae_version=__version__, source='released.pth', source_sha256=file_hash(source), kind='um-mae')
    meta |= dict(backbone='swin', arch=arch, licence=RELEASED)
    assert read_checkpoint(ours)['meta'] == meta
    back = read_checkpoint(convert_checkpoint(ours, tmp_path / 'back.pth'))['meta']
    assert back == {**meta, 'source': 'ours.pth', 'source_sha256': file_hash(ours)}


def test_a_run_converts(run: Path, tmp_path: Path) -> None:
    """Weights alone, there and back; the licence is that of the source, and none is made up."""
    state = find_state(read_checkpoint(run), run)
    path = convert_checkpoint(run, tmp_path / 'published.pth', to='published', img_size=64)
    content = torch.load(path, weights_only=True)
    assert content['meta']['licence'] == 'not stated' and same(to_ours(content['model']), state)
    assert path.stat().st_size < 0.5 * run.stat().st_size  # no optimizer
    named = convert_checkpoint(run, tmp_path / 'named.pth', img_size=64, licence='CC0')
    assert read_checkpoint(convert_checkpoint(named, tmp_path / 'back.pth'))['meta']['licence'] == 'CC0'


def test_hash_suffix(tmp_path: Path) -> None:
    """OpenMMLab's name of published files. The same source gives the same file under any name."""
    source = training_file('cls_swin', tmp_path / 'released.pth')
    path = convert_checkpoint(source, tmp_path / 'model.pth', hash_suffix=True)
    assert path.name == f'model-{file_hash(path)[:8]}.pth'
    assert file_hash(convert_checkpoint(source, tmp_path / 'other.pth')) == file_hash(path)
    assert {p.name for p in tmp_path.iterdir()} == {'released.pth', path.name, 'other.pth'}


# No half-written files


def cut(path: Path, end: int) -> None:
    path.write_bytes(path.read_bytes()[:end])


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda path: cut(path, -3000), r'the checkpoint .*model\.pth cannot be read\. It is truncated or was not'),
        (lambda path: cut(path, 100), r'cannot be read\. It is truncated'),
        (lambda path: path.write_bytes(b''), r'cannot be read\. It is truncated'),
        (lambda path: path.write_text('<html>404</html>'), r'cannot be read\. It is truncated(?!.*weights_only)'),
        (lambda path: path.unlink(), r'the checkpoint .*model\.pth does not exist'),
        (lambda path: torch.save([1, 2], path), r'the checkpoint .*model\.pth holds no state_dict of tensors'),
        (lambda path: torch.save(dict(epoch=3), path), r'holds no state_dict of tensors'),
        (lambda path: torch.save(dict(model=dict(a=1)), path), r'holds no state_dict of tensors'),
        (lambda path: torch.save(dict(model={}), path), r'holds no state_dict of tensors'),
        (lambda path: torch.save(dict(state_dict=None), path), r'holds no state_dict of tensors'),
        (lambda path: torch.save({0: torch.ones(1)}, path), r'holds no state_dict of tensors'),
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
def test_bad_sources_change_nothing(damage: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    path, target = training_file('cls_swin', tmp_path / 'model.pth'), tmp_path / 'ours.pth'
    target.write_text('of an earlier call')
    damage(path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert_checkpoint(path, target)
    assert target.read_text() == 'of an earlier call'
    assert {p.name for p in tmp_path.iterdir()} <= {'model.pth', 'ours.pth'}


def test_writing_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves the old file and no temporary one; an open old file is exchanged, not overwritten."""
    source, target = training_file('cls_swin', tmp_path / 'model.pth'), tmp_path / 'ours.pth'
    target.write_text('of an earlier call')

    def fail(content: dict, file: Any) -> None:
        file.write(b'half')
        raise OSError('No space left on device')

    with monkeypatch.context() as patch, pytest.raises(OSError, match='No space left'):
        patch.setattr(torch, 'save', fail)
        convert_checkpoint(source, target)
    assert target.read_text() == 'of an earlier call'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['model.pth', 'ours.pth']
    with target.open() as old:
        convert_checkpoint(source, target)
        assert old.read() == 'of an earlier call'
    assert 'state_dict' in read_checkpoint(target)


@pytest.mark.parametrize(
    ('target', 'to', 'message'),
    [
        ('x.pth', 'timm', r"to is 'timm', but it must be one of published, ours"),
        ('x.pth', 'published', r"to is 'published', but the source has that naming already"),
        ('.', None, r'target is .*, but it must be a file in a folder that exists'),
        ('none/x.pth', None, r'target is .*none.x\.pth, but it must be a file in a folder'),
        ('model.pth', None, r'target is .*model\.pth, but that is the source, which is not overwritten'),
    ],
)
def test_illegal_arguments(target: str, to: str | None, message: str, tmp_path: Path) -> None:
    source = training_file('cls_swin', tmp_path / 'model.pth')
    before = source.read_bytes()
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(source, tmp_path / target, to)
    assert source.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ['model.pth']


# The tool


def test_tool_on_the_command_line(tmp_path: Path) -> None:
    source = training_file('ummae_swin', tmp_path / 'released.pth')
    command = [sys.executable, str(TOOL), str(source), str(tmp_path / 'ours.pth')]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert 'ours.pth: 166 tensors in our naming' in done.stdout
    assert 'um-mae, swin: depths [2, 2, 2, 2], embed_dims [32, 64, 128, 256]' in done.stdout
    assert file_hash(source) in done.stdout and f'licence: {RELEASED}' in done.stdout
    assert 'needs neck.published_positions=True' in done.stdout
    assert same(read_checkpoint(tmp_path / 'ours.pth')['state_dict'], to_ours(published('ummae_swin')))


def test_tool_to_published(
    tool: Callable[[str], ModuleType], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = tool('convert_checkpoint').main
    path = main([str(run), str(tmp_path / 'model.pth'), '--img-size', '64', '--hash-suffix', '--licence', 'CC0'])
    assert re.fullmatch(r'model-[0-9a-f]{8}\.pth', path.name)
    out = capsys.readouterr().out
    assert 'tensors in published naming' in out and 'licence: CC0' in out and 'published_positions=True' in out
    assert read_checkpoint(path)['model']['decoder_pos_embed'].shape == (1, 16, 32)
    wide = main([str(run), str(tmp_path / 'wide.pth'), '--img-size', '32', '128'])
    back = read_checkpoint(main([str(wide), str(tmp_path / 'back.pth')]))  # the file stores the image size
    assert back['meta']['arch']['img_size'] == [32, 128]
    assert same(back['state_dict'], find_state(read_checkpoint(run), run))


@pytest.mark.parametrize(
    ('source', 'options', 'message'),
    [
        (None, [], r'^error: the checkpoint .*epoch_1\.pth cannot be converted\. img_size is not given'),
        ('nowhere.pth', [], r'^error: the checkpoint nowhere\.pth does not exist'),
        (None, ['--img-size', '1', '2', '3'], r'--img-size takes one or two numbers'),
    ],
)
def test_errors_of_the_tool(
    tool: Callable[[str], ModuleType],
    source: str | None,
    options: list[str],
    message: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as error:
        tool('convert_checkpoint').main([source or str(run), str(tmp_path / 'model.pth'), *options])
    assert re.search(message, str(error.value) + capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
