"""How many rows a request holds: costs were planned for one, and are learned and predicted by the row.

Only where the bundle has shown that the whole model does each row of a batch by itself is an axis known that counts
them. Elsewhere a request is taken for what was planned, whatever its shape.
"""

from __future__ import annotations

from protocol.bundle import Manifest
from protocol.messages import PlacementKind
from protocol.tensors import Tensors


class Rows:
    def __init__(self, manifest: Manifest) -> None:
        self.axes: dict[str, int] = {}  # by input of the model
        inputs = {spec.name: spec for spec in manifest.model.inputs}
        for entry in manifest.placements:
            if entry.kind is PlacementKind.FULL_CLOUD and entry.batch is not None and entry.batch.batchable:
                for tensor in entry.boundary:
                    spec, axis = inputs.get(tensor.spec.name), tensor.batch_axis
                    if spec is not None and axis is not None and not isinstance(spec.shape[axis], int):
                        self.axes[spec.name] = axis

    def of(self, inputs: Tensors) -> int:
        """1 or more. `inputs` are the model's, checked."""
        return max((inputs[name].shape[axis] for name, axis in self.axes.items()), default=1)
