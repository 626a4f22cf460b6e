"""The page about a run in Chromium (make test-report, which installs it on Debian)."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from mm_ummae.visualization import write_report
from tests.visualization.test_html_report import UMMAE, data, made_run

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
pytestmark = [pytest.mark.integration, pytest.mark.browser]
__all__ = ['data']  # the fixture

FLAGS = ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--remote-debugging-port=0')
MEASURE = """JSON.stringify({
    content: document.documentElement.scrollWidth,
    window: document.documentElement.clientWidth,
    images: document.images.length,
    broken: [...document.images].filter(each => !each.complete || !each.naturalWidth).length,
    requests: performance.getEntriesByType('resource').map(each => each.name),
})"""


@pytest.fixture(scope='module')
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the tab of a browser."""
    profile = tmp_path_factory.mktemp('chromium')
    assert CHROMIUM, 'Chromium is not installed: make test-report does it'
    command = [CHROMIUM, *FLAGS, f'--user-data-dir={profile}', 'about:blank']
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        lines = iter(process.stderr.readline, '')
        port = next(found[1] for line in lines if (found := re.search(r'listening on ws://127\.0\.0\.1:(\d+)', line)))
        with urlopen(f'http://127.0.0.1:{port}/json/list') as answer:
            tabs = json.load(answer)
        yield next(tab['webSocketDebuggerUrl'] for tab in tabs if tab['type'] == 'page')
    finally:
        process.terminate()
        process.wait()


class Tab:
    """A tab that is driven by Chromium's DevTools protocol; ``events`` holds what it reported."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self.connection, self.numbers, self.events = connection, count(1), []

    async def call(self, method: str, **params: Any) -> dict:
        number = next(self.numbers)
        await self.connection.write_message(json.dumps(dict(id=number, method=method, params=params)))
        while (message := await self.read()).get('id') != number:
            pass
        assert 'error' not in message, message
        return message['result']

    async def read(self) -> dict:
        message = json.loads(await self.connection.read_message())
        if 'method' in message:
            self.events.append(message)
        return message

    async def wait_for(self, event: str) -> None:
        while not self.seen(event):
            await self.read()

    def seen(self, event: str) -> list[dict]:
        return [message['params'] for message in self.events if message['method'] == event]


async def look(tab_address: str, page: Path, width: int, screenshot: Path) -> tuple[dict, Tab]:
    """What the page measures in a window of a width, and what the tab reported meanwhile."""
    connection = await websocket_connect(tab_address, max_message_size=2**30)
    tab = Tab(connection)
    for domain in ('Page', 'Network', 'Runtime', 'Log'):
        await tab.call(f'{domain}.enable')
    await tab.call(
        'Emulation.setDeviceMetricsOverride', width=width, height=800, deviceScaleFactor=1, mobile=width < 600
    )
    tab.events.clear()
    await tab.call('Page.navigate', url=page.as_uri())
    await tab.wait_for('Page.loadEventFired')
    result = await tab.call('Runtime.evaluate', expression=MEASURE)
    picture = await tab.call('Page.captureScreenshot', captureBeyondViewport=True)
    screenshot.write_bytes(base64.b64decode(picture['data']))
    connection.close()
    return json.loads(result['result']['value']), tab


@pytest.mark.parametrize('width', [1280, 400])
def test_the_page_in_a_browser(width: int, browser: str, data: Path, tmp_path: Path) -> None:
    """No request, no message, every image is shown, and nothing is wider than the window."""
    page = write_report(made_run(tmp_path, data, UMMAE), next_command=f'python tools/train.py {"long_name/" * 30}')
    found, tab = asyncio.run(look(browser, page, width, tmp_path / 'page.png'))
    assert found['images'] == 8 and found['broken'] == 0
    assert found['content'] <= found['window'] <= width
    asked = [params['request']['url'] for params in tab.seen('Network.requestWillBeSent')]
    assert found['requests'] == [] and {url.partition(':')[0] for url in asked} <= {'file', 'data'}
    assert [url for url in asked if url.startswith('file:')] == [page.as_uri()]
    assert not tab.seen('Log.entryAdded') and not tab.seen('Runtime.consoleAPICalled')
    assert not tab.seen('Runtime.exceptionThrown')
