"""The README's example runs as printed, and its promises about imports hold."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import torch


def test_the_examples_run() -> None:
    first, *blocks = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), flags=re.DOTALL)
    tested = Path("docs/examples/trl_sft.py").read_text()
    own = textwrap.dedent(tested.partition("# --- the user's own ---\n")[2].partition("    # --- end ---")[0])
    assert own.strip() in first, "the first example is the user's part of a file that tests/test_examples.py runs"
    assert blocks
    for block in blocks:
        names: dict = {}
        torch.manual_seed(0)
        exec(block, names)
        assert names["hidden"].grad.abs().sum() > 0
        assert 0 < names["posterior"].sum() <= names["student"].sizes[0]


def test_the_library_imports_without_the_application() -> None:
    code = (
        "import sys, time, torch; start = time.perf_counter(); import structloss, structloss.integrations; "
        "unwanted = {'transformers', 'training', 'triton', 'tokenizers', 'trl', 'peft', 'datasets'}; "
        "assert not unwanted & set(sys.modules); "
        "print(time.perf_counter() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2.0


def test_files_that_the_readme_names_exist() -> None:
    text = Path("README.md").read_text()
    for link in re.findall(r"\]\((docs/[^)]+)\)", text):
        assert Path(link).is_file(), link
