#!/usr/bin/env bash
# lightning-fabric 2.6.6 with torch 2.13.0: Fabric is the light wrapper, `import torch` takes care not to import torch's compiler, and
# nobody here compiles. Yet `import lightning_fabric` imports torch._dynamo, and sympy with it, as lightning_fabric/wrappers.py asks
# for the class OptimizedModule to know compiled modules by: twice the modules that torch alone has, and nearly twice the seconds
# until a command says anything (1.5 s of torch, 2.9 s with Fabric on a slow core). So what only prints help, or refuses its input,
# has to do so before it imports Fabric. torch's own `torch.compiler.is_compiling()` imports none of it.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env && env/bin/pip install -q torch==2.13.0 lightning-fabric==2.6.6 numpy==2.4.6 >pip.log 2>&1
cat > modules.py <<'P'
import sys
import time

began = time.perf_counter()
import torch

torch.compiler.is_compiling()
seconds, alone = time.perf_counter() - began, set(sys.modules)
import lightning_fabric

with_fabric = set(sys.modules)
print(f"torch: {len(alone):,} modules, {seconds:.1f} s")
print(f"with Fabric: {len(with_fabric):,} modules, {time.perf_counter() - began:.1f} s")
new = with_fabric - alone
print("of them of torch._dynamo and sympy:", sum(n.split(".")[0] == "sympy" or n.startswith("torch._dynamo") for n in new))
assert not any(n.startswith("torch._dynamo") or n == "sympy" for n in alone)
assert {"torch._dynamo", "sympy"} <= new
P
env/bin/python modules.py >/dev/null  # Once for the files' cache and the byte code.
env/bin/python modules.py
