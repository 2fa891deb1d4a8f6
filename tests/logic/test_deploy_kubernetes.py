"""The manifests of deploy/kubernetes: of Kubernetes' schemas, agreeing with each other, and with
command lines that this program takes. Nothing here has a cluster."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml

from megainfer.cli import app
from megainfer.frontend.serving_options import ServingOptions
from megainfer.hosts.token import VARIABLE
from server.http.access import PROBES

ROOT = Path(__file__).parents[2] / "deploy/kubernetes"
VERSION = "1.37"
NAME, COMPONENT = "app.kubernetes.io/name", "app.kubernetes.io/component"
OF_THE_CONTROLLER = {"LWS_LEADER_ADDRESS", "LWS_GROUP_SIZE", "LWS_WORKER_INDEX"}
"""What LeaderWorkerSet adds to every container."""
PROBE_SECONDS = 5
"""What /ready may take for its token."""

TEXT, TEMPLATE = {"type": "string"}, {"type": "object", "required": ["spec"]}


def record(required: tuple[str, ...], **fields: object) -> dict[str, Any]:
    """A schema of an object with these fields and no others."""
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def count(minimum: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": minimum}


LEADER_WORKER_SET = record(
    ("leaderWorkerTemplate",),
    replicas=count(0),
    startupPolicy={"enum": ["LeaderCreated", "LeaderReady"]},
    networkConfig=record(("subdomainPolicy",), subdomainPolicy=TEXT),
    rolloutStrategy={"type": "object"},
    leaderWorkerTemplate=record(
        ("workerTemplate",),
        size=count(1),
        restartPolicy={"enum": ["RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"]},
        leaderTemplate=TEMPLATE,
        workerTemplate=TEMPLATE,
    ),
)
"""Fields of leaderworkerset.x-k8s.io/v1 that concern us; pods are checked by Kubernetes' schema."""
PARAMS = {"type": "object", "additionalProperties": TEXT}
RAY_JOB = record(
    ("entrypoint", "rayClusterSpec"),
    entrypoint=TEXT,
    shutdownAfterJobFinishes={"type": "boolean"},
    rayClusterSpec=record(
        ("headGroupSpec",),
        rayVersion=TEXT,
        headGroupSpec=record(("template",), rayStartParams=PARAMS, template=TEMPLATE),
        workerGroupSpecs={
            "type": "array",
            "items": record(
                ("groupName", "maxReplicas", "minReplicas", "template"),
                groupName=TEXT,
                replicas=count(0),
                minReplicas=count(0),
                maxReplicas=count(1),
                rayStartParams=PARAMS,
                template=TEMPLATE,
            ),
        },
    ),
)
"""Of ray.io/v1, likewise."""


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return found


@pytest.fixture(scope="module")
def group() -> dict[str, Any]:
    found: dict[str, Any] = read("leaderworkerset.yaml")["spec"]["leaderWorkerTemplate"]
    return found


@pytest.fixture(scope="module")
def ray_job() -> dict[str, Any]:
    found: dict[str, Any] = read("kuberay/rayjob.yaml")["spec"]
    return found


def templates() -> Iterator[tuple[str, dict[str, Any]]]:
    group = read("leaderworkerset.yaml")["spec"]["leaderWorkerTemplate"]
    yield "leader", group["leaderTemplate"]
    yield "worker", group["workerTemplate"]
    cluster = read("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]
    yield "ray head", cluster["headGroupSpec"]["template"]
    for workers in cluster["workerGroupSpecs"]:
        yield "ray worker", workers["template"]


TEMPLATES = dict(templates())


def options_of(args: list[str]) -> dict[str, Any]:
    """What the program's own parser makes of a command line; it raises for what it doesn't take."""
    command = typer.main.get_command(app).commands[args[0]]  # type: ignore[attr-defined]  # a group
    found: dict[str, Any] = command.make_context(args[0], list(args[1:])).params
    return found


def container(template: Mapping[str, Any]) -> dict[str, Any]:
    (only,) = template["spec"]["containers"]
    found: dict[str, Any] = only
    return found


def leader_and_worker(group: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return container(group["leaderTemplate"]), container(group["workerTemplate"])


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_pods_are_of_kubernetes_schema(template: dict[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", **template}
    kubernetes_validate.validate(pod, VERSION, strict=True)


@pytest.mark.parametrize("name", ["service.yaml", "networkpolicy.yaml"])
def test_other_objects_are_of_kubernetes_schema(name: str) -> None:
    kubernetes_validate.validate(read(name), VERSION, strict=True)


def test_a_field_that_is_misspelt_would_be_found() -> None:
    service = read("service.yaml")
    service["spec"]["ports"][0]["targetport"] = "http"
    with pytest.raises(kubernetes_validate.ValidationError, match="targetport"):
        kubernetes_validate.validate(service, VERSION, strict=True)


@pytest.mark.parametrize(
    ("name", "kind", "schema"),
    [
        ("leaderworkerset.yaml", "leaderworkerset.x-k8s.io/v1 LeaderWorkerSet", LEADER_WORKER_SET),
        ("kuberay/rayjob.yaml", "ray.io/v1 RayJob", RAY_JOB),
    ],
)
def test_custom_resources_have_only_fields_that_exist(
    name: str, kind: str, schema: dict[str, Any]
) -> None:
    found = read(name)
    assert f"{found['apiVersion']} {found['kind']}" == kind
    jsonschema.validate(found["spec"], schema)


def test_the_base_names_every_manifest_beside_it() -> None:
    base = read("kustomization.yaml")
    assert sorted(base["resources"]) == sorted(
        path.name for path in ROOT.glob("*.yaml") if path.name != "kustomization.yaml"
    )
    (image,) = base["images"]
    pods = read("leaderworkerset.yaml")["spec"]["leaderWorkerTemplate"]
    for template in (pods["leaderTemplate"], pods["workerTemplate"]):
        assert container(template)["image"] == image["name"]


def test_the_overlay_with_gpus_has_a_node_on_each() -> None:
    overlay = read("gpus/kustomization.yaml")
    assert overlay["resources"] == [".."]
    (patch,) = overlay["patches"]
    manifest = json.loads(json.dumps(read("leaderworkerset.yaml")))  # nothing of it shared
    assert patch["target"] == {"kind": manifest["kind"], "name": manifest["metadata"]["name"]}
    for change in yaml.safe_load(patch["patch"]):
        apply(manifest, **change)
    group = manifest["spec"]["leaderWorkerTemplate"]
    leader, worker = leader_and_worker(group)
    pod = {"apiVersion": "v1", "kind": "Pod", **group["workerTemplate"]}
    kubernetes_validate.validate(pod, VERSION, strict=True)
    each = int(worker["resources"]["limits"]["nvidia.com/gpu"])
    serve = options_of(leader["args"])
    assert serve["attn_gpus"] + serve["ffn_gpus"] == serve["agents"] * each


def apply(manifest: dict[str, Any], op: str, path: str, value: str) -> None:
    """A step of a JSON patch."""
    *outer, last = (word.replace("~1", "/") for word in path.removeprefix("/").split("/"))
    place: Any = manifest
    for word in outer:
        place = place[int(word) if isinstance(place, list) else word]
    key = int(last) if isinstance(place, list) else last
    has = key < len(place) if isinstance(place, list) else key in place
    assert has == (op == "replace"), path
    place[key] = value


def test_command_lines_are_taken_and_agree(group: dict[str, Any]) -> None:
    leader, worker = leader_and_worker(group)
    serve, agent = options_of(leader["args"]), options_of(worker["args"])
    assert leader["args"][0] == "serve"
    assert worker["args"][0] == "agent"
    assert serve["agents"] == group["size"] - 1
    assert port_of(serve["listen_agents"]) == port_of(agent["join"])
    assert agent["join"].startswith("$(LWS_LEADER_ADDRESS):")
    assert serve["host"] == "0.0.0.0"
    assert agent["drain_timeout"] > serve["drain_timeout"] == ServingOptions().drain_seconds


def test_ports_are_those_of_the_command_lines(group: dict[str, Any]) -> None:
    leader, _ = leader_and_worker(group)
    ports = {port["name"]: port["containerPort"] for port in leader["ports"]}
    options = options_of(leader["args"])
    assert ports == {"http": options["port"], "agents": port_of(options["listen_agents"])}
    (offered,) = read("service.yaml")["spec"]["ports"]
    assert offered["targetPort"] in ports
    (_, for_all) = read("networkpolicy.yaml")["spec"]["ingress"]
    assert [port["port"] for port in for_all["ports"]] == ["http"]


def test_selectors_find_whom_they_mean(group: dict[str, Any]) -> None:
    leader = group["leaderTemplate"]["metadata"]["labels"]
    worker = group["workerTemplate"]["metadata"]["labels"]
    service = read("service.yaml")["spec"]["selector"].items()
    assert service <= leader.items()
    assert not service <= worker.items()
    policy = read("networkpolicy.yaml")["spec"]["podSelector"]["matchLabels"].items()
    assert policy <= leader.items()
    assert policy <= worker.items()


def test_probes_ask_addresses_that_there_are(group: dict[str, Any]) -> None:
    leader, _ = leader_and_worker(group)
    asked = {name: leader[name] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {probe["httpGet"]["path"] for probe in asked.values()} <= PROBES
    assert asked["livenessProbe"]["httpGet"]["path"] == "/live", "no restart for what recovers"
    assert asked["readinessProbe"]["timeoutSeconds"] > PROBE_SECONDS
    start = asked["startupProbe"]
    joining = options_of(leader["args"])["agents_timeout"]
    assert start["periodSeconds"] * start["failureThreshold"] >= joining


def test_a_pods_end_leaves_time_to_drain(group: dict[str, Any]) -> None:
    for template in (group["leaderTemplate"], group["workerTemplate"]):
        pod = container(template)
        drain = options_of(pod["args"])["drain_timeout"]
        before = pod["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert template["spec"]["terminationGracePeriodSeconds"] > before + drain


def test_the_token_is_of_a_secret_and_variables_are_set(group: dict[str, Any]) -> None:
    for pod in leader_and_worker(group):
        environment = {variable["name"]: variable for variable in pod["env"]}
        secret = environment[VARIABLE]["valueFrom"]["secretKeyRef"]
        assert secret == {"name": "megainfer", "key": "token"}
        used = set(re.findall(r"\$\((\w+)\)", " ".join(pod["args"])))
        assert used <= environment.keys() | OF_THE_CONTROLLER


def test_files_that_options_name_are_mounted(group: dict[str, Any]) -> None:
    for template in (group["leaderTemplate"], group["workerTemplate"]):
        pod = container(template)
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in template["spec"]["volumes"]}
        for argument in pod["args"]:
            if argument.startswith("/"):
                assert any(argument.startswith(f"{path}/") for path in mounts.values()), argument


def test_pods_have_no_root_and_ask_for_resources(group: dict[str, Any]) -> None:
    for template in (group["leaderTemplate"], group["workerTemplate"]):
        assert template["spec"]["securityContext"]["runAsNonRoot"]
        pod = container(template)
        assert not pod["securityContext"]["allowPrivilegeEscalation"]
        assert pod["resources"]["requests"].keys() == {"cpu", "memory"}
    worker = container(group["workerTemplate"])["resources"]
    assert worker["requests"] == worker["limits"], "or the kubelet gives no CPUs of its own"
    assert worker["limits"]["cpu"].isdecimal()


def test_the_job_of_ray_starts_what_its_cluster_has(ray_job: dict[str, Any]) -> None:
    program, *args = shlex.split(ray_job["entrypoint"])
    options = options_of(args)
    assert program == "megainfer"
    assert options["launcher"].value == "ray"
    cluster = ray_job["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["replicas"] >= options["agents"]
    limits = container(workers["template"])["resources"]["limits"]
    assert options["ray_cpus"] <= int(limits["cpu"])
    assert options["ray_memory"] <= int(limits["memory"].removesuffix("Gi")) * 2**30
    own = re.findall(r'\\"(\w+)\\": (\d+)', workers["rayStartParams"]["resources"])
    assert [f"{name}={amount}" for name, amount in own] == options["ray_resource"]
    (port,) = container(cluster["headGroupSpec"]["template"])["ports"]
    assert port["containerPort"] == options["port"]
