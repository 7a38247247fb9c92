#!/bin/bash
# Nine minutes on a GPU: the tests of one, then benchmarks/gpu.py. What is found lies in $OUT.
#   OUT=results PHOTOS=folder bash benchmarks/gpu.sh       (PHOTOS: with train/ and val/, if any)
began=$SECONDS
cd "$(dirname "$0")/.." || exit 1
export OUT=${OUT:-gpu-results} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
mkdir -p "$OUT"
PYTHON=${PYTHON:-python3}

# wheels that were carried here, for a machine without a network
if compgen -G '*.whl' > /dev/null; then
    $PYTHON -m pip install --quiet --no-index --no-deps --target .wheels ./*.whl
    export PYTHONPATH=$PWD/.wheels:$PYTHONPATH
fi

if command -v nvidia-smi > /dev/null; then
    nvidia-smi -q -d CLOCK,POWER,PERFORMANCE > "$OUT/smi.txt"
    nvidia-smi dmon -s pucm -d 1 > "$OUT/dmon.txt" &
    trap "kill $!" EXIT
fi
echo "$(nproc --all) cores; C compiler: $(command -v gcc || command -v clang || echo none)"

# right before fast; those that compile are left to gpu.py; at a SIGINT pytest says what it has
$PYTHON -c 'import xdist' 2> /dev/null && workers="-n 4"
timeout -s INT -k 10 "${TESTS:-60}" $PYTHON -m pytest --cuda -q $workers -k "not true-" tests/test_cuda.py 2>&1 |
    tee "$OUT/tests.txt" | tail -15

$PYTHON benchmarks/gpu.py --until $((${UNTIL:-530} - SECONDS + began)) "$@"
