"""Whether one engine computes what another does: asked before it may serve. A faster engine must be the same model."""

from __future__ import annotations

import numpy as np

from protocol.tensors import Tensors

TOLERANCE = 0.02  # of the largest value: what half precision and another order of sums may move


def disagreement(given: Tensors, wanted: Tensors, tolerance: float) -> str:
    """How far one engine's answer lies from another's, in words; "" within the tolerance.

    Floats may differ by `tolerance` of the largest value wanted. What runs a tail in float16 has a larger one of its
    own: on noise, where no score is large, it lies up to 4 % away (YuNet; classifiers 0.3 to 0.6 %), and what float16
    costs in accuracy was judged on data when the bundle was built. Integers and truths are choices among near values:
    there shapes and types are compared, and no more.
    """
    if set(given) != set(wanted):
        return f"answers {', '.join(sorted(given)) or 'nothing'} instead of {', '.join(sorted(wanted))}"
    for name, known in wanted.items():
        array = given[name]
        if array.shape != known.shape or array.dtype != known.dtype:
            return f"answers {name} as {array.dtype} {list(array.shape)} instead of {known.dtype} {list(known.shape)}"
        if array.dtype.kind != "f" or not array.size:
            continue
        exact = known.astype(np.float64)
        scale = float(np.max(np.abs(exact), where=np.isfinite(exact), initial=0.0)) or 1.0
        if not np.allclose(array.astype(np.float64), exact, rtol=0.0, atol=tolerance * scale, equal_nan=True):
            worst = float(np.max(np.abs(array.astype(np.float64) - exact)))
            return f"differs by {worst / scale:.1%} of the largest value in {name}"
    return ""
