#!/usr/bin/env bash
# Runs all tests, or those that are named, several times: as an old processor without AVX would compute, as one with AVX2
# would, as this one does with one thread, and beside processes that keep every core busy. Usage: robust.sh PYTEST [ARG ...]
set -uo pipefail
pytest=$1
shift
failed=()

run() {  # NAME VARIABLE=VALUE ... -- PYTEST_ARG ...
    local name=$1 variables=()
    shift
    while [ "$1" != -- ]; do variables+=("$1"); shift; done
    shift
    echo "== $name: ${variables[*]}"
    env "${variables[@]}" "$pytest" -q -n 2 --dist loadfile "$@" || failed+=("$name")
}

run "no AVX, one thread" ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE \
    OPENBLAS_CORETYPE=Nehalem OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 -- "$@"
run "AVX2, two threads" ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2 \
    OPENBLAS_CORETYPE=Haswell OMP_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2 -- "$@"
run "this processor, one thread" OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 -- "$@"

busy=()
trap 'kill "${busy[@]}" 2>/dev/null' EXIT
for _ in $(seq "$(nproc)"); do
    while :; do :; done &
    busy+=($!)
done
run "this processor, all cores busy" OMP_NUM_THREADS=2 -- "$@"

if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
fi
echo "all passed in every way"
