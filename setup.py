"""The programs that are compiled. Without a C compiler hpcmesos is installed all the same, and is slower."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

_FLAGS = (
    *("-std=gnu11", "-O2", "-Wall", "-Wextra"),
    # The starter runs as root: an error in it shall end it, and not become something else.
    *(
        "-fstack-protector-strong",
        "-U_FORTIFY_SOURCE",
        "-D_FORTIFY_SOURCE=2",
        "-fPIE",
        "-Wl,-z,relro,-z,now",
    ),
)
_PROGRAMS = (
    ("starter", ("starter",), ()),
    ("stub", ("stub", "stub_request", "stub_reply"), ("stub",)),
)
"""Name, sources and headers."""


class BuildPrograms(build_ext):
    """Makes an executable of each "extension", beside the package's modules.

    Without shared libraries, where the C library can be had so: a fork copies less, some 40 us of 700 with /bin/true.
    """

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        compiler = shlex.split(os.environ.get("CC", "cc"))
        words = [*compiler, *_FLAGS, "-o", str(target), *ext.sources]
        try:
            if subprocess.run([*words, "-static-pie"], stderr=subprocess.DEVNULL, check=False).returncode:
                subprocess.run([*words, "-pie"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(str(error)) from error

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")))


setup(
    cmdclass={"build_ext": BuildPrograms},
    ext_modules=[
        Extension(
            f"hpcmesos.launch.{name}",
            [f"hpcmesos/launch/{source}.c" for source in sources],
            depends=[f"hpcmesos/launch/{header}.h" for header in headers],
            optional=True,
        )
        for name, sources, headers in _PROGRAMS
    ],
)
