#!/usr/bin/env bash
# CPython 3.11.7, multiprocessing with "forkserver": when several
# threads start and join processes, some that ended with 0 are said to have ended with 255. The exit
# code comes through a pipe and can be read once; `Process.start` first looks for processes of the
# whole program that have ended, and takes the code of one whose own thread is just about to read
# it. That thread finds the pipe at its end, and `Popen.poll` turns this into 255.
#
# Seen: 1 thread 0 of 600; 2 threads 3 of 1,200; 4 threads 419 of 2,400. Processes that are killed and
# then joined are as likely to be said to have ended with 255 in place of -9: 81 of 600 in 4 threads.
#
# Whoever starts processes in threads holds one lock around `start` and around whatever asks for
# exit codes (`join`, `is_alive`, `exitcode`), and waits with `multiprocessing.connection.wait` on
# the sentinels, which reads nothing.
#
# Exit code 0 while that is so; 1 if it changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat > count.py <<'P'
import multiprocessing, sys, threading
from multiprocessing import connection

def work():
    pass

def count(threads, each, *, locked):
    context, codes, lock = multiprocessing.get_context("forkserver"), [], threading.Lock()

    def plain():
        process = context.Process(target=work)
        process.start()
        process.join()
        codes.append(process.exitcode)

    def careful():
        process = context.Process(target=work)
        with lock:
            process.start()
        connection.wait([process.sentinel])
        with lock:
            process.join()
            codes.append(process.exitcode)

    one = careful if locked else plain
    pool = [threading.Thread(target=lambda: [one() for _ in range(each)]) for _ in range(threads)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    print(f"{threads} threads{', with a lock' if locked else ''}: {codes.count(255)} of {len(codes)} said to be 255")
    return codes.count(255)

if __name__ == "__main__":
    print("Python", sys.version.split()[0])
    alone, together = count(1, 300, locked=False), count(4, 600, locked=False)
    careful = count(4, 600, locked=True)
    as_seen = alone == 0 and together > 0 and careful == 0
    print("as described" if as_seen else "NOT as described: it changed")
    sys.exit(not as_seen)
P
python3 count.py
