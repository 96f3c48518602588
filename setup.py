"""The optional C extension; everything else is in pyproject.toml.

Without a compiler the build goes on and kobza uses the plain Python twins of these loops: same bytes, slower.
"""

from setuptools import Extension, setup

SOURCES = ["kernels.c", "checksum.c", "bpe.c", "ulz.c", "mixing.c", "logistic.c"]

setup(
    ext_modules=[
        Extension(
            "kobza.codecs.native._kernels",
            sources=[f"kobza/codecs/native/{name}" for name in SOURCES],
            depends=[f"kobza/codecs/native/{name}.h" for name in ("kernels", "logistic", "mixing_tables")],
            define_macros=[("Py_LIMITED_API", "0x030B0000"), ("_DEFAULT_SOURCE", "1")],
            extra_compile_args=["-std=c11", "-O3", "-ffp-contract=off"],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
