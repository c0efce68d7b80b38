"""MkDocs hook: `<!-- diagram: ID -->` becomes a drawing, `<!-- table: ID -->` a table of what the code says."""

import re
import sys
from pathlib import Path

for folder in (str(Path(__file__).parents[2]), str(Path(__file__).parent)):  # the other hooks are imported from there
    if folder not in sys.path:
        sys.path.insert(0, folder)

import drawings_training  # noqa: E402, F401 (registers its diagrams)
from canvas import drawn  # noqa: E402
from tables_training import TABLES  # noqa: E402


def on_page_markdown(markdown, page, config, files):
    """Write each table of the page in its place."""
    language = page.file.src_uri.split("/")[0]
    return re.sub(r"^<!-- table: (\S+) -->$", lambda marker: TABLES[marker[1]](language), markdown, flags=re.MULTILINE)


def on_page_content(html, page, config, files):
    """Draw each diagram of the page in its place."""
    language = page.file.src_uri.split("/")[0]
    return re.sub(r"<!-- diagram: (\S+) -->", lambda marker: drawn(marker[1], language), html)
