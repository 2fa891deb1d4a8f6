"""The C++ libraries, in addition to pyproject.toml; without a compiler the package goes without."""

import os
from concurrent.futures import ThreadPoolExecutor
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SHARED = "megainfer/native"
KERNELS = "megainfer/compute/cpu"
M2N = "megainfer/m2n"
RANKS = "megainfer/ranks"


def library(folder: str) -> Extension:
    """A plain library with a C interface, loaded through ctypes."""
    native = f"{folder}/native"
    return Extension(
        f"{folder.replace('/', '.')}._native",
        sources=sorted(glob(f"{native}/*.cpp")),
        depends=sorted([*glob(f"{native}/*.h"), *glob(f"{native}/*.inl"), *glob(f"{SHARED}/*.h")]),
        include_dirs=[SHARED],
        language="c++",
        # No -march and no -ffast-math: sources choose their instruction sets themselves, and the
        # order of additions is a promise.
        extra_compile_args=[
            "-std=c++20",
            "-O3",
            "-fvisibility=hidden",
            "-fno-exceptions",
            "-fno-rtti",
            "-fno-math-errno",
            "-ffp-contract=off",
            "-pthread",
            "-Wall",
            "-Wextra",
            "-Wno-uninitialized",  # GCC 12 warns of its own AVX-512 header
            "-Wno-maybe-uninitialized",
        ],
        extra_link_args=["-pthread"],
        optional=True,
    )


class SideBySide(build_ext):
    """Compiles as many sources of a library at once as there are cores."""

    def build_extensions(self):
        compile_them = self.compiler.compile

        def side_by_side(sources, **options):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                made = pool.map(lambda source: compile_them([source], **options), sources)
                return [path for paths in made for path in paths]

        self.compiler.compile = side_by_side
        super().build_extensions()


setup(
    ext_modules=[library(KERNELS), library(M2N), library(RANKS)],
    cmdclass={"build_ext": SideBySide},
)
