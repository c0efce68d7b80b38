"""The report in a real browser: its clips play."""

import json
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cosmos_ref.demo.report import page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",  # keeps it running after the page is loaded
    "--window-size=1300,6000",  # the whole page is seen: a browser starts a clip when it comes into view
]
WATCH = """<script>
const videos = [...document.querySelectorAll('video')];
const moved = videos.map(() => 0), last = videos.map(() => 0);
const rounds = setInterval(() => videos.forEach((v, i) => {
  if (v.currentTime !== last[i]) { moved[i] += 1; last[i] = v.currentTime; } }), 100);
const started = Date.now();
const wait = setInterval(() => {
  if (moved.some(n => n < 3) && Date.now() - started < 60000) return;
  clearInterval(wait); clearInterval(rounds);
  fetch('/', {method: 'POST', body: JSON.stringify(videos.map((v, i) => (
    {ready: v.readyState, duration: v.duration, width: v.videoWidth, moved: moved[i]})))});
}, 200);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian package chromium)")
def test_the_clips_play_in_chromium(report, tmp_path):
    text, answer, answered = page(report).replace("</body>", WATCH + "</body>"), [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/" else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(text.encode() if self.path == "/" else b"")

        def do_POST(self):
            answer.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            answered.set()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", address]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert answered.wait(90), "the page did not report back"
    finally:
        browser.terminate()
        browser.wait(20)
        server.shutdown()
    assert len(answer) == 8
    for video in answer:
        assert video["ready"] >= 2  # a picture is there
        assert video["duration"] == pytest.approx(9 / 6, abs=0.02)  # nine frames, six a second; ticks are rounded
        assert video["width"] in (64, 128)
        assert video["moved"] >= 3  # the time went on by itself, at least three times
