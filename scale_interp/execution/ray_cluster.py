"""Batches distributed over the machines of a Ray cluster: each worker holds the model, and results are merged in order."""

from __future__ import annotations

import socket
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import checked
from ..errors import ClusterWarning, ModelError, ScaleInterpError
from ..vlm.vlm import VLM, ChoiceSpace
from .execution import block
from .memory import working_bytes

ATTEMPTS = 3
"""How many workers may die during one batch before the batch is taken to be the cause."""
AHEAD = 4
"""How many finished batches may wait, per busy worker, for an earlier one."""
Keep = Callable[[int, dict[str, Tensor]], dict[str, Tensor]]
Asked = tuple[str | None, ChoiceSpace]
"""How a view of the model asks: its prompt, and how its choices are scored."""


@checked
@contextmanager
def cluster(address: str | None = None, *, workers: int | None = None, gpus: int | None = None) -> Iterator[Cluster]:
    """Distribute every sweep, evaluation and suite inside the block over a Ray cluster; the numbers stay the same.

    If a worker or a machine dies, others repeat its batches, with a ClusterWarning. Fits run in this process. Images given as paths
    must be readable on every machine.

        with si.cluster("auto"):
            m = si.patch(vlm, pairs)

    Args:
        address: Of a running cluster; "auto" for the one this machine belongs to; None to start a local one.
        workers: How many processes hold the model; by default as many as there are GPUs for, or cores at this process's number of
            torch threads.
        gpus: GPUs per worker; by default as many as this process's model uses.

    Returns:
        A context with the cluster.

    Raises:
        ModelError: Ray is not installed or cannot be reached, or workers cannot load the model: it is a live one, or its weights
            were changed after loading.

    >>> import scale_interp as si
    >>> si.cluster(workers="many")
    Traceback (most recent call last):
    scale_interp.errors.ArgumentError: cluster(workers='many'): a str; give a whole number, or None
    """
    try:
        import ray
    except ImportError as error:
        raise ModelError("running on a cluster needs Ray: pip install 'scale-interp[ray]'") from error
    started = not ray.is_initialized()
    if not started and address not in (None, "auto", ray.get_runtime_context().gcs_address):
        there = ray.get_runtime_context().gcs_address
        raise ModelError(f"this process is connected to the Ray cluster at {there}, not to {address}: call ray.shutdown() first")
    if started:
        try:
            _reach(address)
            ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"no Ray cluster at {address!r} ({error}): start one with `ray start --head`, or give no address") from error
    here = Cluster(ray, workers, gpus)
    try:
        with block(workers=here):
            yield here
    finally:
        here.close()
        if started:
            ray.shutdown()


def _reach(address: str | None) -> None:
    """Raise OSError if nothing listens at the address; Ray itself keeps trying for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


class Worker:
    """One process of the cluster, with a model and the last plan of batches."""

    def __init__(self, ray: Any):
        self.ray = ray
        self.known: dict[Any, Any] = {}
        self.views: dict[Asked, VLM] = {}

    def open(self, reopen: Callable[[], VLM], threads: int, memory: int) -> str:
        """Load the model, and return its fingerprint."""
        torch.set_num_threads(threads)
        self.vlm = reopen()
        self.vlm.memory = memory
        return self.vlm.fingerprint

    def run(self, plan: list[Any], work: list[Any], index: int, asked: Asked) -> dict[str, Tensor]:
        """Run one batch, asked in this way. plan and work are references that are fetched once."""
        if asked not in self.views:
            prompt, choice_space = asked
            self.views[asked] = self.vlm.with_prompt(prompt)
            self.views[asked].choice_space = choice_space
        vlm = self.views[asked]
        if plan[0] not in self.known:
            self.known = {plan[0]: self.ray.get(plan[0])(vlm), work[0]: self.ray.get(work[0])}
        found = self.known[work[0]](vlm, self.known[plan[0]][index])
        return {name: t.cpu() for name, t in found.items()}


@dataclass
class Team:
    """The workers that hold one model: busy, free, or still loading."""

    fingerprint: str
    start: Callable[[], tuple[Any, Any]]
    starting: dict[Any, Any] = field(default_factory=dict)
    free: list[Any] = field(default_factory=list)
    lost: int = 0


class Cluster:
    """The workers by model, kept for the whole `si.cluster` block."""

    def __init__(self, ray: Any, workers: int | None, gpus: int | None):
        self.ray, self.workers, self.gpus = ray, workers, gpus
        self.teams: dict[str, Team] = {}

    def close(self) -> None:
        """Stop all workers."""
        for team in self.teams.values():
            for worker in [*team.free, *team.starting.values()]:
                self.ray.kill(worker)

    def run(self, vlm: VLM, plan: Any, work: Any, todo: Sequence[int], keep: Keep) -> Iterator[dict[str, Tensor]]:
        """The results of these batches, in order; `keep` is called as soon as one arrives."""
        if not todo:
            return
        team, ray = self._team(vlm), self.ray
        references = [ray.put(plan)], [ray.put(work)]
        waiting = deque(todo)
        running: dict[Any, tuple[Any, int]] = {}
        arrived: dict[int, dict[str, Tensor]] = {}
        deaths: Counter[int] = Counter()
        try:
            for wanted in todo:
                while wanted not in arrived:
                    while waiting and team.free and (not running or len(arrived) < AHEAD * len(running)):
                        worker, i = team.free.pop(), waiting.popleft()
                        running[worker.run.remote(*references, i, (vlm.prompt, vlm.choice_space))] = worker, i
                    (ready,), _ = ray.wait([*running, *team.starting], num_returns=1)
                    if ready in team.starting:
                        self._joined(team, ready)
                        continue
                    worker, i = running[ready]
                    try:
                        arrived[i] = keep(i, ray.get(ready))
                    except ray.exceptions.RayActorError as error:
                        del running[ready]
                        deaths[i] += 1
                        self._died(team, f"a worker died at batch {i}", error, deaths[i])
                        waiting.appendleft(i)
                        continue
                    except ray.exceptions.RayTaskError as error:
                        raise _cause(error) from None
                    del running[ready]
                    team.free.append(worker)
                yield arrived.pop(wanted)
        finally:
            # A busy worker finishes its batch first, and then takes the next one.
            team.free.extend(worker for worker, _ in running.values())

    def _team(self, vlm: VLM) -> Team:
        mark = vlm.fingerprint
        if mark not in self.teams:
            reopen = vlm.reopen
            if reopen is None:
                raise ModelError(
                    f"{vlm.name} is a live model, and workers load a model by its name: save it to a folder that all machines see, "
                    "and load that"
                )
            threads, memory = torch.get_num_threads(), working_bytes(vlm)
            gpus = (self.gpus or len(set(_devices(vlm)))) if vlm.device.type == "cuda" else 0
            has = self.ray.cluster_resources()
            capacity = int(has.get("GPU", 0) // gpus if gpus else has.get("CPU", 0) // threads)
            if capacity < 1:
                needed = f"{gpus} GPU(s)" if gpus else f"{threads} cores (this process's torch threads)"
                raise ModelError(f"the cluster is too small for one worker, which takes {needed}: it has {has}")
            remote = self.ray.remote(num_cpus=1 if gpus else threads, num_gpus=gpus, max_restarts=0)(Worker)

            def start() -> tuple[Any, Any]:
                worker = remote.remote(self.ray)
                return worker.open.remote(reopen, threads, memory), worker

            team = self.teams[mark] = Team(mark, start)
            team.starting = dict(start() for _ in range(self.workers or capacity))
        return self.teams[mark]

    def _joined(self, team: Team, ready: Any) -> None:
        worker = team.starting.pop(ready)
        try:
            mark = self.ray.get(ready)
        except self.ray.exceptions.RayTaskError as error:
            raise _cause(error) from None
        except self.ray.exceptions.RayActorError as error:
            team.lost += 1
            self._died(team, "a worker died while it loaded the model", error, team.lost)
            return
        if mark != team.fingerprint:
            raise ModelError(
                "the weights in this process were changed and are not those that workers load: save_pretrained the model to a "
                "folder that all machines see, and load that"
            )
        team.free.append(worker)

    def _died(self, team: Team, what: str, error: Exception, times: int) -> None:
        why = str(error).strip().splitlines()[0]
        if times >= ATTEMPTS:
            raise ModelError(f"{what}, for the {times}rd time: {why}; give workers more memory, or fewer questions per batch") from error
        warnings.warn(f"{what} ({why}): others repeat it, and a new worker starts if possible", ClusterWarning, stacklevel=4)
        team.starting.update([team.start()])


def _devices(vlm: VLM) -> list[Any]:
    placed = getattr(vlm.hf_model, "hf_device_map", None)
    return list(placed.values()) if placed else [vlm.device]


def _cause(error: Any) -> Exception:
    """The worker's error, as it would have been raised in this process."""
    cause = error.cause
    return cause if isinstance(cause, ScaleInterpError) else error
