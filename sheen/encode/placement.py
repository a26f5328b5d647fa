"""How many tasks of an encoding decode and write at a time, and what each of them reserves.

Owns the difference between one machine and a cluster. On one machine tasks reserve nothing and are
held to its CPUs. In a cluster they reserve, are as many as the nodes take, those that start later
among them, and never run where there are no CPUs to reserve. Encoding workers are
`sheen.encode.job`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DECODING_CPUS = 1.0
"""CPUs of a decode task where nodes start on demand (reserving starts them), and beside GPUs, which
keep workers off the CPUs of other nodes."""
SHARED_CPUS = 0.25
"""CPUs of a decode task on several CPU nodes, and of a write task: when nodes die, their workers
move to the others, and what they reserve there must leave room for the tasks that feed them."""


@dataclass(frozen=True)
class TaskLimits:
    """`size`: tasks of a stage at a time; None for as many as nodes take."""

    size: int | None
    decode_cpus: float
    write_cpus: float


def task_limits(nodes: Sequence[Mapping[str, float]], gpu: bool, blocks: int) -> TaskLimits:
    """The limits for an encoding of `blocks` blocks, by the current resources of the nodes."""
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    missing = cpus < 1 or (gpu and not any(node.get("GPU") for node in nodes))
    if missing or (gpu and len(nodes) > 1):
        return TaskLimits(None, DECODING_CPUS, SHARED_CPUS)
    if len(nodes) > 1:
        return TaskLimits(None, SHARED_CPUS, SHARED_CPUS)
    return TaskLimits(min(int(cpus), blocks), 0.0, 0.0)
