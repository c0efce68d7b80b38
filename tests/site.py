"""The documentation as built by MkDocs, once for all tests of a run, and a browser that visits its pages."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.demo.test_browser import CHROMIUM, FLAGS

ROOT = Path(__file__).parent.parent
WATCH = """<script>
const faults = [], say = text => faults.push(String(text));
addEventListener('error', e => say(e.message || 'not loaded: ' + (e.target.src || e.target.href)), true);
addEventListener('unhandledrejection', e => say(e.reason));
const error = console.error;
console.error = (...said) => { say(said.join(' ')); error(...said); };
addEventListener('load', () => setTimeout(async () => {
  await document.fonts.ready;
  const all = selector => [...document.querySelectorAll(selector)];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), raw = [];
  while (texts.nextNode()) {
    const node = texts.currentNode;
    if (/\\\\\\(|\\\\\\[|\\$[^$\\n]+\\$/.test(node.data) && !node.parentElement.closest('code, pre, script, .katex'))
      raw.push(node.data.trim());
  }
  const next = await fetch('/report', {method: 'POST', body: JSON.stringify({
    page: location.pathname, faults, raw,
    formulas: all('.katex').length,
    unset: all('.arithmatex').filter(e => !e.querySelector('.katex')).length,
    broken: all('.katex-error').map(e => e.title || e.textContent),
    elsewhere: performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith(location.origin)),
    pictures: all('figure.picture svg').filter(e => e.getBoundingClientRect().height > 40).length,
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  })}).then(answer => answer.text());
  if (next) location.href = next;
}, 0));
</script>"""


def built_site(tmp_path_factory) -> Path:
    """The built site; under xdist one worker builds it and the others wait."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if os.environ.get("PYTEST_XDIST_WORKER") else shared
    site, ended = shared / "site", shared / "site.log"
    try:
        site.mkdir()
    except FileExistsError:
        for _ in range(6000):
            if ended.exists():
                break
            time.sleep(0.1)
    else:
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", site]
        environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
        build = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        partial_log = ended.with_suffix(".partial")
        partial_log.write_text("" if build.returncode == 0 else build.stdout + build.stderr or "mkdocs failed")
        partial_log.rename(ended)
    said = ended.read_text()
    assert not said, said
    return site


def visit(folder: Path, pages: list[str], profile: Path, patience: float = 60) -> list[dict]:
    """Open the pages one after another in Chromium, and return what each had to say of itself.

    It gives up when no page reports for so many seconds.
    """
    reports, missing, done = [], [], threading.Event()
    remaining = iter(pages)

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            path = Path(self.translate_path(self.path))
            path = path / "index.html" if path.is_dir() else path
            if path.suffix != ".html" or not path.exists():
                return super().do_GET()
            body = path.read_text(encoding="utf-8").replace("<head>", "<head>" + WATCH, 1).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            reports.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            following = next(remaining, "").encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(following)))
            self.end_headers()
            self.wfile.write(following)
            if not following:
                done.set()

        def send_error(self, code, *args, **kwargs):
            missing.append(f"{code} {self.path}")
            super().send_error(code, *args, **kwargs)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    first = f"http://127.0.0.1:{server.server_port}{next(remaining)}"
    flags = [flag for flag in FLAGS if not flag.startswith("--window-size")]
    command = [CHROMIUM, *flags, "--window-size=1300,900", f"--user-data-dir={profile}", first]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        seen = -1
        while not done.wait(patience):
            assert seen < len(reports), f"after {len(reports)} of {len(pages)} pages the browser said no more"
            seen = len(reports)
    finally:
        browser.terminate()
        browser.wait(20)
        server.shutdown()
        shutil.rmtree(profile, ignore_errors=True)
    assert not missing, missing
    return reports
