"""The C++ kernels, in addition to pyproject.toml; without a compiler the package goes without."""

from glob import glob

from setuptools import Extension, setup

NATIVE = "megainfer/kernels/cpu/native"

setup(
    ext_modules=[
        Extension(
            # A plain library with a C interface, loaded through ctypes.
            "megainfer.kernels.cpu._native",
            sources=sorted(glob(f"{NATIVE}/*.cpp")),
            depends=sorted(glob(f"{NATIVE}/*.h") + glob(f"{NATIVE}/*.inl")),
            language="c++",
            # No -march and no -ffast-math: sources choose their instruction sets themselves, and
            # the order of additions is a promise.
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
                "-Wno-maybe-uninitialized",  # GCC 12 warns of its own AVX-512 header
            ],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ]
)
