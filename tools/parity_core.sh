#!/usr/bin/env bash
# Proves the published configurations under another transformers, in an environment of its own.
# Usage: tools/parity_core.sh VERSION   (TensorRT-LLM 1.2 pins 4.57.3, 1.4 pins 5.5.4)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
version=${1:?usage: tools/parity_core.sh VERSION}
venv=.venv-transformers-$version
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet -c <(grep -vE "^(transformers|huggingface|tokenizers)" constraints.txt) \
    "transformers==$version" -e ".[test]"
"$venv/bin/pytest" -n 2 -m parity_core
