"""Print ops/artifacts.toml anew: what the real servers consist of, with sizes and checksums.

Kafka and its logging are resolved apart: together, the bill of materials of log4j would put an older client
beside the broker.

    python scripts/artifacts.py > ops/artifacts.toml
"""

import hashlib
import tempfile
from pathlib import Path

from jgo.maven import Artifact, MavenContext

KAFKA = "org.apache.kafka:kafka_2.13:4.1.0"
LOGGING = (
    "org.apache.logging.log4j:log4j-slf4j-impl:2.25.1",
    "org.apache.logging.log4j:log4j-core:2.25.1",
)
ELASTICSEARCH = ("org.elasticsearch.distribution.integ-test-zip", "elasticsearch", "8.19.3")
HEAD = """\
# Files of the real servers by Maven coordinates: group:artifact:version, a packaging where it is not jar.
# A file with another SHA-256 is refused. Printed by scripts/artifacts.py from what jgo resolves.
"""


def resolved(context: MavenContext, *coordinates: str) -> dict[str, Artifact]:
    """The artifacts with all that they need at run time, by group and name."""
    inputs, needed = context.resolver.resolve([context.create_dependency(each) for each in coordinates])
    return {
        f"{each.groupId}:{each.artifactId}": each.artifact
        for each in (*inputs, *needed)
        if each.scope != "test"
    }


def line(artifact: Artifact) -> str:
    """One file as the list has it."""
    content = artifact.resolve().read_bytes()
    packaging = "" if artifact.packaging == "jar" else f":{artifact.packaging}"
    name = f"{artifact.groupId}:{artifact.artifactId}:{artifact.version}{packaging}"
    return f'"{name}" = {{ bytes = {len(content)}, sha256 = "{hashlib.sha256(content).hexdigest()}" }}'


def main() -> None:
    """Resolve, fetch, print."""
    with tempfile.TemporaryDirectory() as directory:
        context = MavenContext(repo_cache=Path(directory))
        kafka = resolved(context, KAFKA) | resolved(context, *LOGGING)
        group, name, version = ELASTICSEARCH
        node = context.project(group, name).at_version(version).artifact(packaging="zip")
        parts = {"kafka": [kafka[key] for key in sorted(kafka)], "elasticsearch": [node]}
        print(HEAD, end="")
        for bundle, artifacts in parts.items():
            print(f"\n[{bundle}]", *(line(each) for each in artifacts), sep="\n")


if __name__ == "__main__":
    main()
