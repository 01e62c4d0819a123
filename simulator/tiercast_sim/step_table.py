"""The steps of a run as columns that read like a sequence of step logs: built when looked at, eight bytes a number."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import overload

import numpy as np
import numpy.typing as npt

from tiercast_profiles.columns import StepSampleColumns
from tiercast_sim.step import LayerTimes, StepLog

Column = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LayerColumns:
    """Engram layers of every step, ``[num_layers, num_steps] int64``; times in ns after the start of their step."""

    wanted_ns: Column
    issued_ns: Column
    ready_ns: Column
    stall_ns: Column
    service_ns: Column
    rows_read: Column
    bytes_per_rank: Column


@dataclass(frozen=True)
class StepTable(Sequence[StepLog]):
    """Steps of one replica; the columns are ``[num_steps] int64``."""

    start_ns: Column
    duration_ns: Column
    prefill_tokens: Column
    decode_sequences: Column
    pre_ns: Column
    rows: Column
    layers: LayerColumns
    replica: int = 0

    def __len__(self) -> int:
        return len(self.start_ns)

    def since(self, first: int) -> "StepTable":
        """The steps from ``first`` on."""
        layers = LayerColumns(*(getattr(self.layers, part.name)[:, first:] for part in fields(LayerColumns)))
        return StepTable(
            start_ns=self.start_ns[first:],
            duration_ns=self.duration_ns[first:],
            prefill_tokens=self.prefill_tokens[first:],
            decode_sequences=self.decode_sequences[first:],
            pre_ns=self.pre_ns[first:],
            rows=self.rows[first:],
            layers=layers,
            replica=self.replica,
        )

    def sample_columns(self) -> StepSampleColumns:
        """What a record keeps of them."""
        return StepSampleColumns(
            start_ns=self.start_ns,
            duration_ns=self.duration_ns,
            prefill_tokens=self.prefill_tokens,
            decode_sequences=self.decode_sequences,
            stall_ns=_over_layers(self.layers.stall_ns),
            lookup_ns=_over_layers(self.layers.service_ns),
            rows=self.rows,
            rows_read=_over_layers(self.layers.rows_read),
            rows_hit=np.zeros(0, dtype=np.int64),
        )

    @overload
    def __getitem__(self, index: int) -> StepLog: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[StepLog, ...]: ...
    def __getitem__(self, index: int | slice) -> StepLog | tuple[StepLog, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        start_ns, pre_ns = int(self.start_ns[index]), int(self.pre_ns[index])
        named = self.layers
        layers = tuple(
            LayerTimes(
                known_ns=start_ns + pre_ns,
                wanted_ns=start_ns + int(named.wanted_ns[layer, index]),
                issued_ns=start_ns + int(named.issued_ns[layer, index]),
                ready_ns=start_ns + int(named.ready_ns[layer, index]),
                stall_ns=int(named.stall_ns[layer, index]),
                service_ns=int(named.service_ns[layer, index]),
                rows_read=int(named.rows_read[layer, index]),
                bytes_per_rank=int(named.bytes_per_rank[layer, index]),
            )
            for layer in range(len(named.wanted_ns))
        )
        return StepLog(
            replica=self.replica,
            start_ns=start_ns,
            duration_ns=int(self.duration_ns[index]),
            prefill_tokens=int(self.prefill_tokens[index]),
            decode_sequences=int(self.decode_sequences[index]),
            stall_ns=sum(layer.stall_ns for layer in layers),
            lookup_ns=sum(layer.service_ns for layer in layers),
            rows=int(self.rows[index]),
            rows_read=sum(layer.rows_read for layer in layers),
            pre_ns=pre_ns,
            layers=layers,
        )


def _over_layers(column: Column) -> Column:
    total: Column = column.sum(axis=0)
    return total
