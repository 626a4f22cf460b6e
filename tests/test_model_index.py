"""The model index: what it lists exists, its numbers are those of the configs, and its links can be followed."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import modelindex
import pytest
import yaml
from mim.commands.search import convert2df

from mm_ummae.checkpoints.loading import compare_state
from mm_ummae.models.backbones.plain_vit import PlainViT

from .leaves import LEAVES, PRETRAINERS, ROOT, config, full_model, is_demo, leaf

# The papers' tables: top-1 after fine-tuning, hours of pre-training; by model, epochs and pixels
PUBLISHED = {
    ('mae_vit-base-p16', 200, 224): (82.88, None),
    ('ummae_vit-base-p16', 200, 224): (82.88, None),
    ('simmim_pvt-small', 200, 256): (79.28, 38.0),
    ('ummae_pvt-small', 200, 256): (79.31, 21.3),
    ('simmim_swin-tiny', 200, 256): (82.20, 49.3),
    ('ummae_swin-tiny', 200, 256): (82.04, 25.0),
    ('ummae_swin-large', 800, 256): (85.2, None),
    ('lomar_vit-base-p16', 300, 224): (83.3, 49),
    ('lomar_vit-base-p16', 400, 224): (83.6, 66),
    ('lomar_vit-base-p16', 800, 224): (83.8, 132),
    ('lomar_vit-base-p16', 1600, 224): (84.1, 264),
    ('lomar_vit-base-p8', 400, 224): (84.3, 66),
    ('lomar_vit-base-p16', 800, 384): (85.2, None),
    ('lomar_vit-base-p16', 1600, 384): (85.4, None),
    ('lomar-beit_beit-base-p16', 300, 224): (83.4, None),
    ('mae_vit-base-p16', 400, 224): (83.1, 58),
    ('mae_vit-base-p16', 800, 224): (83.3, 116),
    ('mae_vit-base-p16', 1600, 224): (83.6, 232),
}
# Box and mask AP: of HTC++ with 800 epochs of UM-MAE on Swin-L, and of LoMaR's paper
PUBLISHED_AP = {
    'htcpp_um-swin-large_fpn_8xb2-amp-6x_coco': (57.4, 49.8),
    'vitdet_mask-rcnn_lomar-vit-base-p16_8xb8-amp-lsj-25e_coco': (51.4, 45.7),
    'vitdet_mask-rcnn_mae-vit-base-p16_8xb8-amp-lsj-25e_coco': (51.1, 45.4),
}
# The paper's table, in millions; it counts the decoder's fixed positions (units x 512), which are no parameters here
PUBLISHED_PARAMETERS = {'swin-tiny': 35.9, 'swin-large': 223.8, 'pvt-small': 28.9, 'vit-base-p16': 93.0}


def published_key(name: str) -> tuple[str, int, int]:
    """Model, epochs and pixels of a pre-training's name; other names give a key that is in no table."""
    epochs, side = (re.search(pattern, name) for pattern in (r'-(\d+)e_', r'-(\d+)px$'))
    return '_'.join(name.split('_')[:2]), int(epochs[1]) if epochs else 0, int(side[1]) if side else 0


@cache
def metafiles() -> dict[str, dict]:
    files = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    return {file: yaml.safe_load((ROOT / file).read_text()) for file in files}


def entries() -> list[dict]:
    return [model for content in metafiles().values() for model in content['Models']]


def links() -> list[tuple[dict, dict]]:
    """Both ends of each link; a link to what is not listed is a KeyError that names it."""
    by_name = {entry['Name']: entry for entry in entries()}
    return [(entry, by_name[name]) for entry in entries() for name in entry.get('Downstream', [])]


def path_of(entry: dict) -> Path:
    return ROOT / entry['Config']


every_entry = pytest.mark.parametrize('entry', entries(), ids=lambda entry: entry['Name'])


def test_every_folder_has_a_metafile_that_is_imported() -> None:
    folders = {path.parent for path in LEAVES if not is_demo(path)}
    assert set(metafiles()) == {str((folder / 'metafile.yml').relative_to(ROOT)) for folder in folders}


def test_every_config_is_listed_once() -> None:
    """But the demo's, which train on generated data."""
    listed = [entry['Config'] for entry in entries()]
    assert sorted(listed) == sorted(str(path.relative_to(ROOT)) for path in LEAVES if not is_demo(path))


def test_collections_exist_and_are_explained() -> None:
    names = []
    for content in metafiles().values():
        collections = {collection['Name']: collection for collection in content['Collections']}
        names += collections
        for collection in collections.values():
            assert (ROOT / collection['README']).is_file()
            assert collection['Paper']['URL'].startswith('https://arxiv.org/abs/')
        assert {model['In Collection'] for model in content['Models']} == set(collections)
    assert len(names) == len(set(names))


def test_mim_reads_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``mim search`` does."""
    monkeypatch.chdir(ROOT)
    index = modelindex.load('model-index.yml')
    index.build_models_with_collections()
    table = convert2df(index)
    assert sorted(table.index) == sorted(entry['Name'] for entry in entries())
    row = table.loc['ummae_swin-tiny_8xb128x4-amp-coslr-200e_in1k-256px']
    assert row['published_top_1_accuracy'] == 82.04 and row['batch_size'] == 4096 and row['model'] == 'um-mae'


@every_entry
def test_listed_numbers_are_those_of_the_config(entry: dict) -> None:
    cfg, model, metadata = config(path_of(entry)), full_model(path_of(entry)), entry['Metadata']
    assert entry['Name'] == path_of(entry).stem
    assert metadata['Parameters'] == sum(parameter.numel() for parameter in model.parameters())
    if 'max_iters' in cfg.train_cfg:
        assert metadata['Iterations'] == cfg.train_cfg.max_iters and 'Epochs' not in metadata
    else:
        assert metadata['Epochs'] == cfg.train_cfg.max_epochs
    accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
    assert metadata['Batch Size'] == 8 * cfg.train_dataloader.batch_size * accumulated
    (collection,) = (
        collection
        for content in metafiles().values()
        for collection in content['Collections']
        if collection['Name'] == entry['In Collection']
    )
    assert type(model.backbone).__name__ in collection['Metadata']['Architecture']
    weights = entry.get('Weights')
    assert weights is None or (ROOT / weights).is_file() or weights.startswith('https://')


@every_entry
def test_results_are_the_published_ones(entry: dict) -> None:
    """Where the paper has one; the head comment says the same numbers and that they are not ours."""
    top1, hours = PUBLISHED.get(published_key(entry['Name']), (None, None))
    assert entry['Metadata'].get('Published Top 1 Accuracy') == top1
    assert entry['Metadata'].get('Published Training Hours') == hours
    comment = path_of(entry).read_text()
    box, mask = PUBLISHED_AP.get(entry['Name'], (None, None))
    aps = tuple(entry['Metadata'].get(f'Published {kind} AP') for kind in ('Box', 'Mask'))
    assert aps == (box, mask)
    assert (f'Published: {box} box AP, {mask} mask AP' in comment) == (box is not None)
    if top1 is not None:
        assert 'Not reproduced here' in comment and re.search(rf'Published: {top1}0? top-1', comment)
        assert (hours is None) or f'{hours} h of pre-training' in comment
        assert 'none was reproduced here' in (path_of(entry).parent / 'metafile.yml').read_text()


def test_every_published_result_is_listed() -> None:
    listed = {published_key(entry['Name']) for entry in entries() if 'Published Top 1 Accuracy' in entry['Metadata']}
    assert listed == set(PUBLISHED)
    assert PUBLISHED_AP.keys() == {entry['Name'] for entry in entries() if 'Published Box AP' in entry['Metadata']}


@every_entry
def test_classifiers_alone_have_the_task(entry: dict) -> None:
    """MMPretrain chooses by it how to show a model's results; numbers of our own there are none."""
    is_classifier = path_of(entry).parent.name == 'imagenet'
    task = dict(Task='Image Classification', Dataset='ImageNet-1k', Metrics=None)
    assert entry['Results'] == ([task] if is_classifier else None)


@pytest.mark.parametrize('name', PUBLISHED_PARAMETERS)
def test_pretraining_models_have_the_published_size(name: str) -> None:
    """To the published digit."""
    (entry,) = (entry for entry in entries() if entry['Name'].startswith(f'ummae_{name}_'))
    side = config(path_of(entry)).model.neck.img_size
    positions = (side // 16) ** 2 * 512
    assert round((entry['Metadata']['Parameters'] + positions) / 1e6, 1) == PUBLISHED_PARAMETERS[name]


def test_every_network_can_be_reached_from_a_pretraining() -> None:
    starts = {entry['Name'] for entry in entries() if config(path_of(entry)).model.type in PRETRAINERS}
    targets = {target['Name'] for _, target in links()}
    assert targets == {entry['Name'] for entry in entries()} - starts
    # LoMaR in BEiT gives MMPretrain's network, which MMPretrain fine-tunes
    ends = {entry['Name'] for entry in entries() if not entry.get('Downstream')} & starts
    assert ends == {'lomar-beit_beit-base-p16_8xb256-amp-coslr-300e_in1k-224px'}


@pytest.mark.parametrize(('source', 'target'), links(), ids=lambda entry: entry['Name'])
def test_a_link_leads_to_the_same_backbone(source: dict, target: dict) -> None:
    """The target's backbone takes every parameter it has from the source's checkpoint; ViTs change their size."""
    backbone, state = full_model(path_of(target)).backbone, full_model(path_of(source)).backbone.state_dict()
    first, second = config(path_of(source)).model.backbone, config(path_of(target)).model.backbone
    if isinstance(backbone, PlainViT):
        state = backbone.adapt_state(state)
        assert first.get('patch_size', 16) == second.get('patch_size', 16)
    else:
        assert first.get('window_size') == second.get('window_size')
    assert compare_state(backbone.state_dict(), state, backbone.PRETRAINING_ONLY) == ''
    assert first.arch == second.arch
    assert first.type == second.type or first.type == 'MAEViT', 'MAE has no fine-tuned backbone of its own'
    assert second.init_cfg.prefix == 'backbone'


@pytest.mark.parametrize(
    'name', ['um-pvt-small_8xb128-amp-coslr-100e_in1k-256px', 'um-swin-large_8xb128-amp-coslr-100e_in1k-256px']
)
def test_a_link_to_another_backbone_would_be_noticed(name: str) -> None:
    swin = full_model(leaf('ummae_swin-tiny_8xb128x4-amp-coslr-200e_in1k-256px')).backbone.state_dict()
    backbone = full_model(leaf(name)).backbone
    assert compare_state(backbone.state_dict(), swin, backbone.PRETRAINING_ONLY)
