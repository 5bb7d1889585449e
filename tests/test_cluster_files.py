"""The files in cluster/: valid by their schemas, and what they run is what the jobs take and the project needs."""

import ast
import copy
import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray import autoscaler
from ray.autoscaler._private.util import prepare_config, validate_config

from jobs import cli, generate
from pipeline.execution.cluster import Cluster

ROOT = Path(__file__).parents[1]
LAUNCHER = ROOT / "cluster/cluster.yaml"
MANIFEST = ROOT / "cluster/rayjob.yaml"
SCHEMA = json.loads(Path(__file__).with_name("rayjob_schema.json").read_text())
IMAGE = re.compile(r"rayproject/ray:(\d+\.\d+\.\d+)-py3\d+(-gpu)?")


@pytest.fixture(scope="module")
def launcher() -> dict:
    return yaml.safe_load(LAUNCHER.read_text())


@pytest.fixture(scope="module")
def account_and_job() -> list[dict]:
    return list(yaml.safe_load_all(MANIFEST.read_text()))


@pytest.fixture(scope="module")
def job(account_and_job: list[dict]) -> dict:
    return account_and_job[1]


def needed() -> set[str]:
    """What the nodes need beside Ray itself, which is in the image."""
    text = (ROOT / "pyproject.toml").read_text()
    found = {
        name: re.search(rf"^{name} = (\[.*?\])$", text, re.DOTALL | re.MULTILINE) for name in ("dependencies", "gcs")
    }
    packages = [package for match in found.values() for package in ast.literal_eval(match[1])]
    return {package for package in packages if not package.startswith("ray[")}


def check_command(command: str, gpus: int) -> None:
    """It is a command of ours, and waits for all GPUs: a cluster that has none yet would be taken for one of CPUs."""
    python, flag, module, *arguments = shlex.split(command)
    assert (python, flag, module) == ("python", "-m", "jobs.generate")
    options = cli.parse(generate.Options, arguments)
    assert options.out.startswith("gs://")
    assert Cluster(local=False, cpus=0, gpus=0).has_gpu(options.device)
    assert options.workers == Cluster(local=False, cpus=0, gpus=gpus).gpu_room(options.gpus_per_worker)


def check_images(images: list[str], version: str | None = None) -> None:
    found = [IMAGE.fullmatch(image) for image in images]
    assert all(found), images
    (only,) = {match[1] for match in found} | ({version} if version else set())
    assert tuple(map(int, only.split("."))) >= (2, 56)
    assert [bool(match[2]) for match in found] == [False, True]  # the head has no GPU, the workers have


def test_ray_takes_the_launchers_file(launcher):
    jsonschema.validate(launcher, json.loads((Path(autoscaler.__file__).parent / "ray-schema.json").read_text()))
    ready = prepare_config(copy.deepcopy(launcher))  # as `ray up` goes on, with Ray's defaults
    validate_config(ready)
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(ready | {"max_worker": 3})


def test_the_launchers_machines_come_from_none_and_have_a_gpu_each(launcher):
    types = dict(launcher["available_node_types"])
    assert types.pop(launcher["head_node_type"])["resources"] == {"CPU": 0}
    ((_, workers),) = types.items()
    assert (workers["min_workers"], workers["max_workers"]) == (0, launcher["max_workers"])
    assert workers["resources"]["GPU"] == 1
    assert workers["node_config"]["machineType"] == "g2-standard-8"
    check_images([launcher["docker"]["head_image"], launcher["docker"]["worker_image"]])


def test_the_launchers_nodes_get_what_the_project_needs(launcher):
    (command,) = launcher["setup_commands"]
    assert set(shlex.split(command)[3:]) == needed()


def test_the_command_in_the_launchers_file_waits_for_its_gpus(launcher):
    (command,) = re.findall(r"^# +(python -m .*)$", LAUNCHER.read_text(), re.MULTILINE)
    check_command(command, launcher["max_workers"])


def test_the_manifest_is_a_rayjob(account_and_job):
    account, job = account_and_job
    jsonschema.validate(job, SCHEMA)
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert (account["apiVersion"], account["kind"]) == ("v1", "ServiceAccount")
    assert {group["template"]["spec"]["serviceAccountName"] for group in groups} == {account["metadata"]["name"]}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["spec", "entryPoint"], "python"),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 0, "maxReplicas"], "8"),
        (["spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"], 0),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 0, "template"], {}),
        (["spec", "submissionMode"], "Job"),
    ],
)
def test_a_mistake_in_the_manifest_is_found(job, path, value):
    broken = place = copy.deepcopy(job)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


def test_the_manifests_machines_come_from_none_and_have_a_gpu_each(job):
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert (workers["replicas"], workers["minReplicas"]) == (0, 0)
    (head_container,), (container,) = (group["template"]["spec"]["containers"] for group in (head, workers))
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    check_images([head_container["image"], container["image"]], cluster["rayVersion"])
    check_command(job["spec"]["entrypoint"], workers["maxReplicas"])


def test_the_manifests_job_gets_the_code_and_what_it_needs(job):
    environment = yaml.safe_load(job["spec"]["runtimeEnvYAML"])
    assert environment["working_dir"].startswith("gs://")
    assert environment["working_dir"].endswith(".zip")
    assert set(environment["pip"]) == needed()
