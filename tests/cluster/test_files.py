"""The files of cluster/ against those who read them: Ray's launcher, KubeRay's CRDs, our settings and command line."""

import copy
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from prvr_ray.cli.main import build_parser
from prvr_ray.config import SECTIONS, Config, resolve

REPOSITORY = Path(__file__).parents[2]
CLUSTER = REPOSITORY / "cluster"
LAUNCHER_FILES = ["aws.yaml", "gcp.yaml"]
STAGES = ["ingest", "train", "tune", "index", "score", "evaluate"]
RAY_VERSION = re.search(r"^ray==(.*)$", (REPOSITORY / "constraints.txt").read_text(), re.M)[1]

Values = dict[str, Any]


def read(name: str) -> Values:
    return yaml.safe_load((CLUSTER / name).read_text())


def cluster_specs() -> dict[str, Values]:
    """The spec of a Ray cluster in every KubeRay manifest, by file name."""
    specs = {path.name: yaml.safe_load(path.read_text())["spec"] for path in sorted((CLUSTER / "kuberay").glob("*"))}
    return {name: spec.get("rayClusterSpec", spec) for name, spec in specs.items()}


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_the_launcher_accepts_the_file(name):
    validate_config(prepare_config(read(name)))


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_workers_start_from_none_and_the_head_does_no_work(name):
    config = prepare_config(read(name))
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert all(node["min_workers"] == 0 and node["max_workers"] > 0 for node in types.values())
    assert sum(node["max_workers"] for node in types.values()) >= config["max_workers"] - 8
    assert config["idle_timeout_minutes"] <= 10
    gpu = [node for node in types.values() if node["resources"].get("GPU")]
    spot, on_demand = sorted(gpu, key=lambda node: -node.get("priority", 0))
    assert spot["resources"] == on_demand["resources"]
    assert is_spot(spot["node_config"])
    assert not is_spot(on_demand["node_config"])
    assert not is_spot(head["node_config"])


def is_spot(node: Values) -> bool:
    [scheduling] = node.get("scheduling", [{}])
    return "spot" in (
        node.get("InstanceMarketOptions", {}).get("MarketType"),
        scheduling.get("provisioningModel", "").lower(),
    )


def test_spot_machines_of_google_cloud_have_no_limit_of_a_day_and_leave_no_disk():
    """`preemptible` would end a machine after 24 hours; Google refuses spot machines that restart by themselves."""
    nodes = [node["node_config"] for node in read("gcp.yaml")["available_node_types"].values()]
    spot = [node["scheduling"][0] for node in nodes if is_spot(node)]
    assert len(spot) == 2
    for scheduling in spot:
        assert "preemptible" not in scheduling
        assert (scheduling["instanceTerminationAction"], scheduling["automaticRestart"]) == ("DELETE", False)
        assert scheduling["onHostMaintenance"] == "TERMINATE"


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_all_nodes_are_in_one_zone(name):
    """Decoded frames travel between nodes, and traffic between zones is billed."""
    assert "," not in read(name)["provider"]["availability_zone"]


def test_disks_of_aws_have_a_throughput_that_their_iops_support():
    """gp3 has 125 MB/s unless more is asked for, 3,000 IOPS, and at most 0.25 MB/s an IOPS."""
    for node in read("aws.yaml")["available_node_types"].values():
        [disk] = node["node_config"]["BlockDeviceMappings"]
        assert 125 < disk["Ebs"]["Throughput"] <= 0.25 * disk["Ebs"].get("Iops", 3000)


def test_machines_on_google_cloud_name_a_kind_of_disk_in_their_zone():
    """Google's default is pd-standard, which its G2 machines do not take."""
    config = read("gcp.yaml")
    for node in config["available_node_types"].values():
        [disk] = node["node_config"]["disks"]
        zone = config["provider"]["availability_zone"]
        assert disk["initializeParams"]["diskType"] == f"zones/{zone}/diskTypes/pd-balanced"


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_workers_start_what_the_image_holds(name):
    commands = " ".join(read(name)["worker_start_ray_commands"])
    scripts = re.findall(r"/opt/prvr/\S+", commands)
    assert scripts
    assert all(in_repository(script).is_file() for script in scripts)


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_workers_have_disks_and_an_object_store_that_fits_the_shared_memory(name):
    """Ray starts a container with shared memory of 30 % of its node's memory."""
    config = read(name)
    memory_gib = {"c7i.8xlarge": 64, "n2-standard-32": 128, "g6.2xlarge": 32, "g2-standard-8": 32}
    for key, node in config["available_node_types"].items():
        (disk,) = node["node_config"].get("BlockDeviceMappings") or node["node_config"]["disks"]
        size = disk["Ebs"]["VolumeSize"] if "Ebs" in disk else int(disk["initializeParams"]["diskSizeGb"])
        assert size >= 100
        if key != config["head_node_type"]:
            memory = memory_gib[machine(node)] * 2**30
            assert memory / 8 < node["resources"]["object_store_memory"] < 0.3 * memory


def machine(node: Values) -> str:
    return node["node_config"].get("InstanceType") or node["node_config"]["machineType"]


def test_no_node_of_aws_gets_the_security_group_that_ray_opens_to_everyone():
    assert all(node["node_config"]["SecurityGroupIds"] for node in read("aws.yaml")["available_node_types"].values())


def test_the_image_holds_pinned_what_the_launchers_of_both_clouds_need():
    """Ray's autoscaler runs in the head's container: boto3 is a dependency, Google's client an extra."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert "'.[gcp]'" in (CLUSTER / "Dockerfile").read_text()
    pinned = re.findall(r"^([\w.-]+)==", (REPOSITORY / "constraints.txt").read_text(), re.M)
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["gcp"]]:
        assert re.match(r"[\w.-]+", requirement)[0].lower() in [name.lower() for name in pinned]


def test_the_image_holds_the_compiler_that_triton_calls():
    [installed] = re.findall(r"apt-get install .*recommends (.*) \\", (CLUSTER / "Dockerfile").read_text())
    assert {"gcc", "libc6-dev"} <= set(installed.split())


def test_the_table_of_costs_names_the_machines_of_the_files():
    rows = re.findall(r"^\| (head|decode|gpu) \| (\S+) \|.*?\| (\S+) \|", (CLUSTER / "README.md").read_text(), re.M)
    assert len(rows) == 3
    for kind, *machines in rows:
        for file, named in zip(LAUNCHER_FILES, machines, strict=True):
            types = read(file)["available_node_types"]
            assert {machine(node) for key, node in types.items() if key.partition("-")[0] == kind} == {named}


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_nodes_carry_roles_instead_of_keys(name):
    text = (CLUSTER / name).read_text()
    assert not re.search(r"AKIA|aws_secret|private_key|credentials:", text)
    for node in read(name)["available_node_types"].values():
        assert node["node_config"].get("IamInstanceProfile") or node["node_config"].get("serviceAccounts")


@pytest.mark.parametrize("kind", ["raycluster", "rayjob"])
def test_manifests_fit_the_crds_with_unknown_fields_refused(test_data, kind):
    schema = strict_schema(test_data / "kuberay" / f"ray.io_{kind}s.yaml")
    manifests = sorted((CLUSTER / "kuberay").glob(f"{kind}*.yaml"))
    assert len(manifests) == {"raycluster": 1, "rayjob": len(STAGES)}[kind]
    for path in manifests:
        jsonschema.Draft7Validator(schema).validate(yaml.safe_load(path.read_text()))


def test_a_typo_in_a_manifest_is_refused(test_data):
    schema = strict_schema(test_data / "kuberay" / "ray.io_rayjobs.yaml")
    manifest = yaml.safe_load((CLUSTER / "kuberay/rayjob-score.yaml").read_text())
    manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.Draft7Validator(schema).validate(manifest)


def strict_schema(crd: Path) -> Values:
    """The schema of a CRD's version v1, closed wherever it lists properties."""
    versions = yaml.load(crd.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]["versions"]
    schema = next(version for version in versions if version["name"] == "v1")["schema"]["openAPIV3Schema"]
    return close(schema, is_top=True)


def close(schema: Any, is_top: bool = False) -> Any:
    if isinstance(schema, list):
        return [close(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    closed = {key: close(value) for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if isinstance(schema.get("properties"), dict) and "type" in schema and not is_top:
        closed["additionalProperties"] = False
    return closed


def test_every_manifest_describes_the_same_cluster():
    specs = cluster_specs()
    assert len(specs) == 1 + len(STAGES)
    assert all(spec == specs["raycluster.yaml"] for spec in specs.values())


def test_pods_of_the_head_stay_and_those_of_workers_tell_ray_of_their_end():
    spec = cluster_specs()["raycluster.yaml"]
    head = spec["headGroupSpec"]
    (term,) = affinity(head)["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert {rule["operator"] for rule in term["matchExpressions"]} == {"NotIn"}
    assert head["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        wishes = affinity(group)["preferredDuringSchedulingIgnoredDuringExecution"]
        assert [rule["key"] for wish in wishes for rule in wish["preference"]["matchExpressions"]] == [
            rule["key"] for rule in term["matchExpressions"]
        ]
        (container,) = group["template"]["spec"]["containers"]
        python, script, cloud = container["lifecycle"]["preStop"]["exec"]["command"]
        assert (python, in_repository(script), cloud) == ("python", CLUSTER / "spot_notice.py", "kubernetes")
        assert group["minReplicas"] == 0 < group["maxReplicas"]


def affinity(group: Values) -> Values:
    return group["template"]["spec"]["affinity"]["nodeAffinity"]


def test_pods_have_a_service_account_and_shared_memory_for_the_object_store():
    spec = cluster_specs()["raycluster.yaml"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        assert group["template"]["spec"]["serviceAccountName"] == "prvr-ray"
    for group in spec["workerGroupSpecs"]:
        (volume,) = group["template"]["spec"]["volumes"]
        gib = int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi"))
        assert int(group["rayStartParams"]["object-store-memory"]) < gib * 2**30


@pytest.mark.parametrize("stage", STAGES)
def test_rayjobs_retry_on_a_new_cluster_within_a_deadline_and_clean_up(stage):
    spec = yaml.safe_load((CLUSTER / f"kuberay/rayjob-{stage}.yaml").read_text())["spec"]
    assert spec["backoffLimit"] > 0 == spec["submitterConfig"]["backoffLimit"]
    assert spec["activeDeadlineSeconds"] >= 3600
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] <= 3600


def test_rayjobs_differ_only_in_name_command_and_deadline():
    texts = {stage: (CLUSTER / f"kuberay/rayjob-{stage}.yaml").read_text() for stage in STAGES}
    own = r"(?m)^    (python|--).*\n|activeDeadlineSeconds: .*|(?<=[ -]){}\b"
    assert len({re.sub(own.format(stage), "", text) for stage, text in texts.items()}) == 1


def test_one_ray_version_in_images_manifests_and_constraints():
    for name in LAUNCHER_FILES:
        assert tag(read(name)["docker"]["image"]) == RAY_VERSION
    spec = cluster_specs()["raycluster.yaml"]
    assert spec["rayVersion"] == RAY_VERSION
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        for container in group["template"]["spec"]["containers"]:
            assert tag(container["image"]) == RAY_VERSION
    assert f"prvr-ray:{RAY_VERSION} " in (CLUSTER / "Dockerfile").read_text()
    assert set(re.findall(r"prvr-ray:(\d[\d.]*\d)", (CLUSTER / "README.md").read_text())) == {RAY_VERSION}


def tag(image: str) -> str:
    return image.rpartition(":")[2]


@pytest.mark.parametrize("stage", STAGES)
def test_each_rayjob_starts_a_script_that_is_there_with_options_that_it_takes(stage):
    manifest = yaml.safe_load((CLUSTER / f"kuberay/rayjob-{stage}.yaml").read_text())
    python, script, *options = shlex.split(manifest["spec"]["entrypoint"])
    assert python == "python"
    assert in_repository(script) == REPOSITORY / f"jobs/{stage}.py"
    settings = in_repository(options[options.index("--config") + 1])
    resolve(yaml.safe_load(settings.read_text()))
    build_parser().parse_args([stage, *options])


def in_repository(path: str) -> Path:
    """A path of the image as the one that the Dockerfile copies there."""
    inside = path.removeprefix("/opt/prvr/")
    copied = re.findall(r"^COPY (.*) \S+$", (CLUSTER / "Dockerfile").read_text(), re.M)
    sources = [source for line in copied for source in line.split()]
    assert any(inside == source or inside.startswith(f"{source}/") for source in sources), inside
    return REPOSITORY / inside


@pytest.mark.parametrize("stage", STAGES)
def test_scripts_are_short_and_say_how_to_start_them(stage):
    text = (REPOSITORY / f"jobs/{stage}.py").read_text()
    assert len(text.splitlines()) <= 40
    command = re.search(r"python jobs/(.*)", text)[1]
    name, *options = shlex.split(command)
    assert name == f"{stage}.py"
    build_parser().parse_args([stage, *options])


def test_everything_that_the_image_copies_is_there():
    copied = re.findall(r"^COPY (.*)$", (CLUSTER / "Dockerfile").read_text(), re.M)
    for line in copied:
        for source in line.split()[:-1]:
            assert (REPOSITORY / source).exists()


def node_types() -> dict[str, list[Values]]:
    """Of every cluster file the worker types: resources in Ray's names, and labels."""
    types = {}
    for name in LAUNCHER_FILES:
        config = read(name)
        workers = [node for key, node in config["available_node_types"].items() if key != config["head_node_type"]]
        types[name] = [{**node["resources"], "labels": node["labels"]} for node in workers]
    groups = cluster_specs()["raycluster.yaml"]["workerGroupSpecs"]
    types["kuberay"] = [
        {"CPU": int(limits["cpu"]), "GPU": int(limits.get("nvidia.com/gpu", 0)), "labels": group["labels"]}
        for group in groups
        for limits in [group["template"]["spec"]["containers"][0]["resources"]["limits"]]
    ]
    return types


def workers(config: Config) -> dict[str, Values]:
    """What each kind of worker asks for, read from the names of the settings: PREFIX_cpus, _gpus and _labels."""
    wanted = {}
    for section in SECTIONS:
        settings = getattr(config, section)
        for field in type(settings).model_fields:
            if field.endswith("_cpus"):
                prefix = field.removesuffix("_cpus")
                wanted[f"{section}.{prefix}"] = {
                    "CPU": getattr(settings, field),
                    "GPU": getattr(settings, f"{prefix}_gpus", 0),
                    "labels": getattr(settings, f"{prefix}_labels", {}),
                }
    return wanted


@pytest.mark.parametrize("settings", ["defaults", "settings.yaml"])
def test_each_stages_resources_fit_a_node_type_of_each_cluster(settings):
    config = Config() if settings == "defaults" else resolve(read(settings))
    wanted = workers(config)
    kinds = "ingest.decoder ingest.encoder train.worker tune.trial index.indexer score.scorer evaluate.evaluator"
    assert set(kinds.split()) <= set(wanted)
    for cluster, types in node_types().items():
        for name, worker in wanted.items():
            assert any(fits(worker, node) for node in types), f"no node type of {cluster} holds one {name}: {worker}"


def fits(worker: Values, node: Values) -> bool:
    has_labels = worker["labels"].items() <= node["labels"].items()
    return has_labels and all(worker[name] <= node.get(name, 0) for name in ("CPU", "GPU"))


def test_on_a_cluster_decoding_goes_to_cpu_nodes_and_encoding_to_gpu_nodes():
    wanted = workers(resolve(read("settings.yaml")))
    for types in node_types().values():
        assert not any(fits(wanted["ingest.decoder"], node) for node in types if node.get("GPU"))
        assert not any(fits(wanted["ingest.encoder"], node) for node in types if not node.get("GPU"))


def test_the_launcher_refuses_a_typo():
    config = copy.deepcopy(read("aws.yaml"))
    config["available_node_types"]["decode"]["max_worker"] = 3
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(config))
