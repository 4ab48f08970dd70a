#!/usr/bin/env bash
# A training that is killed and gone on with ends with the weights of one that was not, to the bit. From the root of the repository:
#
#   cargo build --release && tests/real/resume.sh [DEVICE [CONFIG [SETTINGS...]]]
#
# DEVICE is cpu or cuda; CONFIG a file of scenarios/models, without .json; SETTINGS some of f32, 8bit, on a GPU bf16 (full
# fine-tuning with such states), and lora. Without arguments a small model on the processor, some two minutes;
# `cuda qwen2.5-0.5b f32 bf16 8bit lora` takes some three minutes and 20 GB of disk under runs/resume, which must not be there.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
chronicals=${CHRONICALS:-$root/target/release/chronicals}
device=${1:-cpu} config=${2:-tiny-qwen2}
shift $(($# < 2 ? $# : 2))
[ $# -gt 0 ] || set -- f32 8bit lora
[ ! -e runs/resume ] || { echo "runs/resume is there already: take it away first" >&2; exit 2; }
mkdir -p runs/resume
cd runs/resume

job() { # OUTPUT METHOD STATES: the file of a training
  cat <<YAML
model: {config: $root/scenarios/models/$config.json}
data: {path: $root/data/chat-instruct/train.jsonl, tokenizer: $root/data/chat-instruct/tokenizer.json, max_length: 512}
device: $device
method: $2
batch: {packing: bfd, per_device_train_batch_size: 8}
train: {learning_rate: 2e-5, lr_scheduler_type: cosine, warmup_steps: 5}
precision: {states: $3}
max_steps: 60
save_steps: 20
save_total_limit: 1
output_dir: $1
YAML
}

losses() { grep -o '"step":[0-9]*,"loss":[0-9.]*' "$1/metrics.jsonl"; }

same=0
for setting in "$@"; do
  case $setting in
    lora) method='{type: lora, r: 32, lora_alpha: 64, loraplus_lr_ratio: 4}' states=f32 ;;
    *) method='{type: full}' states=$setting ;;
  esac
  job whole "$method" "$states" >whole.yaml
  job killed "$method" "$states" >killed.yaml
  "$chronicals" train --config whole.yaml >whole.txt 2>&1
  "$chronicals" train --config killed.yaml >killed.txt 2>&1 &
  pid=$!
  until [ -d killed/checkpoint-20 ]; do
    kill -0 $pid || { cat killed.txt >&2; exit 1; }
    sleep 0.05
  done
  kill -KILL $pid
  wait $pid 2>/dev/null || true
  before=$(tail -n 1 killed/metrics.jsonl | grep -o '"step":[0-9]*')
  "$chronicals" train --config killed.yaml --resume >resumed.txt 2>&1
  weights=model.safetensors
  [ -e "whole/$weights" ] || weights=adapter_model.safetensors
  if cmp "whole/$weights" "killed/$weights" && [ "$(losses whole)" = "$(losses killed)" ]; then
    echo "$setting: killed after $before, $(grep -o 'resumed from.*' resumed.txt): $weights and 60 losses are the same to the bit"
  else
    echo "$setting: killed after $before, $(grep -o 'resumed from.*' resumed.txt): NOT the same" >&2
    same=1
  fi
  rm -r whole killed
done
exit $same
