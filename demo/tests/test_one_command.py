"""The measurement of one command against the demo's config: what runs, what is probed, what the table concludes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from demo import one_command, training
from demo.one_command import COMMAND, CONFIG, table, verdict
from demo.tasks import PRETRAIN

from .conftest import read_config, save_random

OWN = dict(mean=[100.0, 110.0, 120.0], std=[50.0, 51.0, 52.0])


def test_both_arms_of_a_seed(demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is given nothing but data, model and seed; its features are probed with both statistics."""
    commands: list[list[str]] = []

    def run(title: str, command: list[str], log: Path, threads: int) -> tuple[float, float]:
        commands.append(command[1:])
        assert threads == 1
        config, out, run_dir = read_config(PRETRAIN), log.parent / 'run', log.parent
        if '-m' in command:
            config.model.data_preprocessor.update(OWN)
            config.optim_wrapper.accumulative_counts = 2
            run_dir = out / 'run'
        (run_dir / '2026' / 'vis_data').mkdir(parents=True)
        (run_dir / '2026' / 'vis_data' / 'scalars.json').write_text('{"loss": 0.75, "step": 9}\n')
        checkpoint = save_random(config, run_dir)
        (run_dir / 'last_checkpoint').write_text(checkpoint)
        if '-m' in command:
            shutil.copy(checkpoint, out / 'backbone.pth')
        config.dump(out / 'config.py' if '-m' in command else run_dir / PRETRAIN)
        return 7.0, 1.5

    probed: list[tuple[str, dict[str, Any]]] = []
    probe = one_command.probe
    monkeypatch.setattr(
        one_command, 'probe', lambda *args, **kwargs: (probed.append((args[1], kwargs)), probe(*args, **kwargs))[1]
    )
    monkeypatch.setattr(training, '_run', run)
    monkeypatch.setattr(one_command, 'make_demo_data', lambda path, **sizes: demo_data)
    out = tmp_path / 'out'
    words = ['--seeds', '3', '--out', str(out)]
    one_command.main(words)
    config, command = commands
    assert config[1].endswith(PRETRAIN) and 'randomness.seed=3' in config
    folder = out / 'seed3' / COMMAND
    images = str(demo_data / 'imagenet' / 'unlabelled')
    given = ['--data', images, '--out', str(folder / 'run'), '--model', 'um-swin-test', '--seed', '3']
    assert command == ['-m', 'mm_ummae', 'pretrain', *given]
    assert [options for _, options in probed] == [{}, {}, OWN]
    assert [Path(checkpoint).name for checkpoint, _ in probed[1:]] == 2 * ['backbone.pth']
    found = json.loads((out / 'one_command.json').read_text())['seeds']['3']
    assert found[CONFIG]['settings']['batch'] == 16 and found[COMMAND]['settings'] == OWN | dict(
        epochs=20, batch=32, lr=4e-4
    )
    # The weights are the same here, so that only the statistics of the images differ
    assert found[CONFIG]['linear'] == found[CONFIG]['linear_own'] == found[COMMAND]['linear']
    assert '| images per update | 16 | 32 | |' in (out / 'one_command.md').read_text()
    one_command.main(words)
    assert len(commands) == 2, 'finished runs are kept'
    one_command.main(['--seeds', '3', '--size', 'smoke', '--out', str(tmp_path / 'smoke')])
    assert commands[3][-2:] == ['--epochs', '1']


def test_the_table_concludes_what_the_numbers_show() -> None:
    settings = OWN | dict(epochs=20, batch=16, lr=4e-4)

    def seed(config: float, command: float) -> dict[str, Any]:
        values = {CONFIG: config, COMMAND: command}
        return {
            key: dict.fromkeys(one_command.MEASURES, value) | dict(settings=settings) for key, value in values.items()
        }

    text = table(dict(seeds={'0': seed(80.0, 79.0), '1': seed(82.0, 82.0), '2': {CONFIG: seed(1.0, 1.0)[CONFIG]}}))
    assert '| linear probe, top-1 % | 81.0 ± 1.4 | 80.5 ± 2.1 | -0.5 ± 0.7 |' in text, 'an unfinished seed counts'
    assert '| mean | 100.0, 110.0, 120.0 | 100.0, 110.0, 120.0 | |' in text
    first, second = text.splitlines()[-2:]
    assert first.startswith(
        "With images normalised by ImageNet's mean and std, as the demo probes, the linear probe of "
    )
    assert second == (
        "With those of the run, the linear probe of one command is -0.5 points from that of the demo's config and "
        'reaches it within its standard deviation of 1.4 over 2 seeds.'
    )
    assert 'does not reach it: it is below by more than its standard deviation of 1.0' in verdict(
        [80.0, 81.0, 82.0], [79.0, 79.5, 80.0]
    )
    assert verdict([80.0], [70.0]).endswith("-10.0 points from that of the demo's config, in one seed.")
