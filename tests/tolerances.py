"""The one table of tolerances: ``rtol, atol`` by dtype. Mend the data before the tolerance."""

import torch

TOLERANCES: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-9, 1e-11),
    torch.float32: (1e-4, 1e-5),
    torch.bfloat16: (2e-2, 2e-2),
    torch.float16: (1e-3, 1e-3),
}


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """``torch.testing.assert_close`` with the table above."""
    rtol, atol = TOLERANCES[expected.dtype] if expected.dtype.is_floating_point else (0.0, 0.0)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)
