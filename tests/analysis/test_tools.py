"""The scripts tools/benchmark.py and tools/estimate_memory.py."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mm_ummae.analysis.report import commit as commit_of
from tests.configs.leaves import leaf

Tool = Callable[[str], ModuleType]
UMMAE = str(leaf('ummae_swin-test_1xb16-coslr-20e_demo-128px'))
UPERNET = str(leaf('upernet_um-swin-test_1xb8-150it_demo-128px'))


@pytest.mark.parametrize(
    ('measure', 'words', 'column'),
    [
        ('inference', '--shape 64 96', 'images/s'),
        ('inference', '--shape 64 96 --flops-only', 'multiply-adds (G)'),
        ('step', '--shape 128 128 --batch 1', 'GFLOPs per image'),
        ('loading', '--batch 2', 'images/s'),
        ('training', '--batch 2 --workers 0', 'images/s without loader'),
    ],
)
def test_benchmark_prints_a_table_and_writes_everything(
    measure: str,
    words: str,
    column: str,
    tool: Tool,
    demo_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    config, out = UMMAE, tmp_path / 'new' / 'report.json'
    if measure == 'inference':
        config = 'mm_ummae::demo/um-swin-test_classification_1xb8-200it_demo-128px.py'
    words = f'{config} --measure {measure} {words} --rounds 1 --warmup 0 --device cpu --threads 1 --out {out}'.split()
    data = f'train_dataloader.dataset.data_root={demo_data}/imagenet'
    report = tool('benchmark').main([*words, *(['--cfg-options', data] if config == UMMAE else [])])
    assert json.loads(out.read_text()) == json.loads(json.dumps(report))
    assert report['arguments']['measure'] == measure and report['environment']['threads'] == 1
    (row,) = report['results']
    assert row['name'] == Path(config).stem
    printed = capsys.readouterr().out
    assert column in printed.splitlines()[0] and f'| {row["name"]} |' in printed
    assert 'INFO' not in printed


def test_defaults_depend_on_what_is_measured(tool: Tool) -> None:
    parse = tool('benchmark').parse_args
    found = {measure: parse([UMMAE, '--measure', measure]) for measure in ('inference', 'step', 'loading', 'training')}
    assert [(args.shape, args.batch) for args in found.values()] == [
        ((800, 1280), None),
        ((256, 256), 16),
        ((), 32),
        ((), 16),
    ]
    assert parse([UMMAE]).measure == 'inference'
    assert parse([UMMAE]).device == ('cuda' if torch.cuda.is_available() else 'cpu')


@pytest.mark.parametrize(
    ('name', 'words', 'message'),
    [
        ('benchmark', [UMMAE, '--threads', '0'], '--threads is 0, but at least one is needed'),
        ('benchmark', [UMMAE, UMMAE], 'configs is .* but none may be given twice'),
        ('estimate_memory', [UPERNET, '--card', '0'], '--card is 0, but it must be more than 0 GB'),
    ],
)
def test_illegal_words_are_named(name: str, words: list[str], message: str, tool: Tool) -> None:
    with pytest.raises(SystemExit, match=message):
        tool(name).main(words)


def test_estimate_says_whether_it_fits(tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = [UPERNET, '--shape', '64', '96', '--images', '1', '--out', str(tmp_path / 'new' / 'memory.json')]
    main = tool('estimate_memory').main
    found = main([*words, '--card', '1'])
    total = found[UPERNET]['total'] / 1e9
    assert f'| {total:.2f} | yes |' in capsys.readouterr().out.splitlines()[-2]
    content = json.loads((tmp_path / 'new' / 'memory.json').read_text())
    assert content['estimates'] == found and content['environment']['versions']['torch']
    main([*words, '--card', str(total)])
    assert capsys.readouterr().out.splitlines()[-2].endswith('| no |'), 'nothing is kept free'


def git(folder: Path, *words: str) -> str:
    command = ['git', '-C', str(folder), '-c', 'user.name=a', '-c', 'user.email=a@b.c', *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_says_whether_files_differ_from_it(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None
    git(tmp_path, 'init')
    (tmp_path / 'file').write_text('one')
    git(tmp_path, 'add', 'file')
    git(tmp_path, 'commit', '-m', 'first')
    git(tmp_path, 'tag', '-a', '-m', 'a release', 'v1')
    commit = git(tmp_path, 'rev-parse', 'HEAD')
    assert commit_of(tmp_path) == commit
    (tmp_path / 'file').write_text('two')
    assert commit_of(tmp_path) == f'{commit}-dirty'
