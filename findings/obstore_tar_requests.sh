#!/usr/bin/env bash
# obstore 0.12.1: to look through a tar in a bucket with `tarfile` over obstore's own file object (`open_reader`, which reads
# ahead 1 MiB by default) one expects a request for each mebibyte. It takes one for each file in the tar, each of up to a mebibyte,
# since every seek, also one to a place that had been read, forgets what was read ahead: of a tar of 1.7 MB with 300 files it
# fetches 222 MB. Read from end to end the same file object takes two requests, and so does a file object that keeps its last
# block. Nor does its `read` return `bytes`, so that tarfile fails on it as it is (AttributeError: no attribute 'count').
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env && env/bin/pip install -q obstore==0.12.1 >pip.log 2>&1
cat > count.py <<'P'
import http.server, io, tarfile, threading
import obstore
from obstore.store import HTTPStore

FILES, BLOCK = 300, 1 << 20
made = io.BytesIO()
with tarfile.open(fileobj=made, mode="w") as tar:
    for number in range(FILES):
        member = tarfile.TarInfo(f"{number:04d}")
        member.size = 5000
        tar.addfile(member, io.BytesIO(bytes(5000)))
DATA, asked = made.getvalue(), []

class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def answer(self, with_body):
        first, last = 0, len(DATA) - 1
        if wanted := self.headers.get("Range"):
            first, last = (int(x) for x in wanted.removeprefix("bytes=").split("-"))
        last = min(last, len(DATA) - 1)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(DATA)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if with_body:
            asked.append(last - first + 1)
            self.wfile.write(DATA[first : last + 1])
    def do_GET(self): self.answer(True)
    def do_HEAD(self): self.answer(False)

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
store = HTTPStore.from_url(f"http://127.0.0.1:{server.server_port}", client_options={"allow_http": True})

class Kept(io.RawIOBase):
    """The same object, of which the block read last is kept."""
    def __init__(self): self.at, self.start, self.block = 0, 0, b""
    def readable(self): return True
    def seekable(self): return True
    def tell(self): return self.at
    def seek(self, offset, whence=0):
        self.at = offset + (0, self.at, len(DATA))[whence]
        return self.at
    def readinto(self, out):
        if not self.start <= self.at < self.start + len(self.block):
            length = min(BLOCK, len(DATA) - self.at)
            self.start, self.block = self.at, bytes(obstore.get_range(store, "a.tar", start=self.at, length=length)) if length else b""
        part = self.block[self.at - self.start :][: len(out)]
        out[: len(part)] = part
        self.at += len(part)
        return len(part)

class Theirs:
    """obstore's, whose `read` returns no `bytes`, which tarfile needs."""
    def __init__(self):
        reader = obstore.open_reader(store, "a.tar")
        self.seek, self.tell = reader.seek, reader.tell
        self.read = lambda size=None: bytes(reader.read(size))

def requests(what):
    asked.clear()
    what()
    return len(asked), sum(asked)

def listed(file):
    with tarfile.open(fileobj=file) as tar:
        assert len(tar.getnames()) == FILES

theirs = requests(lambda: listed(Theirs()))
whole = requests(lambda: obstore.open_reader(store, "a.tar").readall())
kept = requests(lambda: listed(Kept()))
for name, (count, size) in (("tarfile over open_reader", theirs), ("open_reader, read whole", whole), ("tarfile, last block kept", kept)):
    print(f"{name:26} {count:4} requests {size / 1e6:7.1f} MB, of a tar of {len(DATA) / 1e6:.1f} MB")
assert theirs[0] >= FILES and theirs[1] > 50 * len(DATA), "a seek keeps what was read ahead now"
assert whole[0] <= 5 and kept[0] <= 5
P
env/bin/python count.py
