#!/usr/bin/env bash
# jaxtyping 0.3.11 with beartype 0.23.1: `install_import_hook(package, "beartype.beartype")` is the documented way to check shapes of a
# whole package, and is thought to leave it as it is where its annotations are right. It decorates each function by itself, the
# methods too, and beartype takes `typing.Self` only where it decorates the class: the import of a module with one method that
# `-> Self`, such as nn.Module's `train` has by convention, fails. So a package that imports, type checks and runs cannot be
# imported in its tests. The class's name as a string does work, in a subclass too, and so does the hook of beartype itself.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env && env/bin/pip install -q jaxtyping==0.3.11 beartype==0.23.1 numpy==2.4.6 >pip.log 2>&1
for name in by_self by_name; do
  mkdir $name
  returned=Self; [ $name = by_name ] && returned='"Model"'
  cat > $name/__init__.py <<P
from typing import Self

class Model:
    def train(self, mode: bool = True) -> $returned:
        return self

class Large(Model):
    pass
P
done
cat > hook.py <<'P'
import sys
from importlib import import_module

name, hook = sys.argv[1:]
if hook == "jaxtyping":
    from jaxtyping import install_import_hook
    install_import_hook(name, "beartype.beartype")
elif hook == "beartype":
    from beartype.claw import beartype_package
    beartype_package(name)
try:
    large = import_module(name).Large()
    assert large.train() is large
    print(f"{name}, hook of {hook}: imported, and the method returns its object")
except Exception as error:
    print(f"{name}, hook of {hook}: {type(error).__name__}")
P
for hook in none jaxtyping beartype; do
  for name in by_self by_name; do env/bin/python hook.py $name $hook; done
done | tee seen
test "$(grep -c imported seen)" = 5
grep -qx 'by_self, hook of jaxtyping: BeartypeDecorHintPep673Exception' seen
