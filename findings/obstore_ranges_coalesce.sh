#!/usr/bin/env bash
# obstore 0.12.1: `get_ranges` of two small ranges of an object is one request for all that lies between them, if that is less
# than 1 MiB: of two kilobytes of an object of 500 kB, 400 kB are sent. The parts that it returns do not show it. `coalesce=N`
# (since 0.9.1) puts only ranges together that are less than N bytes apart.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env && env/bin/pip install -q obstore==0.12.1 >pip.log 2>&1
cat > count.py <<'P'
import http.server, threading
import obstore
from obstore.store import HTTPStore

DATA, sent = bytes(500_000), []

class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_GET(self):
        first, last = (int(x) for x in self.headers["Range"].removeprefix("bytes=").split("-"))
        sent.append(last - first + 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(DATA)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(DATA[first : last + 1])

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
store = HTTPStore.from_url(f"http://127.0.0.1:{server.server_port}", client_options={"allow_http": True})
for more, wanted in (({}, [400_000]), ({"coalesce": 1 << 14}, [1000, 1000])):
    sent.clear()
    parts = obstore.get_ranges(store, "a", starts=[0, 399_000], lengths=[1000, 1000], **more)
    print(f"{str(more):20} received {sum(map(len, parts)):,} bytes, sent {sum(sent):,} in {len(sent)} requests")
    assert sorted(sent) == wanted, sent
P
env/bin/python count.py
