"""Where bundles come from: the folder that the server was told to serve."""

from pathlib import Path

from model.bundle import Bundle, read_bundle


class Repository:
    """Loads the bundle in one folder, verified each time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> Bundle:
        """The bundle that is there now. Raises `BundleError`."""
        return read_bundle(self.path)
