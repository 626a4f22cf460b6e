"""The model index: complete and with the published numbers; and the tables of recipes made from it."""

from __future__ import annotations

import re

import yaml

from scripts import recipes
from tests.configs.leaves import ENTRIES, LEAVES, METAFILES, ROOT, is_small

FILES = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
BEIT = 'lomar-beit_beit-base-p16_8xb256-amp-coslr-300e_in1k-224px'
UMMAE = 'ummae_swin-tiny_8xb128x4-amp-coslr-200e_in1k-256px'
# The papers' tables: top-1 after fine-tuning and hours of pre-training; by start of the name, epochs and pixels
TOP1 = {
    'mae_vit-base-p16': {
        (200, 224): (82.88, None), (400, 224): (83.1, 58), (800, 224): (83.3, 116), (1600, 224): (83.6, 232),
    },
    'lomar_vit-base-p16': {
        (300, 224): (83.3, 49), (400, 224): (83.6, 66), (800, 224): (83.8, 132), (1600, 224): (84.1, 264),
        (800, 384): (85.2, None), (1600, 384): (85.4, None),
    },
    'lomar_vit-base-p8': {(400, 224): (84.3, 66)},
    'lomar-beit_beit-base-p16': {(300, 224): (83.4, None)},
    'ummae_vit-base-p16': {(200, 224): (82.88, None)},
    'ummae_pvt-small': {(200, 256): (79.31, 21.3)},
    'ummae_swin-tiny': {(200, 256): (82.04, 25.0)},
    'ummae_swin-large': {(800, 256): (85.2, None)},
    'simmim_pvt-small': {(200, 256): (79.28, 38.0)},
    'simmim_swin-tiny': {(200, 256): (82.20, 49.3)},
}  # fmt: skip
BOX_AND_MASK_AP = {
    'htcpp_um-swin-large_fpn_8xb2-amp-6x_coco': (57.4, 49.8),
    'mask-rcnn_lomar-vit-base-p16_simple-fpn_8xb8-amp-lsj-25e_coco': (51.4, 45.7),
    'mask-rcnn_mae-vit-base-p16_simple-fpn_8xb8-amp-lsj-25e_coco': (51.1, 45.4),
}
# In millions; the paper counts the decoder's fixed positions (units x 512), which are no parameters here
PARAMETERS = {'ummae_swin-tiny': 35.9, 'ummae_swin-large': 223.8, 'ummae_pvt-small': 28.9, 'ummae_vit-base-p16': 93.0}


def test_index_is_complete() -> None:
    """Each folder has a metafile, each leaf an entry, each model its collection; classifiers alone have a task."""
    assert sorted(FILES) == [path.relative_to(ROOT).as_posix() for path in METAFILES]
    assert {path.parent for path in METAFILES} == {path.parent for path in LEAVES}
    assert sorted(ENTRIES) == sorted(path.stem for path in LEAVES)
    collections = [collection for content in METAFILES.values() for collection in content['Collections']]
    assert len(collections) == len({collection['Name'] for collection in collections})
    for collection in collections:
        assert (ROOT / collection['README']).is_file() and 'arxiv.org/abs/' in collection['Paper']['URL']
    task = dict(Task='Image Classification', Dataset='ImageNet-1k', Metrics=None)
    for path, content in METAFILES.items():
        names = {collection['Name'] for collection in content['Collections']}
        assert {entry['In Collection'] for entry in content['Models']} == names
        # MMPretrain chooses by the task how to show a model's results
        results = [task] if path.parent.name == 'classification' else None
        assert all(entry['Results'] == results for entry in content['Models'])


def test_every_network_starts_from_a_pretraining() -> None:
    targets = {name for entry in ENTRIES.values() for name in entry.get('Downstream', [])}
    starts = {path.stem for path in LEAVES if path.parent.name in ('ummae', 'simmim', 'mae', 'lomar')}
    assert {path.stem for path in LEAVES if not is_small(path)} - starts <= targets <= set(ENTRIES)
    # LoMaR in BEiT gives MMPretrain's network, which MMPretrain fine-tunes
    alone = {name for name in starts if not ENTRIES[name].get('Downstream')}
    assert alone - {name for name in alone if re.search('stock-(pvt|twins|convnext|resnet)', name)} == {BEIT}


def test_results_are_the_published_ones() -> None:
    top1, aps, parameters = {}, {}, {}
    for name, entry in ENTRIES.items():
        method, metadata = '_'.join(name.split('_')[:2]), entry['Metadata']
        if 'Published Top 1 Accuracy' in metadata:
            result = (metadata['Published Top 1 Accuracy'], metadata.get('Published Training Hours'))
            top1.setdefault(method, {})[metadata['Epochs'], metadata['Image Size']] = result
        if 'Published Box AP' in metadata:
            aps[name] = (metadata['Published Box AP'], metadata['Published Mask AP'])
        if method in PARAMETERS:
            positions = (metadata['Image Size'] // 16) ** 2 * 512
            parameters[method] = round((metadata['Parameters'] + positions) / 1e6, 1)
    assert top1 == TOP1 and aps == BOX_AND_MASK_AP and parameters == PARAMETERS


def test_tables_have_all_recipes_and_methods() -> None:
    _, _, *rows = recipes.recipes_table(ROOT, 'configs').splitlines()
    assert len(rows) == len(LEAVES)
    facts = '| UM-MAE | Swin-T | ImageNet-1k | 256 px | 200 epochs, batch 4096 | 82.04 % top-1, 25.0 h |'
    assert f'{facts} [{UMMAE}](ummae/{UMMAE}.py) | no |' in rows
    assert all(row.endswith('| no |') != bool(re.search(r'\((demo|small)/', row)) for row in rows), (
        'small networks alone'
    )
    _, _, *rows = recipes.methods_table(ROOT, '.').splitlines()
    assert sum(int(re.search(r'\[(\d+) recipes\]', row)[1]) for row in rows) == len(LEAVES) - sum(map(is_small, LEAVES))
    (row,) = (row for row in rows if row.startswith('| HTC++'))
    assert '57.4 box AP, 49.8 mask AP (Swin-L)' in row and row.endswith('| no, small: `make demo-htcpp` |')
