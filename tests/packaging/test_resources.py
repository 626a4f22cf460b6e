"""Configs of the installed package, by name and as bases of configs outside of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

import mm_ummae
from mm_ummae import resources

PRETRAIN = 'ummae_swin-test_1xb16-coslr-20e_demo-128px.py'
OWN = """
_base_ = {bases}

train_dataloader = dict(batch_size=8)
model = dict(backbone=dict(arch='tiny'))
train_pipeline = _base_.train_pipeline
"""


@pytest.mark.parametrize('name', [f'demo/{PRETRAIN}', PRETRAIN, '_base_/models/ummae_swin.py', 'ummae_swin.py'])
def test_configs_are_found_by_path_and_by_name(name: str) -> None:
    path = Path(mm_ummae.config_path(name))
    assert path.is_absolute() and path.is_file() and path.as_posix().endswith(f'/{name}')


@pytest.mark.parametrize(
    'bases',
    [
        f"__import__('mm_ummae').config_path('demo/{PRETRAIN}')",
        f"[__import__('mm_ummae').config_path('demo/{PRETRAIN}'), 'own_base.py']",
    ],
    ids=['base', 'list of bases'],
)
def test_a_config_anywhere_inherits_from_the_package(bases: str, tmp_path: Path) -> None:
    """Values, base variables and further bases as with any base; types keep their scope."""
    (tmp_path / 'own_base.py').write_text('own = 1\n')
    (tmp_path / 'own.py').write_text(OWN.format(bases=bases))
    cfg, base = Config.fromfile(tmp_path / 'own.py'), Config.fromfile(mm_ummae.config_path(PRETRAIN))
    assert (cfg.model.type, cfg.model.backbone.arch, cfg.train_dataloader.batch_size) == ('mm_ummae.UMMAE', 'tiny', 8)
    assert cfg.get('own') == (1 if 'own' in bases else None)
    cfg.train_dataloader.batch_size, cfg.model.backbone.arch = base.train_dataloader.batch_size, 'test'
    assert {key: cfg[key] for key in base} == base.to_dict()


@pytest.mark.parametrize(
    ('name', 'similar'),
    [
        ('demo/ummae_swin-tst_1xb64-coslr-20e_demo-128px.py', f'; similar: .*demo/{PRETRAIN}'),
        ('no such config', '$'),
        ('../setup.py', '$'),
    ],
)
def test_unknown_names_are_refused(name: str, similar: str) -> None:
    with pytest.raises(
        FileNotFoundError, match=rf'name is {name!r}, but there is no such config in .*configs{similar}'
    ):
        mm_ummae.config_path(name)


def test_a_checkout_that_is_not_installed_has_no_configs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resources, 'CONFIGS', tmp_path / '.mim' / 'configs')
    with pytest.raises(FileNotFoundError, match=r'configs does not exist: install the package'):
        mm_ummae.config_path(PRETRAIN)
