"""Component times from datasheet numbers, for machines and models that nobody has probed.

Assumption A1: a component takes the longer of its arithmetic and its memory time at the stated efficiencies, plus the
fixed overhead of one layer for everything that is launched as a group of kernels.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tiercast_profiles.document import Bound
from tiercast_profiles.errors import MissingCapability
from tiercast_profiles.hardware import Device
from tiercast_profiles.model import BYTES_PER_VALUE, Backbone, ModelSpec, Precision
from tiercast_profiles.scenario import GraphMode, ResolvedScenario
from tiercast_profiles.units import GB, NS_PER_S, NS_PER_US, TERA
from tiercast_sim.checked import non_negative, positive

Times = npt.NDArray[np.float64]

WIDER: tuple[Precision, ...] = ("fp4", "fp8", "bf16", "fp32")


def matmul_precision(device: Device, wanted: Precision) -> Precision:
    """The precision matrices are multiplied in: the wanted one, or the next wider the device has.

    Raises:
        MissingCapability: when the device lists none that is wide enough.
    """
    for precision in WIDER[WIDER.index(wanted) :]:
        if precision in device.dense_tflops:
            return precision
    known = ", ".join(sorted(device.dense_tflops)) or "none"
    raise MissingCapability(
        f"{device.product_name} states no peak rate for {wanted} or wider; it has: {known}; add one to the profile"
    )


def overhead_ns(device: Device, graph_mode: GraphMode, bound: Bound, what: str) -> float:
    """Fixed overhead of a layer or of a step in a graph mode.

    Raises:
        MissingCapability: when the profile has no number for the mode.
    """
    table = device.layer_overhead_us if what == "layer" else device.step_overhead_us
    if graph_mode not in table:
        known = ", ".join(sorted(table)) or "none"
        raise MissingCapability(
            f"{device.product_name} has no device.{what}_overhead_us for graph mode {graph_mode!r}; it has: {known}"
        )
    return non_negative(table[graph_mode], bound, f"device.{what}_overhead_us.{graph_mode}") * NS_PER_US


class Collectives:
    """Tensor-parallel traffic of one replica (Assumption A4).

    An all-reduce moves 2 (t − 1) / t of its bytes per rank, an all-gather (t − 1) / t, each after one latency.
    """

    def __init__(self, device: Device, tensor: int, bound: Bound) -> None:
        self._tensor = tensor
        self._latency_ns = 0.0
        self._bytes_per_ns = 1.0
        if tensor > 1:
            if device.collective is None:
                raise MissingCapability(
                    f"parallel.tensor={tensor} needs device.collective, which the profile of "
                    f"{device.product_name} does not state"
                )
            bandwidth = positive(device.collective.bandwidth_gb_per_s, bound, "device.collective.bandwidth_gb_per_s")
            self._bytes_per_ns = bandwidth * GB / NS_PER_S
            self._latency_ns = (
                non_negative(device.collective.latency_us, bound, "device.collective.latency_us") * NS_PER_US
            )

    def all_reduce_ns(self, size_bytes: float) -> float:
        """Sum ``size_bytes`` that every rank holds."""
        return self._time_ns(2 * size_bytes)

    def all_gather_ns(self, size_bytes: float) -> float:
        """Give every rank the ``size_bytes`` that the ranks hold in equal parts."""
        return self._time_ns(size_bytes)

    def _time_ns(self, size_bytes: float) -> float:
        if self._tensor == 1 or size_bytes <= 0:
            return 0.0
        return self._latency_ns + size_bytes * (self._tensor - 1) / self._tensor / self._bytes_per_ns


class Roofline:
    """Component times in ns of one rank, by the sizes of the model and the rates of the device."""

    def __init__(self, resolved: ResolvedScenario, bound: Bound) -> None:
        device, model, tensor = resolved.hardware.device, resolved.model, resolved.scenario.parallel.tensor
        backbone = model.backbone
        self._model, self._backbone, self._tensor = model, backbone, tensor
        self._collectives = Collectives(device, tensor, bound)
        self._layer_overhead_ns = overhead_ns(device, resolved.placement.graph_mode, bound, "layer")
        self._step_overhead_ns = overhead_ns(device, resolved.placement.graph_mode, bound, "step")
        self._bytes_per_ns = (
            positive(device.memory_bandwidth_gb_per_s, bound, "device.memory_bandwidth_gb_per_s")
            * positive(device.memory_efficiency_ratio, bound, "device.memory_efficiency_ratio")
            * GB
            / NS_PER_S
        )
        self._activation_bytes = 4 if backbone.compute_precision == "fp32" else 2
        self._matmul_flop_per_ns = self._flop_per_ns(device, backbone.compute_precision, bound)
        wide: Precision = "fp32" if backbone.compute_precision == "fp32" else "bf16"
        self._wide_flop_per_ns = self._flop_per_ns(device, wide, bound)
        kv_bytes = positive(backbone.kv_bytes_per_token, bound, "kv_bytes_per_token", higher_is_better=False)
        # Assumption A1: a layer holds an even share of the KV bytes; ranks share them up to the number of KV heads.
        self._kv_bytes_per_layer = kv_bytes / backbone.num_layers / min(tensor, backbone.num_kv_heads)
        self._early_params, self._late_params = layer_params(model)
        self._expert_weight = lru_cache(maxsize=4096)(self._weight_bytes)

    @staticmethod
    def _flop_per_ns(device: Device, wanted: Precision, bound: Bound) -> float:
        precision = matmul_precision(device, wanted)
        peak = positive(device.dense_tflops[precision], bound, f"device.dense_tflops.{precision}")
        efficiency = positive(device.matmul_efficiency_ratio, bound, "device.matmul_efficiency_ratio")
        return peak * efficiency * TERA / NS_PER_S

    def step_overhead_ns(self) -> float:
        """Host time of a step that compute does not cover."""
        return self._step_overhead_ns

    def launch_ns(self) -> float:
        """A small group of kernels (hash, lookup issue): the overhead of one layer (Assumption A7)."""
        return self._layer_overhead_ns

    def embed_ns(self, num_tokens: int) -> float:
        """Token ids to hidden states of all branches."""
        size = num_tokens * self._backbone.hidden_size * self._backbone.num_branches * self._activation_bytes
        return self._layer_overhead_ns + 2 * size / self._bytes_per_ns

    def linear_ns(self, num_tokens: int, *, is_late: bool) -> float:
        """One decoder layer without attention, with its two all-reduces; ``is_late``: behind the prefill layers."""
        if num_tokens <= 0:
            return 0.0
        params = self._late_params if is_late else self._early_params
        flops = 2 * params * num_tokens / self._tensor
        hidden_bytes = num_tokens * self._backbone.hidden_size * self._activation_bytes
        stream_bytes = 4 * hidden_bytes * self._backbone.num_branches  # two residual reads, two writes
        memory_ns = (self._expert_weight(params, num_tokens) / self._tensor + stream_bytes) / self._bytes_per_ns
        arithmetic_ns = flops / self._matmul_flop_per_ns
        return max(arithmetic_ns, memory_ns) + self._layer_overhead_ns + self.reduce_ns(num_tokens)

    def reduce_ns(self, num_tokens: int) -> float:
        """The two all-reduces that are part of :meth:`linear_ns`."""
        if num_tokens <= 0:
            return 0.0
        return 2 * self._collectives.all_reduce_ns(num_tokens * self._backbone.hidden_size * self._activation_bytes)

    def _weight_bytes(self, params: float, num_tokens: int) -> float:
        """Weight bytes one layer reads for a batch.

        Assumption A2: tokens choose experts evenly and independently, so that n of them touch E (1 − (1 − k/E)^n).
        """
        value_bytes = BYTES_PER_VALUE[self._backbone.compute_precision]
        moe = self._backbone.moe
        if moe is None:
            return params * value_bytes
        chosen = (moe.num_active_experts + moe.num_shared_experts) * moe.expert_params
        miss_ratio = max(0.0, 1 - moe.num_active_experts / moe.num_routed_experts) ** num_tokens
        touched = moe.num_routed_experts * (1 - miss_ratio) + moe.num_shared_experts
        return max(0.0, params - chosen) * value_bytes + touched * moe.expert_bytes

    def attention_decode_ns(self, positions: list[int], tokens_per_sequence: int) -> float:
        """Attention of one layer for sequences that feed the token at a position and see all up to it.

        Drafts share one read of the KV.
        """
        window = self._backbone.attention_window_tokens
        if window is None:
            seen = sum(positions) + len(positions)
        else:
            last = window - 1
            seen = sum([position if position < last else last for position in positions]) + len(positions)
        return self._attention_ns(seen * tokens_per_sequence, seen)

    def attention_of_sum_ns(self, num_seen: int) -> float:
        """As :meth:`attention_decode_ns` of one token a sequence, from how many tokens all of them see together."""
        return self._attention_ns(num_seen, num_seen)

    def attention_prefill_ns(self, num_tokens: int, start: int) -> float:
        """Attention of one layer for a chunk behind ``start`` earlier tokens: token i sees start + i + 1 of them."""
        end, window = start + num_tokens, self._backbone.attention_window_tokens
        if window is None or end <= window:
            pairs = (end * (end + 1) - start * (start + 1)) // 2
            return self._attention_ns(pairs, end)
        ramp = max(start, window)  # up to here a token still sees everything before it
        pairs = (ramp * (ramp + 1) - start * (start + 1)) // 2 + (end - ramp) * window
        return self._attention_ns(pairs, min(end, num_tokens + window))

    def _attention_ns(self, num_pairs: int, kv_tokens: int) -> float:
        backbone = self._backbone
        flops = 4 * backbone.num_attention_heads * backbone.head_dim * num_pairs / self._tensor
        memory_ns = kv_tokens * self._kv_bytes_per_layer / self._bytes_per_ns
        return max(flops / self._wide_flop_per_ns, memory_ns)

    def attention_columns_ns(self, num_pairs: npt.NDArray[np.int64], kv_tokens: npt.NDArray[np.int64]) -> Times:
        """As :meth:`_attention_ns`, many at once: the same operations in the same order, hence the same numbers."""
        backbone = self._backbone
        flops = 4 * backbone.num_attention_heads * backbone.head_dim * num_pairs / self._tensor
        memory_ns = kv_tokens * self._kv_bytes_per_layer / self._bytes_per_ns
        longer: Times = np.maximum(flops / self._wide_flop_per_ns, memory_ns)
        return longer

    def prefill_columns_ns(self, num_tokens: npt.NDArray[np.int64], start: npt.NDArray[np.int64]) -> Times:
        """As :meth:`attention_prefill_ns`, many at once."""
        end, window = start + num_tokens, self._backbone.attention_window_tokens
        pairs, kv_tokens = (end * (end + 1) - start * (start + 1)) // 2, end
        if window is not None:
            ramp = np.maximum(start, window)
            slid = (ramp * (ramp + 1) - start * (start + 1)) // 2 + (end - ramp) * window
            pairs = np.where(end <= window, pairs, slid)
            kv_tokens = np.where(end <= window, end, np.minimum(end, num_tokens + window))
        return self.attention_columns_ns(pairs, kv_tokens)

    def engram_module_ns(self, num_tokens: int) -> float:
        """One Engram layer once its rows are staged. Its projection is replicated over the ranks (Assumption A8)."""
        engram, backbone = self._model.engram, self._backbone
        outputs = engram.projection_outputs(backbone)
        weights = engram.embedding_values * outputs
        weight_bytes = weights * (2 if engram.row_format == "bf16" else 1)
        flop_per_ns = self._wide_flop_per_ns if engram.row_format == "bf16" else self._matmul_flop_per_ns
        stream_values = outputs + 2 * backbone.num_branches * backbone.hidden_size
        if engram.conv_kernel_size is not None:
            stream_values += (engram.conv_kernel_size + 1) * backbone.num_branches * backbone.hidden_size
        row_bytes = engram.num_rows_per_token * engram.row_bytes
        touched = weight_bytes + num_tokens * (row_bytes + stream_values * self._activation_bytes)
        arithmetic_ns = 2 * weights * num_tokens / flop_per_ns
        return max(arithmetic_ns, touched / self._bytes_per_ns) + self._layer_overhead_ns

    def gather_over_ranks_ns(self, num_tokens: int) -> float:
        """All-gather of staged rows, whose heads are sharded over the ranks (Assumption A8)."""
        engram = self._model.engram
        return self._collectives.all_gather_ns(num_tokens * engram.num_rows_per_token * engram.row_bytes)

    def head_ns(self, num_samples: int) -> float:
        """Final norm, language-model head and sampling."""
        if num_samples <= 0:
            return 0.0
        weights = self._backbone.vocab_size * self._backbone.hidden_size / self._tensor
        memory_ns = weights * self._activation_bytes / self._bytes_per_ns
        return max(2 * weights * num_samples / self._wide_flop_per_ns, memory_ns) + self._layer_overhead_ns


def layer_params(model: ModelSpec) -> tuple[float, float]:
    """Active parameters of one layer: of those that prefill runs, and of those behind them.

    ``active_params_decode`` counts the head, ``active_params_prefill`` does not.
    """
    backbone: Backbone = model.backbone
    early = backbone.active_params_prefill / backbone.num_prefill_layers
    num_late = backbone.num_layers - backbone.num_prefill_layers
    if num_late == 0:
        return early, early
    head = backbone.vocab_size * backbone.hidden_size
    return early, max(0.0, (backbone.active_params_decode - head - backbone.active_params_prefill) / num_late)
