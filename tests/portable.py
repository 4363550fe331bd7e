"""Run tests with the instruction sets and thread counts of other processors: ``python -m tests.portable [arguments of pytest]``.

The libraries choose their code when they are loaded, so that every setting is a process of its own. A processor without AVX-512
cannot show what those with it do. Without arguments the recorded numbers are tested.
"""

from __future__ import annotations

import os
import subprocess
import sys

MATRIX_PRODUCTS = [{"MKL_CBWR": value} for value in ("COMPATIBLE", "AVX2", "AUTO")]
TORCH = [{"ATEN_CPU_CAPABILITY": value} for value in ("default", "avx2", "avx512")]
CONVOLUTIONS = [{"ONEDNN_MAX_CPU_ISA": value} for value in ("SSE41", "AVX2", "AVX512_CORE")]
ARRAYS = {"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL", "OPENBLAS_CORETYPE": "Nehalem"}
PICTURES = {"OPENCV_CPU_DISABLE": "AVX2,FMA3,AVX512-SKX", "OPENCV_IPP": "disabled"}
OLDEST = {**MATRIX_PRODUCTS[0], **TORCH[0], **CONVOLUTIONS[0], **ARRAYS, **PICTURES}

SETTINGS: list[dict[str, str]] = [{}, *MATRIX_PRODUCTS, *TORCH, *CONVOLUTIONS, ARRAYS, PICTURES, OLDEST]


def main(arguments: list[str]) -> int:
    failed = 0
    for setting in SETTINGS:
        for threads in ("1", "2"):
            variables = {**setting, "VOS_TEST_THREADS": threads}
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore::ImportWarning"]
            run = subprocess.run(
                [*command, *(arguments or ["tests/golden", "-m", "not slow"])],
                env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **variables},
                capture_output=True,
                text=True,
            )
            failed += run.returncode != 0
            shown = " ".join(f"{key}={value!r}" if " " in value else f"{key}={value}" for key, value in variables.items())
            print(f"{'ok    ' if run.returncode == 0 else 'FAILED'} {run.stdout.strip().splitlines()[-1]}: {shown}", flush=True)
            if run.returncode:
                print(run.stdout)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
