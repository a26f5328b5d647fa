"""Jobs whose workers note where they run, on clusters that are not what they seem.

`python -m helpers.placed gpus FOLDER CORPUS BASE`: all jobs and a server of two replicas, on two
GPUs that are not there. `python -m helpers.placed late FOLDER CORPUS ADDRESS`: an encoding on GPUs
that join, whose first decode task ends when a second has begun. The file that NOTES names gets a
line of JSON for each device that a worker asked for, and for each task that decoded or wrote.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

NOTES = "TEST_SHEEN_NOTES"
TOGETHER = "TEST_SHEEN_TOGETHER"
"""Decode tasks that wait for one another, if it is set."""
GPUS = 2
WAIT_S = 600.0


def notes(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def note(**what: Any) -> None:
    with open(os.environ[NOTES], "a") as file:
        file.write(json.dumps(what) + "\n")


def wait_for_others() -> None:
    """Until as many decode tasks as TOGETHER says have begun."""
    deadline = time.monotonic() + WAIT_S
    while sum(line.get("task") == "decode_blocks" for line in notes(Path(os.environ[NOTES]))) < int(
        os.environ.get(TOGETHER, "1")
    ):
        if time.monotonic() > deadline:
            raise TimeoutError("no other decode task ran beside this one")
        time.sleep(0.05)


def record() -> None:
    """In every worker's process, before its work. Devices that it opens are the CPU."""
    import ray

    from sheen.encode import output, stages
    from sheen.runs import device

    def open_device(index: int | None) -> Any:
        import torch

        # What asked for the device, two calls up: `EncodeWorker.__init__`, say.
        worker = sys._getframe(2).f_code.co_qualname.partition(".")[0]
        visible = os.environ.get(device.VISIBLE, "")
        context = ray.get_runtime_context()
        note(
            worker=worker,
            gpu=None if index is None else visible.split(",")[index],
            reserved=context.get_accelerator_ids()["GPU"],
            cpus=context.get_assigned_resources().get("CPU", 0),
            node=context.get_node_id(),
            process=os.getpid(),
        )
        return torch.device("cpu")

    def noted(work: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(work)
        def call(*given: Any, **named: Any) -> Any:
            context = ray.get_runtime_context()
            cpus = context.get_assigned_resources().get("CPU", 0)
            note(task=work.__name__, node=context.get_node_id(), cpus=cpus)
            if work.__name__ == "decode_blocks":
                wait_for_others()
            return work(*given, **named)

        return call

    device.open_device = open_device
    stages.decode_blocks = noted(stages.decode_blocks)
    output.write_blocks = noted(output.write_blocks)


def runtime_env() -> dict[str, Any]:
    from sheen.runs.cluster import WORKER_ENV

    told = {
        name: os.environ[name] for name in (NOTES, TOGETHER, "PYTHONPATH") if name in os.environ
    }
    return {
        "env_vars": WORKER_ENV | told,
        "worker_process_setup_hook": "helpers.placed.record",
    }


def late(folder: Path, corpus: Path, address: str) -> None:
    import ray

    from helpers.example import CODEC
    from sheen.encode.config import EncodeConfig
    from sheen.encode.job import run

    ray.init(address, runtime_env=runtime_env())
    output = str(folder / "codes")
    workers: dict[str, Any] = {"gpu": True, "num_workers": GPUS}
    run(EncodeConfig(input=[str(corpus)], output=output, codec=str(CODEC), **workers))


def gpus(folder: Path, corpus: Path, base: Path) -> None:
    import ray

    from helpers.example import CODEC, VOICE
    from helpers.recogniser import tiny_en
    from helpers.training import train_config
    from sheen.encode import job as encoding
    from sheen.encode.config import EncodeConfig
    from sheen.evaluate import job as evaluation
    from sheen.evaluate.config import EvaluateConfig
    from sheen.prepare import job as preparing
    from sheen.prepare.config import PrepareConfig
    from sheen.train import job as training
    from sheen.train.codec import job as codec_training
    from sheen.train.codec.config import CodecTrainConfig

    ray.init(
        "local",
        num_cpus=3,
        num_gpus=GPUS,
        include_dashboard=False,
        runtime_env=runtime_env(),
    )
    workers: dict[str, Any] = {"gpu": True, "num_workers": GPUS}
    prepared = str(folder / "prepared")
    preparing.run(PrepareConfig(input=[str(corpus)], output=prepared, asr=tiny_en(), **workers))
    codes, run = folder / "codes", folder / "train"
    encoding.run(EncodeConfig(input=[str(corpus)], output=str(codes), codec=str(CODEC), **workers))
    training.run(
        train_config(codes, base, run, max_steps=1, accumulation=1, cpus_per_worker=0.5, **workers)
    )
    codec_training.run(
        CodecTrainConfig(
            data=str(corpus), codec=str(CODEC), output=str(folder / "codec"), max_steps=1,
            segments=1, segment_seconds=0.2, eval_recordings=0, trackers=[], cpus_per_worker=0.5,
            **workers,
        )
    )  # fmt: skip
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"text": "one", "speaker": VOICE}) + "\n" for _ in range(8))
    )
    evaluation.run(
        EvaluateConfig(
            model=str(run / "checkpoint"), prompts=str(folder / "prompts.jsonl"), asr=None,
            output=str(folder / "spoken"), max_seconds=0.2, **workers,
        )
    )  # fmt: skip
    serve_replicas(str(run / "checkpoint"))
    ray.shutdown()


def serve_replicas(model: str) -> None:
    from ray import serve

    from sheen.serve.app import SpeechService
    from sheen.serve.config import ServeArgs

    args = ServeArgs(model=model, auth="none", slots=1, max_seconds=0.5)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    service = SpeechService.options(  # type: ignore[attr-defined]
        num_replicas=GPUS, ray_actor_options={"num_cpus": 0.5, "num_gpus": 1}
    )
    serve.run(service.bind(args, model, frozenset()), name="sheen")
    serve.shutdown()


if __name__ == "__main__":
    kind, folder, corpus, other = sys.argv[1:]
    if kind == "late":
        late(Path(folder), Path(corpus), other)
    else:
        gpus(Path(folder), Path(corpus), Path(other))
