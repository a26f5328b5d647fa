"""Tasks that decode and write: held to one machine's CPUs, or as many as a cluster takes."""

from sheen.encode.job import task_limits

HEAD: dict[str, float] = {}
"""Of a cluster whose head runs no work."""


def test_on_one_machine_tasks_reserve_nothing_and_are_as_many_as_cpus() -> None:
    for node, gpu in (({"CPU": 2.0}, False), ({"CPU": 2.0, "GPU": 1.0}, True)):
        limits = task_limits([node], gpu, blocks=40)
        assert (limits.size, limits.decode_cpus, limits.write_cpus) == (2, 0, 0)
    assert task_limits([{"CPU": 16.0}], False, blocks=3).size == 3


def test_a_cluster_at_rest_does_not_hold_decoding_to_one_task() -> None:
    """Its nodes start by demand, which a task that reserves nothing is not."""
    for nodes in ([HEAD], [HEAD, HEAD], [{"CPU": 8.0}]):
        limits = task_limits(nodes, gpu=True, blocks=40)
        assert limits.size is None
        assert limits.decode_cpus == 1
        assert limits.write_cpus > 0


def test_several_nodes_share_their_cpus_and_may_become_more() -> None:
    nodes = [{"CPU": 1.0}, {"CPU": 1.0}]
    limits = task_limits(nodes, gpu=False, blocks=40)
    assert limits.size is None
    # On the node that is left, two workers and what feeds them fit.
    assert 0 < limits.decode_cpus + limits.write_cpus <= 1 - 2 * 0.25
