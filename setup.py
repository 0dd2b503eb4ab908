"""Put the gallery and the schemas into the package when it is built: a checkout keeps them at its top."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = {"recipes": "gallery", "schemas": "schemas"}


class BuildWithGallery(build_py):
    """Copy what `llava_recipes/authoring/gallery.py` looks for in an installed package."""

    def run(self) -> None:
        super().run()
        # An editable install reads the checkout itself.
        if self.editable_mode:
            return
        for folder, name in SHIPPED.items():
            for file in sorted(Path(folder).rglob("*.*")):
                target = Path(self.build_lib, "llava_recipes", name, file.relative_to(folder))
                self.mkpath(str(target.parent))
                self.copy_file(str(file), str(target))


setup(cmdclass={"build_py": BuildWithGallery})
