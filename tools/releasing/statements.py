"""What is said about a release: a bill of materials (CycloneDX), how it was made (SLSA provenance), checksums.

None of the three is signed here: they say what was built from what, not who says so.
"""

from __future__ import annotations

import base64
import csv
import datetime
import json
import uuid
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .project import Pin, ReleaseError, sha256

# Linked into the module by the compiler (zig brings their sources), so no lock names them.
_LINKED = ("libc++", "libc++abi", "libunwind", "compiler-rt")
_LINKED_LICENCE = "Apache-2.0 WITH LLVM-exception"
_NAMESPACE = uuid.UUID("3c8f6e2a-5f0f-5c53-9d0a-6b1a6d0c8417")


def bill_of_materials(
    version: str,
    wheels: Sequence[Path],
    core: Iterable[Pin],
    serve: Iterable[Pin],
    build: Iterable[Pin],
    compiler: Mapping[str, str],
    epoch: int,
) -> dict[str, Any]:
    """CycloneDX 1.6: every file of the wheels, what is linked into them, and what an installation brings.

    Packages of `serve` that are not in `core` are optional; of `build` only nanobind is in the wheel. A lock's hashes
    are those of all files of a version, so they are properties; a component's own hash is that of one file.
    """
    core = list(core)
    required = {pin.name for pin in core}
    pins = {_purl(pin): pin for pin in [*core, *serve]}
    linked = [pin for pin in build if pin.name == "nanobind"]
    components = [
        *(_package(pin, "required" if pin.name in required else "optional") for _, pin in sorted(pins.items())),
        *(_package(pin, "required") for pin in linked),
        *(_linked(name, compiler) for name in _LINKED),
        *(_wheel(wheel) for wheel in wheels),
    ]
    own = f"pkg:pypi/kamado@{version}"
    depends: dict[str, list[str]] = {own: [], **{purl: [] for purl in pins}}
    for purl, pin in pins.items():
        for wanter in pin.wanted_by:  # a package may be there twice, for older and newer Pythons
            for by in [own] if wanter == "kamado" else [other for other, of in pins.items() if of.name == wanter]:
                depends[by].append(purl)
    depends[own] += [_purl(pin) for pin in linked] + [f"linked:{name}" for name in _LINKED]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": _when(epoch),
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": "kamado",
                "version": version,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
                "purl": own,
            },
        },
        "components": components,
        "dependencies": [{"ref": ref, "dependsOn": sorted(set(on))} for ref, on in sorted(depends.items())],
    }
    # The same content has the same number.
    serial = uuid.uuid5(_NAMESPACE, json.dumps(document, sort_keys=True))
    return {"serialNumber": f"urn:uuid:{serial}", **document}


def _purl(pin: Pin) -> str:
    return f"pkg:pypi/{pin.name.lower().replace('_', '-')}@{pin.version}"


def _package(pin: Pin, scope: str) -> dict[str, Any]:
    said = [{"name": "kamado:locked-sha256", "value": digest} for digest in pin.sha256]
    if pin.marker:
        said.append({"name": "kamado:only-where", "value": pin.marker})
    return {
        "type": "library",
        "bom-ref": _purl(pin),
        "name": pin.name,
        "version": pin.version,
        "scope": scope,
        "purl": _purl(pin),
        "properties": said,
    }


def _linked(name: str, compiler: Mapping[str, str]) -> dict[str, Any]:
    return {
        "type": "library",
        "bom-ref": f"linked:{name}",
        "name": name,
        "version": f"as in {compiler['name']} {compiler['version']}",
        "scope": "required",
        "licenses": [{"expression": _LINKED_LICENCE}],
    }


def _wheel(wheel: Path) -> dict[str, Any]:
    """The wheel with its files and their hashes, which its own RECORD has."""
    with zipfile.ZipFile(wheel) as archive:
        (record,) = [name for name in archive.namelist() if name.endswith(".dist-info/RECORD")]
        rows = list(csv.reader(archive.read(record).decode().splitlines()))
    files = [(name, digest.partition("=")[2]) for name, digest, _ in rows if digest.startswith("sha256=")]
    return {
        "type": "file",
        "bom-ref": f"file:{wheel.name}",
        "name": wheel.name,
        "hashes": [{"alg": "SHA-256", "content": sha256(wheel)}],
        "components": [
            {
                "type": "file",
                "bom-ref": f"file:{wheel.name}/{name}",
                "name": name,
                "hashes": [{"alg": "SHA-256", "content": _hexadecimal(digest)}],
            }
            for name, digest in files
        ],
    }


def _hexadecimal(digest: str) -> str:
    return base64.urlsafe_b64decode(digest + "=" * (-len(digest) % 4)).hex()


def _when(epoch: int) -> str:
    return datetime.datetime.fromtimestamp(epoch, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def check_bill(bill: Mapping[str, Any]) -> None:
    """Holds a bill of materials against CycloneDX's own schema. Raises ReleaseError with what is wrong."""
    try:
        from cyclonedx.schema import SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator
    except ImportError:
        raise ReleaseError("the schema is missing: pip install -r requirements/release.txt") from None
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill))
    if error is not None:
        raise ReleaseError(f"the bill of materials breaks its schema: {str(error)[:1000]}")


def provenance(
    artefacts: Iterable[Path],
    commit: str,
    *,
    repository: str,
    builder: str,
    run: str,
    tag: str,
    locks: Iterable[Path],
    compiler: Mapping[str, str],
    started: int,
    finished: int,
) -> dict[str, Any]:
    """An in-toto statement with SLSA v1 provenance: these bytes were made from that commit by this builder.

    `repository` and `run` are addresses, or empty where there are none; of a commit with "-dirty" this is said.
    """
    plain, _, dirty = commit.partition("-")
    source: dict[str, Any] = {"name": "source", "digest": {"gitCommit": plain}}
    if repository:
        source["uri"] = f"git+{repository}" + (f"@refs/tags/{tag}" if tag else "")
    if dirty:
        source["annotations"] = {"changed": "files differed from the commit"}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": path.name, "digest": {"sha256": sha256(path)}} for path in sorted(artefacts)],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                # What the parameters mean: the pages of this project say so under this name.
                "buildType": f"{repository or 'urn:kamado'}/docs/install.md#provenance",
                "externalParameters": {"tag": tag, "command": "python3 tools/release.py"},
                "internalParameters": {"compiler": dict(compiler)},
                "resolvedDependencies": [
                    source,
                    *({"name": f"requirements/{p.name}", "digest": {"sha256": sha256(p)}} for p in sorted(locks)),
                ],
            },
            "runDetails": {
                "builder": {"id": builder},
                "metadata": {
                    **({"invocationId": run} if run else {}),
                    "startedOn": _when(started),
                    "finishedOn": _when(finished),
                },
            },
        },
    }


def checksums(artefacts: Iterable[Path]) -> str:
    """The lines that `sha256sum --check` reads."""
    return "".join(f"{sha256(path)}  {path.name}\n" for path in sorted(artefacts, key=lambda path: path.name))
