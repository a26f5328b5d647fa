"""The committed configurations of `serve run`, read by Ray's own schema."""

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from helpers.example import ROOT
from sheen.runs.cluster import WORKER_ENV
from sheen.serve.app import build
from sheen.serve.config import ServeArgs


@pytest.mark.parametrize("file", ["serve_config.yaml", "serve_config.gpu.yaml"])
def test_the_committed_configurations_are_ones_that_ray_and_build_accept(file: str) -> None:
    raw = yaml.safe_load((ROOT / file).read_text("utf-8"))
    schema = ServeDeploySchema.model_validate(raw)
    [application] = schema.applications
    module, name = application.import_path.split(":")
    assert (module, name) == (build.__module__, build.__name__)
    assert application.route_prefix == "/"
    args = ServeArgs.model_validate(application.args)
    assert args.model == ServeArgs().model
    # An open door must be asked for, and behind it is this machine alone.
    assert ServeArgs().auth == "keys"
    assert args.auth == "none"
    assert schema.http_options.host == "127.0.0.1"
    assert application.runtime_env["env_vars"] == WORKER_ENV
    # `build` computes it from args: a number here would silently replace that one.
    [deployment] = application.deployments
    assert "max_ongoing_requests" not in deployment.model_fields_set
    actor = deployment.ray_actor_options
    if file == "serve_config.gpu.yaml":
        # Each replica has a GPU of its own, and more than a laptop's slots.
        assert actor.num_gpus == deployment.num_replicas == 1
        assert args.slots > ServeArgs().slots
        assert args.dtype == "auto"
    else:
        assert not actor.num_gpus
        scaling = deployment.autoscaling_config
        assert scaling["max_replicas"] > scaling["min_replicas"] >= 1
        assert scaling["target_ongoing_requests"] <= args.slots
