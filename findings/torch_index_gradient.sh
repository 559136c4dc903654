#!/usr/bin/env bash
# torch 2.13.0 on a CPU: rows that are looked up in a table by `table[ids]` and by `F.embedding(ids, table)` are equal, and so
# is the gradient thought to be, each time, since on a CPU nothing but the number of threads changes a sum. But behind indexing
# is `index_put_(accumulate=True)`, whose threads add to one row in the order in which they come: on several threads the gradient
# of equal numbers differs from one call to the next in its last bits, and no training can be repeated. `F.embedding`,
# `index_select`, `index_add_` and `scatter_add_` make the same bits each time; so does indexing on one thread, with
# `torch.use_deterministic_algorithms(True)`, and of up to 32,768 numbers, which are not shared out: a small test shows nothing.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env && env/bin/pip install -q torch==2.13.0 numpy==2.4.6 >pip.log 2>&1
cat > sums.py <<'P'
import torch
import torch.nn.functional as F

ROWS, WIDTH = 256, 64

def by(lookup):
    """Makes what sums up gradients of rows that were looked up."""
    def gradient(ids, given):
        table = torch.zeros(ROWS, WIDTH, requires_grad=True)
        lookup(table, ids).backward(given)
        return table.grad
    return gradient

INDEXING = {
    "table[ids], backward": by(lambda table, ids: table[ids]),
    "index_put_": lambda ids, given: torch.zeros(ROWS, WIDTH).index_put_((ids,), given, accumulate=True),
}
OTHERS = {
    "F.embedding, backward": by(lambda table, ids: F.embedding(ids, table)),
    "index_select, backward": by(lambda table, ids: table.index_select(0, ids)),
    "index_add_": lambda ids, given: torch.zeros(ROWS, WIDTH).index_add_(0, ids, given),
    "scatter_add_": lambda ids, given: torch.zeros(ROWS, WIDTH).scatter_add_(0, ids[:, None].expand_as(given), given),
}

def results(total, count=8192, threads=4, calls=100):
    """Returns how many results equal calls have, and by how much they lie apart at most."""
    torch.set_num_threads(threads)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(ROWS, (count,), generator=draw)
    given = torch.randn(count, WIDTH, generator=draw)
    made = [total(ids, given) for _ in range(calls)]
    return len({x.numpy().tobytes() for x in made}), max((x - made[0]).abs().max().item() for x in made)

for name, total in {**INDEXING, **OTHERS}.items():
    several, apart = results(total)
    one, small = results(total, threads=1)[0], results(total, count=256)[0]
    torch.use_deterministic_algorithms(True)
    asked = results(total)[0]
    torch.use_deterministic_algorithms(False)
    print(f"{name:23} of 100 calls on 4 threads {several:3} results, up to {apart:.0e} apart;",
          f"on one thread {one}; of few numbers {small}; deterministic {asked}")
    assert (several > 1) == (name in INDEXING)
    assert one == small == asked == 1 and apart < 1e-3
P
env/bin/python sums.py
