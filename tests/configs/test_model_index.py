"""The model index: complete, readable by mim, with the published numbers; and the table of recipes made from it."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import modelindex
import pytest
import yaml
from mim.commands.search import convert2df

from tests.configs.leaves import LEAVES, ROOT, is_demo

FILES = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
METAFILES = {file: yaml.safe_load((ROOT / file).read_text()) for file in FILES}
ENTRIES = {entry['Name']: entry for content in METAFILES.values() for entry in content['Models']}
# The papers' tables: top-1 after fine-tuning and hours of pre-training; by start of the name, epochs and pixels
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
PUBLISHED_AP = {  # box and mask
    'htcpp_um-swin-large_fpn_8xb2-amp-6x_coco': (57.4, 49.8),
    'mask-rcnn_lomar-vit-base-p16_simple-fpn_8xb8-amp-lsj-25e_coco': (51.4, 45.7),
    'mask-rcnn_mae-vit-base-p16_simple-fpn_8xb8-amp-lsj-25e_coco': (51.1, 45.4),
}
# In millions; the paper counts the decoder's fixed positions (units x 512), which are no parameters here
PUBLISHED_PARAMETERS = {'swin-tiny': 35.9, 'swin-large': 223.8, 'pvt-small': 28.9, 'vit-base-p16': 93.0}


def test_index_is_complete() -> None:
    """Each folder has a metafile, each leaf an entry, each model its collection; classifiers alone have a task."""
    assert sorted(FILES) == sorted({f'configs/{path.parent.name}/metafile.yml' for path in LEAVES})
    assert sorted(ENTRIES) == sorted(path.stem for path in LEAVES)
    names = [collection['Name'] for content in METAFILES.values() for collection in content['Collections']]
    assert len(names) == len(set(names))
    task = dict(Task='Image Classification', Dataset='ImageNet-1k', Metrics=None)
    for file, content in METAFILES.items():
        collections = {collection['Name']: collection for collection in content['Collections']}
        assert {entry['In Collection'] for entry in content['Models']} == set(collections)
        for collection in collections.values():
            assert (ROOT / collection['README']).is_file()
            assert collection['Paper']['URL'].startswith('https://arxiv.org/abs/')
        # MMPretrain chooses by the task how to show a model's results
        results = [task] if file.startswith('configs/classification/') else None
        assert all(entry['Results'] == results for entry in content['Models'])


def test_every_network_starts_from_a_pretraining() -> None:
    targets = {name for entry in ENTRIES.values() for name in entry.get('Downstream', [])}
    starts = {path.stem for path in LEAVES if path.parent.name in ('ummae', 'simmim', 'mae', 'lomar')}
    assert {path.stem for path in LEAVES if not is_demo(path)} - starts <= targets <= set(ENTRIES)
    # LoMaR in BEiT gives MMPretrain's network, which MMPretrain fine-tunes
    ends = {name for name in starts if not ENTRIES[name].get('Downstream')}
    assert ends == {'lomar-beit_beit-base-p16_8xb256-amp-coslr-300e_in1k-224px'}


def test_results_are_the_published_ones() -> None:
    top1, aps = {}, {}
    for name, entry in ENTRIES.items():
        metadata = entry['Metadata']
        if 'Published Top 1 Accuracy' in metadata:
            key = ('_'.join(name.split('_')[:2]), metadata['Epochs'], metadata['Image Size'])
            top1[key] = (metadata['Published Top 1 Accuracy'], metadata.get('Published Training Hours'))
        if 'Published Box AP' in metadata:
            aps[name] = (metadata['Published Box AP'], metadata['Published Mask AP'])
    assert top1 == PUBLISHED and aps == PUBLISHED_AP


@pytest.mark.parametrize('name', PUBLISHED_PARAMETERS)
def test_pretraining_models_have_the_published_size(name: str) -> None:
    (entry,) = (entry['Metadata'] for key, entry in ENTRIES.items() if key.startswith(f'ummae_{name}_'))
    positions = (entry['Image Size'] // 16) ** 2 * 512
    assert round((entry['Parameters'] + positions) / 1e6, 1) == PUBLISHED_PARAMETERS[name]


def test_mim_reads_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``mim search`` does."""
    monkeypatch.chdir(ROOT)
    index = modelindex.load('model-index.yml')
    index.build_models_with_collections()
    table = convert2df(index)
    assert sorted(table.index) == sorted(ENTRIES)
    row = table.loc['ummae_swin-tiny_8xb128x4-amp-coslr-200e_in1k-256px']
    assert row['published_top_1_accuracy'] == 82.04 and row['batch_size'] == 4096 and row['model'] == 'um-mae'
    assert row['trained_here'] == 'no' and row['training_data'] == 'imagenet-1k'


# The table of recipes


@pytest.fixture(scope='module')
def recipes() -> ModuleType:
    spec = importlib.util.spec_from_file_location('recipes', ROOT / 'scripts' / 'recipes.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The index and its metafiles, with a README that has marks and one that has none."""
    for file in ('model-index.yml', *FILES):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / 'README.md').write_text('before\n<!-- recipes -->\nold\n<!-- /recipes -->\nafter\n')
    (tmp_path / 'configs/README.md').write_text('<!-- /recipes -->\n<!-- recipes -->\n')
    return tmp_path


def test_table_has_a_row_for_each_recipe(recipes: ModuleType) -> None:
    _, _, *rows = recipes.table(ROOT, 'configs/README.md').splitlines()
    assert len(rows) == len(LEAVES)
    name = 'ummae_swin-tiny_8xb128x4-amp-coslr-200e_in1k-256px'
    (row,) = (row for row in rows if name in row)
    assert row == (
        '| UM-MAE | Swin-T | ImageNet-1k | 256 px | 200 epochs, batch 4096 | 82.04 % top-1, 25.0 h | '
        f'[{name}](ummae/{name}.py) | no |'
    )
    assert all(row.endswith('| no |') != ('(demo/' in row) for row in rows), 'the demo alone is trained here'
    assert any('| 57.4 box AP, 49.8 mask AP |' in row for row in rows)


def test_readme_has_a_row_for_each_method(recipes: ModuleType) -> None:
    _, _, *rows = recipes.table(ROOT, 'README.md').splitlines()
    counts = [int(re.search(r'\[(\d+) recipes\]', row)[1]) for row in rows]
    assert sum(counts) == sum('_demo-' not in path.stem for path in LEAVES)
    (row,) = (row for row in rows if row.startswith('| HTC++'))
    assert '57.4 box AP, 49.8 mask AP (Swin-L)' in row and row.endswith('| no, small: `make demo-htcpp` |')


def test_stale_table_is_reported_and_written(
    recipes: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipes.main(['--check'], root) == 1
    message = capsys.readouterr().err
    assert 'README.md: the table of recipes is not up to date, run python scripts/recipes.py --write' in message
    assert 'configs/README.md needs the line <!-- recipes --> and below it the line <!-- /recipes -->' in message
    (root / 'configs/README.md').write_text('<!-- recipes -->\n<!-- /recipes -->\n')
    assert recipes.main(['--write'], root) == 0 and recipes.main(['--check'], root) == 0
    text = (root / 'README.md').read_text()
    assert text.startswith('before\n<!-- recipes -->\n\n| method |') and text.endswith(
        '|\n\n<!-- /recipes -->\nafter\n'
    )
    assert 'old' not in text.splitlines()
