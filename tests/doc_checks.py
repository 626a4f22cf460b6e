"""What can be wrong in a text of the documentation: each check returns the problems it found, one line each."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import inspect
import io
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import yaml
from mim.commands.test import cli as mim_test
from mim.commands.train import cli as mim_train
from mmengine import registry
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from .leaves import LEAVES, ROOT, read

# What `mim` calls a host, in either distribution, or this project, and the import name
HOSTS = {
    'mmpretrain': 'mmpretrain',
    'onedl-mmdetection': 'mmdet',
    'mmdet': 'mmdet',
    'mmsegmentation': 'mmseg',
    'mm_ummae': 'mm_ummae',
}
STEMS = {path.stem for path in LEAVES}
RUNNER_KEYS = set(inspect.signature(Runner.__init__).parameters)
ROOTS = (registry.MODELS, registry.OPTIM_WRAPPERS, registry.PARAM_SCHEDULERS, registry.DATASETS, registry.HOOKS)
FENCE = re.compile(r'^ *```(\w*)\n(.*?)^ *```', re.MULTILINE | re.DOTALL)
INLINE = re.compile(r'`([^`\n]+)`')
FOLDERS = r'(?:configs|tools|mm_ummae|tests|scripts|docs|demo|requirements)'


class Command(NamedTuple):
    """A command line in a text: its words, and the comment behind it."""

    words: list[str]
    comment: str

    def __str__(self) -> str:
        return shlex.join(self.words)


# Links and names


def slugs(path: Path) -> set[str]:
    """Anchors of a Markdown file's headings, as GitHub makes them."""
    found: list[str] = []
    for heading in re.findall(r'^#+ +(.+?) *$', FENCE.sub('', path.read_text()), re.MULTILINE):
        text = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading).lower()
        slug = re.sub(r'[^\w\- ]', '', text).replace(' ', '-')
        found.append(f'{slug}-{found.count(slug)}' if slug in found else slug)
    return set(found)


def broken_links(text: str, source: Path) -> list[str]:
    """Relative links to a file or an anchor that does not exist."""
    problems = []
    for target in re.findall(r'\]\(([^)\s]+)\)', INLINE.sub('', FENCE.sub('', text))):
        if re.match(r'[a-z]+:', target):
            continue
        name, _, anchor = target.partition('#')
        path = source.parent / name if name else source
        if not path.exists():
            problems.append(f'{target}: no such file')
        elif anchor and anchor not in slugs(path):
            problems.append(f'{target}: no such heading')
    return problems


def missing_paths(text: str) -> list[str]:
    """Files and folders of the repository that are named and do not exist."""
    files = re.findall(rf'(?<![\w/.:-]){FOLDERS}/[\w./-]*\w\.(?:py|sh|yml|md|txt|ipynb|jpg|png)\b', text)
    folders = re.findall(rf'`({FOLDERS}(?:/[\w-]+)+/?)`', text)
    return sorted({f'{name}: no such path' for name in files + folders if not (ROOT / name).exists()})


def unknown_configs(text: str) -> list[str]:
    """Words that look like the name of a config and are none; those of hosts are ``host::path``."""
    hosted = r'(\w+)::([\w./-]+\.py)'
    pattern = r'(?<![\w.-])(?:(?:ummae|mae|simmim|gfl|mask-rcnn|htcpp[\w-]*|upernet)_|um-)[\w-]*_[\w-]*\w'
    names = {name for name in re.findall(pattern, re.sub(hosted, '', text)) if '-' in name}
    of_hosts = {f'{host}::{path}' for host, path in re.findall(hosted, text) if not _host_config(host, path).is_file()}
    return sorted(f'{name}: no such config' for name in (names - STEMS) | of_hosts)


def _host_config(host: str, path: str) -> Path:
    return Path(importlib.util.find_spec(host).origin).parent / '.mim' / 'configs' / path


def unknown_targets(text: str) -> list[str]:
    """Targets of `make` that the Makefile does not have."""
    known = re.findall(r'^([a-z][\w-]*):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    code = [block for _, block in FENCE.findall(text)] + INLINE.findall(FENCE.sub('', text))
    named = {name for piece in code for name in re.findall(r'(?:^|[\w=] )make ([a-z][\w-]*)', piece, re.MULTILINE)}
    return sorted(f'make {name}: no such target' for name in named - set(known))


# Commands


def commands(text: str) -> list[Command]:
    """Commands with python, bash, mim or a tool, in blocks and in the running text; `$NAME` is replaced."""
    for name, value in re.findall(r'^ *(\w+)=(\S+)$', text, re.MULTILINE):
        text = re.sub(rf'\${name}\b', value, text)
    lines = []
    for language, block in FENCE.findall(text):
        if language in ('', 'bash', 'sh', 'console'):
            lines += re.sub(r'\\\n', ' ', block).splitlines()
    lines += INLINE.findall(FENCE.sub('', text))
    found = []
    for line in lines:
        if re.match(r'\s*(?:\$ +)?(?:\w+=\S+ +)*(?:\S*python\S* |bash |mim |tools/)', line):
            code, _, comment = line.partition(' #')
            found.append(Command(shlex.split(code), comment.strip()))
    return found


def tool(name: str) -> ModuleType:
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(f'{name}_of_docs', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def tool_options(name: str) -> set[str]:
    """Options in a tool's own help."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tool(name).main(['--help'])
    return set(re.findall(r'(?<![\w-])--[a-z][\w-]*', printed.getvalue()))


def host_folder(package: str) -> Path:
    """Where an installed host keeps its tools and lists, from the name `mim` knows it by."""
    if package == 'mm_ummae':
        return ROOT
    return Path(importlib.util.find_spec(HOSTS[package]).submodule_search_locations[0]) / '.mim'


def known_options(words: list[str]) -> set[str] | str | None:
    """Options that a command takes, what is wrong with its name, or None if it is not ours to know."""
    script = next((word for word in words if re.fullmatch(r'(?:\./)?tools/\w+\.\w+', word)), None)
    if script:
        name = Path(script).stem
        if not (ROOT / script).exists():
            return f'{script}: no such tool'
        return tool_options('train' if name == 'dist_train' else name)
    if words[0] != 'mim' or len(words) < 4 or words[2].isupper() or (words[1], words[3]) == ('run', 'TOOL'):
        return None
    _, action, package, script, *_ = words
    if package not in HOSTS:
        return f'{package}: no such host'
    if action in ('train', 'test'):
        options = {name for option in (mim_train if action == 'train' else mim_test).params for name in option.opts}
        file = host_folder(package) / 'tools' / f'{action}.py'
    elif action == 'run':
        options = set()
        file = next((host_folder(package) / 'tools').rglob(f'{script}.py'), None)
        if file is None:
            return f'{script}: no such script of {package}'
    else:
        return None
    return options | set(re.findall(r"'(--[\w-]+)'", file.read_text()))


def option_words(words: list[str]) -> list[str]:
    """Long options of a command, without those of a launcher in front of the tool."""
    start = next((i for i, word in enumerate(words) if re.search(r'(?:^|/)tools/\w+\.\w+$', word)), 0)
    return [word.partition('=')[0] for word in words[start:] if re.match(r'--[a-z]', word)]


def wrong_commands(text: str) -> list[str]:
    """Tools, hosts, data sets and options that do not exist."""
    problems = []
    for command in commands(text):
        known = known_options(command.words)
        if isinstance(known, str):
            problems.append(known)
        elif known is not None:
            unknown = [option for option in option_words(command.words) if option not in known]
            problems += [f'{command}: no option {option}' for option in unknown]
        if command.words[:2] == ['mim', 'download'] and '--dataset' in command.words[:-1]:
            package, name = command.words[2], command.words[command.words.index('--dataset') + 1]
            if package in HOSTS:
                index = host_folder(package) / 'dataset-index.yml'
                if not index.exists() or name not in yaml.safe_load(index.read_text()):
                    problems.append(f'{command}: no such data set')
    return problems


# Config keys


def arguments(node: Any, scope: str) -> set[str]:
    """What the constructor of a dict's class takes, with its parents' while it passes keywords on."""
    if not isinstance(node, dict) or 'type' not in node:
        return set()
    with DefaultScope.overwrite_default_scope(scope):
        for root in ROOTS:
            with root.switch_scope_and_registry(None) as local:
                found = local.get(node['type'])
            if found is not None:
                break
        else:
            return set()
    names: set[str] = set()
    for parent in inspect.getmro(found):
        if '__init__' not in vars(parent):
            continue
        parameters = inspect.signature(parent.__init__).parameters
        names |= set(parameters) - {'self', 'args', 'kwargs'}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return names


def lookup(cfg: Config, key: str) -> Any:
    """Value of a dotted key, or None where the class takes it and the config leaves it to its default.

    Raises:
        KeyError: If neither holds.
    """
    parts = key.split('.')
    if parts[0] not in RUNNER_KEYS:  # a helper of a base file, or a typing error: the runner never reads it
        raise KeyError(key)
    node = cfg
    for i, part in enumerate(parts):
        if isinstance(node, (dict, Config)) and part in node:
            node = node[part]
        elif isinstance(node, (list, tuple)) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif i == 0 or (i == len(parts) - 1 and part in {'_delete_'} | arguments(node, cfg.default_scope)):
            return None
        else:
            raise KeyError(key)
    return node


def has_key(cfg: Config, key: str) -> bool:
    """Whether the config has a key, or a class in it takes it."""
    try:
        lookup(cfg, key)
    except KeyError:
        return False
    return True


def given_keys(words: list[str]) -> Iterator[str]:
    """Keys behind --cfg-options."""
    given = False
    for word in words:
        if word.startswith('--'):
            given = word == '--cfg-options'
        elif given:
            yield word.partition('=')[0]


def wrong_keys(text: str) -> list[str]:
    """Keys behind --cfg-options that the command's config does not have; a CONFIG in capitals may be any."""
    problems = []
    for command in commands(text):
        paths = [ROOT / word for word in command.words if word.endswith('.py') and not word.startswith('tools/')]
        for key in given_keys(command.words):
            if not any(path.exists() and has_key(read(path), key) for path in paths or LEAVES):
                problems.append(f'{key}: not in {paths[0].name if paths else "any config"}')
    return problems


# Tables


def table_row(line: str) -> list[str]:
    """Cells of a line of a table."""
    return [cell.strip() for cell in line[1:-1].split('|')]


def tables(text: str) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Tables as (text above, head, rows)."""
    pattern = re.compile(r'^(\|.+\|)\n\|[-:| ]+\|\n((?:\|.*\|\n?)*)', re.MULTILINE)
    for match in pattern.finditer(text):
        yield text[: match.start()], table_row(match[1]), [table_row(line) for line in match[2].splitlines()]


def wrong_rows(text: str) -> list[str]:
    """Rows of tables with `our key or option` whose key does not exist or has another value, `in backticks`.

    The config is the last one that the text above calls `keys of ...`.
    """
    problems = []
    for above, head, rows in tables(text):
        if 'our key or option' not in head:
            continue
        name = re.findall(r'[Kk]eys of `(configs/\S+\.py)`', above)[-1]
        cfg = read(ROOT / name)
        for _, ours, value in rows:
            if ours.startswith('option '):
                unknown = set(option_words(INLINE.findall(ours))) - tool_options('train')
                problems += [f'{option}: no option of tools/train.py' for option in sorted(unknown)]
            elif not ours.startswith('none: '):
                (key,) = INLINE.findall(ours)
                literal = re.fullmatch(r'(?:ours: )?`(.+)`', value)
                if not has_key(cfg, key):
                    problems.append(f'{key}: not in {name}')
                elif literal and plain(lookup(cfg, key)) != plain(ast.literal_eval(literal[1])):
                    problems.append(f'{key}: {lookup(cfg, key)} in {name}, not {value}')
    return problems


def plain(value: Any) -> Any:
    """Lists for tuples and rounded numbers, to compare."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return float(f'{value:.9g}') if isinstance(value, float) else value
