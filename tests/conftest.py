"""Shared set-up: one thread per test process, so that parallel runs do not fight for cores."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run in Triton's interpreter; read when Triton is imported


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A real Chromium, one for all tests of a process: Playwright's synchronous side cannot be opened twice."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (the extra 'dev')")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium is installed")
    quiet = ["background-networking", "component-update", "sync", "quic", "gpu"]
    with playwright.sync_playwright() as p:
        args = ["--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in quiet)]
        opened = p.chromium.launch(executable_path=found, args=args)
        yield opened
        opened.close()
