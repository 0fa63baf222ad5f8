"""A question whose answers are known: one small file of the bundle, made by its build, asked again by whoever runs it.

    known.npz      question:TENSOR          one sample, as an application would hand it in
                   HEAD-FILE:TENSOR         what that head makes of it: the whole fp32 model's own values where they are
                                            outputs of the model, what crosses (as codes, where it crosses so) else

Long tensors are thinned to every n-th value, so the file stays below a megabyte; a sample that is larger than that is
not shipped at all. How far a head may be off stands beside it in the manifest: four times what the build measured
between the head and the whole model on that very sample, and at least what other kernels than the build's may change.

The measure is the energy of the difference over that of the known values around their mean: 0 for equal values, about
1.4 for others that have nothing to do with them, however alike their size.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

import numpy as np

from protocol.bundle import Bundle, Known, Manifest
from protocol.errors import BundleError
from protocol.tensors import Array, Tensors

FILE = "known.npz"
MOST_NBYTES = 1 << 20
MOST_VALUES = 8192  # kept of one tensor
SLACK = 4.0
# What kernels of another processor, or a GPU, may change: rounding in fp32; in eight bits 30-43 % of the codes by one.
LEAST_DEVIATION = {"fp32": 0.01}
LEAST_DEVIATION_OTHERWISE = 0.25
_QUESTION = "question"


def deviation(made: Array, known: Array) -> float:
    """How far `made` is from what is `known`; infinite for another shape or for what is no number."""
    if made.shape != known.shape:
        return float("inf")
    x, y = made.astype(np.float64).ravel(), known.astype(np.float64).ravel()
    off = float(np.linalg.norm(x - y))
    if off == 0.0 or not y.size:
        return 0.0
    scale = float(np.linalg.norm(y - y.mean())) or float(np.linalg.norm(y))
    found = off / scale if scale else float("inf")
    return found if np.isfinite(found) else float("inf")


def thinned(values: Array) -> Array:
    """Every n-th value, so many as are kept of one tensor; 1-D."""
    flat = values.reshape(-1)
    return flat[:: max(1, -(-flat.size // MOST_VALUES))]


def allowed(measured: float, precision: str) -> float:
    """How far a head may be off that was `measured` off at the build."""
    return max(SLACK * measured, LEAST_DEVIATION.get(precision, LEAST_DEVIATION_OTHERWISE))


def encode(question: Tensors, answers: Mapping[str, Tensors]) -> bytes:
    """The file; `answers` are thinned already, by head file. The same values give the same bytes."""
    out = io.BytesIO()
    members = {f"{_QUESTION}:{name}": _short(values) for name, values in question.items()}
    members |= {f"{head}:{name}": values for head, outputs in answers.items() for name, values in outputs.items()}
    np.savez(out, **members)  # type: ignore[arg-type]
    return out.getvalue()


def of(bundle: Bundle) -> tuple[dict[str, Array], dict[str, dict[str, Array]]] | None:
    """The question, and each head file's known values; None where the bundle has none, or its file was not fetched.

    Raises BundleError for a file that is damaged, or that does not fit the model.
    """
    known = bundle.manifest.known
    if known is None or not (bundle.root / known.file).exists():
        return None
    remedy = "rebuild the bundle"
    data = bundle.read(known.file)
    if len(data) > MOST_NBYTES:
        raise BundleError(f"{known.file} holds {len(data)} bytes", remedy)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as listing:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in listing.infolist()):
                raise BundleError(f"{known.file} is compressed", remedy)
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            members = {name: file[name] for name in file.files}
    # An archive that claims to be encrypted, or a patch, is a RuntimeError to `zipfile`.
    except (ValueError, OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise BundleError(f"{known.file} cannot be read ({error})", remedy) from error
    question = _question(bundle.manifest, members, remedy)
    answers = {
        head: {name.removeprefix(f"{head}:"): values for name, values in members.items() if name.startswith(f"{head}:")}
        for head in known.most_deviation
    }
    return question, answers


def worst(outputs: Tensors, known: Mapping[str, Array]) -> tuple[float, str]:
    """The largest deviation of a head's outputs from its known values, and in which tensor."""
    found = [
        (deviation(thinned(outputs[name]), values) if name in outputs else float("inf"), name)
        for name, values in known.items()
    ]
    return max(found, default=(0.0, ""))


def described(files: Mapping[str, float]) -> Known:
    """What the manifest says of the file."""
    return Known(FILE, dict(files))


def _question(manifest: Manifest, members: Mapping[str, Array], remedy: str) -> dict[str, Array]:
    question = {}
    for spec in manifest.model.inputs:
        values = members.get(f"{_QUESTION}:{spec.name}")
        if values is None:
            raise BundleError(f"{FILE} asks nothing of {spec.name!r}", remedy)
        question[spec.name] = values.astype(spec.numpy_dtype)
    return question


def _short(values: Array) -> Array:
    """As float16 where that loses nothing."""
    if values.dtype.kind != "f" or values.dtype.itemsize <= 2:
        return values
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half.astype(values.dtype), values) else values
