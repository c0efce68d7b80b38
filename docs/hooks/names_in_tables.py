"""MkDocs hook: a long name in a table is broken between its words, an option not at all."""

import re

BETWEEN_WORDS = re.compile(r"(?<=\w[_.])(?=\w)|(?<=[a-z])(?=[A-Z])")


def on_page_content(html, page, config, files):
    """Mark in the cells of tables where a browser may break what is set as code."""
    return re.sub(r"<td>.*?</td>", in_cell, html, flags=re.DOTALL)


def in_cell(cell):
    text = re.sub(r"<code>(--[a-z-]+)</code>", r'<code class="whole">\1</code>', cell[0])
    return re.sub(r"(?<=<code>)[^<]*(?=</code>)", lambda name: BETWEEN_WORDS.sub("<wbr>", name[0]), text)
