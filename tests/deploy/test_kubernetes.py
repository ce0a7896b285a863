"""The manifests: valid, confined, and naming only what the server and the trainer have."""

import functools
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import training.__main__
from protos.realce.v1 import classifier_pb2
from service.__main__ import parser
from service.settings import PREFIX, Settings
from tests.deploy import kustomize
from training.config import RunConfig

ROOT = Path(__file__).parents[2]
OVERLAYS = ROOT / "deploy" / "kubernetes" / "overlays"

SERVING = ("cpu", "gpu")
ALL = (*SERVING, "training")


@functools.cache
def rendered(overlay: str) -> list[dict[str, Any]]:
    return kustomize.render(OVERLAYS / overlay)


def objects(overlay: str, kind: str) -> list[dict[str, Any]]:
    return [one for one in rendered(overlay) if one["kind"] == kind]


def deployment(overlay: str) -> dict[str, Any]:
    (one,) = objects(overlay, "Deployment")
    return one


def server(overlay: str) -> dict[str, Any]:
    (one,) = kustomize.containers(deployment(overlay))
    return one


def environment(overlay: str) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in server(overlay)["env"]}


def job() -> dict[str, Any]:
    (one,) = objects("training", "Job")
    return one


def test_every_overlay_is_tested():
    assert sorted(ALL) == sorted(folder.name for folder in OVERLAYS.iterdir())


@pytest.mark.parametrize("overlay", ALL)
def test_rendered_objects_are_valid_to_the_letter(overlay):
    for one in rendered(overlay):
        kubernetes_validate.validate(one, "1.37", strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("overlay", ALL)
def test_kubectl_renders_the_same_objects(overlay):
    command = ["kubectl", "kustomize", str(OVERLAYS / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    def key(one: dict[str, Any]) -> tuple[str, str]:
        return one["kind"], one["metadata"]["name"]

    theirs = sorted(yaml.safe_load_all(done.stdout), key=key)
    assert theirs == sorted(rendered(overlay), key=key)


@pytest.mark.parametrize("overlay", SERVING)
def test_every_variable_is_a_setting_with_a_possible_value(overlay):
    variables = {
        name.removeprefix(PREFIX).lower(): one.get("value", "2")  # the downward API: whole cores
        for name, one in environment(overlay).items()
        if name.startswith(PREFIX)
    }
    assert variables.keys() <= Settings.model_fields.keys()
    assert {"grpc", "device", "threads", "grace_s"} <= variables.keys()
    Settings(**variables)


@pytest.mark.parametrize("overlay", SERVING)
def test_the_server_takes_the_arguments(overlay):
    parser().parse_args(server(overlay)["args"])


@pytest.mark.parametrize("overlay", SERVING)
def test_ports_services_and_probes_meet_the_server(overlay):
    container = server(overlay)
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    for name, number in ports.items():
        assert environment(overlay)[f"REALCE_{name.upper()}"]["value"] == f"0.0.0.0:{number}"
    services = {"", *(s.full_name for s in classifier_pb2.DESCRIPTOR.services_by_name.values())}
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[name]["grpc"]
        assert probe["port"] == ports["grpc"]
        assert probe.get("service", "") in services
    assert container["readinessProbe"]["grpc"]["service"] == "realce.v1.Classifier"
    for service in objects(overlay, "Service"):
        assert [one["targetPort"] for one in service["spec"]["ports"]] == ["grpc"]
        assert [one["port"] for one in service["spec"]["ports"]] == [ports["grpc"]]
    (policy,) = objects(overlay, "NetworkPolicy")
    assert policy["spec"]["ingress"] == [{"ports": [{"port": name} for name in ports]}]
    told = deployment(overlay)["spec"]["template"]["metadata"]["annotations"]
    assert told["prometheus.io/port"] == str(ports["http"])


@pytest.mark.parametrize("overlay", SERVING)
def test_selectors_find_the_pods(overlay):
    one = deployment(overlay)
    labels = one["spec"]["template"]["metadata"]["labels"].items()
    selectors = [one["spec"]["selector"]["matchLabels"]]
    selectors += [service["spec"]["selector"] for service in objects(overlay, "Service")]
    selectors += [
        o["spec"]["selector"]["matchLabels"] for o in objects(overlay, "PodDisruptionBudget")
    ]
    selectors += [
        o["spec"]["podSelector"]["matchLabels"] for o in objects(overlay, "NetworkPolicy")
    ]
    assert len(selectors) == 5
    assert all(selector and selector.items() <= labels for selector in selectors)


@pytest.mark.parametrize("overlay", SERVING)
def test_the_pod_waits_for_the_drain(overlay):
    pod = deployment(overlay)["spec"]["template"]["spec"]
    leave_s = server(overlay)["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace_s = float(environment(overlay)["REALCE_GRACE_S"]["value"])
    assert pod["terminationGracePeriodSeconds"] >= leave_s + grace_s + 5


@pytest.mark.parametrize("overlay", SERVING)
def test_threads_follow_the_limit(overlay):
    container = server(overlay)
    source = environment(overlay)["REALCE_THREADS"]["valueFrom"]["resourceFieldRef"]
    assert source["containerName"] == container["name"]
    assert source["resource"] == "limits.cpu"
    assert int(container["resources"]["limits"]["cpu"]) >= 1  # whole cores


@pytest.mark.parametrize("overlay", SERVING)
def test_no_service_link_looks_like_a_setting(overlay):
    assert deployment(overlay)["spec"]["template"]["spec"]["enableServiceLinks"] is False


@pytest.mark.parametrize("overlay", ALL)
def test_pods_are_restricted(overlay):
    (workload,) = objects(overlay, "Deployment") + objects(overlay, "Job")
    pod = workload["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert not any("hostPath" in volume for volume in pod["volumes"])
    for container in kustomize.containers(workload):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()


@pytest.mark.parametrize("overlay", ALL)
def test_images_are_targets_of_the_dockerfile_and_run_as_its_user(overlay):
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    (workload,) = objects(overlay, "Deployment") + objects(overlay, "Job")
    for container in kustomize.containers(workload):
        name, _, tag = container["image"].partition(":")
        assert name == "realce"
        assert re.search(rf"^FROM \S+ AS {tag}$", dockerfile, re.MULTILINE)
    context = workload["spec"]["template"]["spec"]["securityContext"]
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}\n" in dockerfile


def test_the_gpu_overlay_asks_for_a_gpu_and_takes_nothing_less():
    assert environment("gpu")["REALCE_DEVICE"]["value"] == "cuda"
    assert server("gpu")["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in server("cpu")["resources"]["limits"]


def test_the_trainer_takes_the_arguments():
    (container,) = kustomize.containers(job())
    arguments = [argument.replace("$(THREADS)", "4") for argument in container["args"]]
    assert "$(THREADS)" in " ".join(container["args"])
    assert [one["name"] for one in container["env"]] == ["THREADS"]
    options = training.__main__.parser().parse_args(arguments)
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    for path in (options.config, options.data_dir, options.run_dir, options.out):
        assert mounts & {str(path), *map(str, path.parents)}


def test_the_job_is_given_a_configuration_that_loads():
    (config,) = objects("training", "ConfigMap")
    run = RunConfig.model_validate(tomllib.loads(config["data"]["run.toml"]))
    assert [source.path for source in run.sources] == ["data/reviews.csv"]
    (container,) = kustomize.containers(job())
    options = training.__main__.parser().parse_args(
        [argument.replace("$(THREADS)", "4") for argument in container["args"]]
    )
    assert options.config.name in config["data"]
    volumes = {one["name"]: one for one in job()["spec"]["template"]["spec"]["volumes"]}
    assert volumes["config"]["configMap"]["name"] == config["metadata"]["name"]


@pytest.mark.parametrize(
    "path", sorted(OVERLAYS.parent.rglob("*.yaml")), ids=lambda path: path.name
)
def test_comments_name_only_settings(path):
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    named = set(re.findall(r"\bREALCE_[A-Z_]+\b", path.read_text()))
    assert named - {"REALCE_SERVICE_HOST"} <= known  # that one is what must not be set
