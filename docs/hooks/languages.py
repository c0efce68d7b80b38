"""MkDocs hook: no page asks for site maps that are not there.

For every `<link rel="alternate">` the theme fetches a site map from below that address, to guess where the same page
stands in the other language. Ours need no guess: the language menu links to the very page.
"""

import re


def on_post_page(output, page, config):
    """Take these links out of the page's head."""
    return re.sub(r'\s*<link rel="alternate"[^>]*\bhreflang=[^>]*>', "", output)
