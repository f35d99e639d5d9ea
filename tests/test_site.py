"""The pages as a site, and the files that they name."""

import re
import subprocess
import sys

from doc_pages import PAGES, ROOT


def test_files_that_pages_name_are_there():
    for page in PAGES:
        text = page.read_text()
        for path in re.findall(
            r"`((?:properties|dataset_configs|recbole_llm|tests|benchmarks|results|docs)/[\w./-]*)`", text
        ):
            made = ("my-llama", "LastTitle", "lasttitle")
            assert (ROOT / path).exists() or any(name in path for name in made), f"{page.name}: {path}"


def test_the_site_is_built_without_warnings_and_fetches_nothing(tmp_path):
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path / 'site'}"]
    done = subprocess.run(mkdocs, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(PAGES) - 1
    for page in pages:
        tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page.read_text())
        assert not [tag for tag in tags if re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag)], page.name
    for style in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"""(?:url\(|@import)\s*["']?(?:https?:)?//""", style.read_text()), style.name
