"""Batches over a Ray cluster: the numbers of one process, also when workers and machines die on the way.

Two raylets on loopback stand for two machines. Run with `pytest -m cluster`.
"""

import os
import signal

import psutil
import pytest
import torch

import scale_interp as si
from scale_interp.errors import ClusterWarning, EditError, ModelError
from scale_interp.execution import ray_cluster

pytestmark = pytest.mark.cluster
ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small():
    """The demo in many small batches."""
    vlm = si.load("demo")
    vlm.memory = 2**20
    return vlm


@pytest.fixture(scope="module")
def questions():
    return si.load_questions("scenes/relation", split="train", n=64)


@pytest.fixture(scope="module")
def nodes():
    """A head without cores and two machines of one core each."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_AUTH_MODE"] = "disabled"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    found = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster, found
    ray.shutdown()
    cluster.shutdown()


def workers():
    """The processes that hold a model."""
    return [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [""])[0].startswith("ray::Worker")]


def test_every_kind_of_work_is_the_same_there(small, questions, nodes, tmp_path):
    pairs = si.contrasts(questions[:16])
    scale = si.fit_scale(small, questions, epochs=1)
    unspaced = small.with_prompt("{images}\n{text} ")
    unspaced.choice_space = "without"
    asked = {
        "patch": lambda: si.patch(small, pairs).per_question,
        "mean ablation": lambda: si.ablate(small, questions[:16], "mean").per_question,
        "gradient": lambda: si.attribute(small, questions[:16]).per_question,
        "evaluate": lambda: si.evaluate(small, questions, scale).scores,
        "asked otherwise, by the same workers": lambda: si.evaluate(unspaced, questions, scale).scores,
        "reference": lambda: si.evaluate(small, questions[:4], scale, path="reference").scores,
        "AdaptVis": lambda: si.evaluate_scaled(small, questions[:16], [si.AdaptVis(0.5, 2.0, 0.4)])[0].scores,
        "suite": lambda: torch.tensor(
            [
                r["gain"]
                for r in si.falsify(
                    small, questions, si.load_questions("scenes/relation", split="test", n=32), [(3, 0)], seeds=1, epochs=1
                ).rows
            ]
        ),
    }
    plain = {name: ask() for name, ask in asked.items()}
    assert not torch.equal(plain["asked otherwise, by the same workers"], plain["evaluate"])
    with si.cluster(), si.resumable(tmp_path):
        for name, ask in asked.items():
            assert torch.equal(ask(), plain[name]), name
    with si.resumable(tmp_path):  # what workers did is kept here as well
        assert torch.equal(asked["patch"](), plain["patch"])
        with pytest.raises(EditError, match="out of range"):
            si.ablate(small, questions[:2], "zero") and si.evaluate(small, questions[:2], si.Edit.scaling([(9, 0)], 0.0, 6, 8))


def test_what_workers_cannot_load_is_refused(small, questions, nodes):
    alive = si.load(small.hf_model, small.processor)
    changed = si.load("demo")
    changed.hf_model.get_output_embeddings().weight.data *= 0.5
    with si.cluster(workers=1):
        with pytest.raises(ModelError, match="is a live model"):
            si.ablate(alive, questions[:4])
        with pytest.raises(ModelError, match="the weights in this process were changed"):
            si.ablate(changed, questions[:4])
        with pytest.raises(ModelError, match=r"question .*the logits are not finite, first after layer 0"):
            si.run_edits(small, questions[:2], si.Edit.scaling([(0, 0)], 1e38, 6, 8))


def test_another_cluster(nodes):
    with pytest.raises(ModelError, match=r"is connected to the Ray cluster at .*, not to 127\.0\.0\.1:1"), si.cluster("127.0.0.1:1"):
        pass


def test_a_worker_and_a_machine_die(small, questions, nodes, monkeypatch):
    """In the middle of one sweep: the process on one machine is killed, then the other machine."""
    cluster, (first, second) = nodes
    arrived = []
    plain = si.ablate(small, questions).per_question
    run = ray_cluster.Cluster.run

    def watched(self, vlm, plan, work, todo, keep):
        def kept(i, found):
            arrived.append(i)
            if len(arrived) == 3:
                (one,) = (p for p in workers() if p.ppid() == first.all_processes["raylet"][0].process.pid)
                os.kill(one.pid, signal.SIGKILL)
            if len(arrived) == 6:
                cluster.remove_node(second, allow_graceful=False)
            return keep(i, found)

        return run(self, vlm, plan, work, todo, kept)

    monkeypatch.setattr(ray_cluster.Cluster, "run", watched)
    with si.cluster(), pytest.warns(ClusterWarning) as said:
        shared = si.ablate(small, questions).per_question
    assert torch.equal(shared, plain)
    assert sorted(arrived) == list(range(len(arrived))) and len(arrived) > 8
    assert len([w for w in said if w.category is ClusterWarning]) >= 2
