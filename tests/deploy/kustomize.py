"""The part of kustomize that our overlays use, so that they are tested where kubectl is not.

Refuses whatever it does not know. `test_kubernetes.py` compares it with kubectl where there is one.
"""

import copy
from pathlib import Path
from typing import Any

import yaml

KNOWN = {
    *("apiVersion", "kind", "resources", "images", "patches"),
    *("generatorOptions", "configMapGenerator"),
}


def render(folder: Path) -> list[dict[str, Any]]:
    """The objects of a kustomization."""
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert plan.keys() <= KNOWN, plan.keys() - KNOWN
    objects: list[dict[str, Any]] = []
    for name in plan.get("resources", ()):
        path = folder / name
        if path.is_dir():
            objects += render(path)
        else:
            objects += [one for one in yaml.safe_load_all(path.read_text()) if one]
    objects += [_config_map(folder, plan, one) for one in plan.get("configMapGenerator", ())]
    for patch in plan.get("patches", ()):
        assert patch.keys() == {"target", "patch"}
        (target,) = (one for one in objects if _is(one, **patch["target"]))
        for operation in yaml.safe_load(patch["patch"]):
            _apply(target, **operation)
    for image in plan.get("images", ()):
        assert image.keys() == {"name", "newTag"}
        for one in objects:
            for container in containers(one):
                if container["image"] == image["name"]:
                    container["image"] += f":{image['newTag']}"
    return objects


def containers(one: dict[str, Any]) -> list[dict[str, Any]]:
    """The containers of an object's pods, if it has any."""
    spec: dict[str, Any] = one.get("spec", {}).get("template", {}).get("spec", {})
    return [*spec.get("initContainers", ()), *spec.get("containers", ())]


def _is(one: dict[str, Any], kind: str, name: str) -> bool:
    return bool(one["kind"] == kind and one["metadata"]["name"] == name)


def _config_map(folder: Path, plan: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    assert plan["generatorOptions"] == {"disableNameSuffixHash": True}
    assert one.keys() == {"name", "files"}
    data = {name: (folder / name).read_text() for name in one["files"]}
    metadata = {"name": one["name"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _apply(target: Any, op: str, path: str, value: Any) -> None:
    """One operation of RFC 6902."""
    *parents, last = path.removeprefix("/").split("/")
    for key in parents:
        target = target[int(key)] if isinstance(target, list) else target[key]
    value = copy.deepcopy(value)
    if isinstance(target, list):
        assert (op, last) == ("add", "-")
        target.append(value)
    else:
        assert op in ("add", "replace")
        assert op == "add" or last in target
        target[last] = value
