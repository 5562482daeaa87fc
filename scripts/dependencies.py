"""Read the distribution's dependencies from requirements/runtime.in, so that they are written once.

Hatchling calls this when it builds or installs the distribution; it fails when the file is missing.
"""

from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class RuntimeRequirements(MetadataHookInterface):
    """Fill `project.dependencies`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add every requirement line of runtime.in to the metadata of the distribution."""
        text = (Path(self.root) / "requirements" / "runtime.in").read_text(encoding="utf-8")
        lines = (line.split("#", 1)[0].strip() for line in text.splitlines())
        metadata["dependencies"] = [line for line in lines if line]
