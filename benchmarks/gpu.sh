#!/usr/bin/env bash
# All benchmarks that tell something of a GPU, in one command; what it prints is what docs/performance.md takes.
#
#   benchmarks/gpu.sh                     all works, four rounds, compiled models too
#   benchmarks/gpu.sh --quick             two rounds of half as many images
#   benchmarks/gpu.sh --data FOLDER       the real CIFAR-10 in FOLDER, see cifar.py; without it the speed alone
#   benchmarks/gpu.sh --out FILE          keeps what is printed
#   benchmarks/gpu.sh --cpu               without a GPU: tries that all of it runs, with tiny numbers
#
# It needs torch, timm and a few light libraries, no network and no installation: .venv if there is one, else python3,
# or PYTHON=/path/to/python. benchmarks/README.md lists what has to be carried to a machine without a network.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

quick=() data=() out="" cpu=""
while (($#)); do
    case $1 in
        --quick) quick=(--quick) ;;
        --data) data=(--data "${2:?--data needs a folder}") && shift ;;
        --out) out=${2:?--out needs a file} && shift ;;
        --cpu) cpu=yes ;;
        *) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "benchmarks/gpu.sh" >&2 && exit 2 ;;
    esac
    shift
done
if [[ -n $out ]]; then exec > >(tee "$out"); fi

python=${PYTHON:-.venv/bin/python}
[[ -x $python ]] || python=python3
export PYTHONUNBUFFERED=1 NO_ALBUMENTATIONS_UPDATE=1

lacks=$("$python" - <<'CHECK'
import importlib.util

needed = ("torch", "timm", "lightning_fabric", "omegaconf", "cv2", "numpy", "pandas", "sklearn", "PIL", "tensorboard")
print(*(name for name in needed if not importlib.util.find_spec(name)))
CHECK
)
if [[ -n $lacks ]]; then
    echo "gpu.sh: $python has no $lacks; benchmarks/README.md says what to carry" >&2
    exit 2
fi

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu.sh: no GPU was seen by torch $("$python" -c 'import torch; print(torch.__version__)')"
    [[ -n $cpu ]] || { echo "gpu.sh: nothing was measured; --cpu tries that all of it runs" >&2 && exit 2; }
    echo "gpu.sh: what follows was run to see that it runs; its numbers mean nothing"
    "$python" benchmarks/cifar.py --images 256 epochs=1 batch_size=64 'backbone=small_image(width=4)' 'stem=own()' lr=0.01
    "$python" benchmarks/throughput.py --images 128 --rounds 1 --only "train 32"
    "$python" benchmarks/startup.py --rounds 1
    exit
fi

nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader || true
echo && echo '## CIFAR-10 to 94 %' && "$python" benchmarks/cifar.py "${data[@]+"${data[@]}"}"
echo && echo '## Start' && "$python" benchmarks/startup.py --rounds 3
echo && echo '## Throughput' && "$python" benchmarks/throughput.py "${quick[@]+"${quick[@]}"}"
