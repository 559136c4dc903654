#!/usr/bin/env bash
# torch 2.13.0, CPU: `torch.backends.mkldnn.matmul.fp32_precision = "bf16"` sounds like a loss of precision. On processors with
# AVX-512 but no AMX it rounds nothing: it is what sends products of float32 to oneDNN instead of MKL, which takes half the time
# on AMD's (100 against 220 GFLOP/s on one core of an EPYC with avx512_bf16; not seen on Intel's). With AMX it may round, so there
# the script says what it does and demands nothing. And while it is set, `torch.get_float32_matmul_precision()` raises, which
# torch.compile and Lightning Fabric (on CUDA) call: so it can't just be left on.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env && env/bin/pip install -q torch==2.13.0 numpy==2.4.6 >pip.log 2>&1
cat > products.py <<'P'
import re, time, torch

torch.set_num_threads(1)
known = open("/proc/cpuinfo").read()
wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
rounds = bool(re.search(r"\bamx_bf16\b", known))
# Whole numbers of 13 bits; bfloat16 holds 8. Their sums are exact in float32.
left = torch.randint(-8191, 8192, (1024, 1024)).float()
right = torch.randint(2, (1024, 1024)).float() * 2 - 1
exact = left.double() @ right.double()

def seconds():
    times = []
    for _ in range(5):
        began = time.perf_counter(); found = left @ right; times.append(time.perf_counter() - began)
    return min(times), torch.equal(found.double(), exact)

before, same = seconds()
assert same and torch.get_float32_matmul_precision() == "highest"
torch.backends.mkldnn.matmul.fp32_precision = "bf16"
after, same = seconds()
try:
    torch.get_float32_matmul_precision()
    raise SystemExit("get_float32_matmul_precision no longer raises")
except RuntimeError as error:
    assert "mix of the legacy and new APIs" in str(error)
torch.backends.mkldnn.matmul.fp32_precision = "none"
assert torch.get_float32_matmul_precision() == "highest"
print(f"torch {torch.__version__}; AVX-512 {wide}, AMX {rounds}; with bf16 allowed exact: {same}, {before / after:.2f} times as fast")
assert same or rounds, "it rounds on a processor without AMX"
P
env/bin/python products.py
