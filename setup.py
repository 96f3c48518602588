"""The optional C extensions; everything else is in pyproject.toml.

Without a compiler the build goes on and kobza uses the plain twins of these loops: slower, and for the codecs the same
bytes.
"""

from setuptools import Extension, setup

SOURCES = [
    "kernels.c", "checksum.c", "bpe.c", "ulz.c", "mixing.c", "logistic.c", "network.c", "prediction.c", "picture.c",
    "glyphs.c",
]  # fmt: skip
HEADERS = ["bitcoder", "kernels", "logistic", "mixing_tables", "network", "picture", "glyphs"]
LIMITED = ("Py_LIMITED_API", "0x030B0000")

setup(
    ext_modules=[
        Extension(
            "kobza.codecs.native._kernels",
            sources=[f"kobza/codecs/native/{name}" for name in SOURCES],
            depends=[f"kobza/codecs/native/{name}.h" for name in HEADERS],
            define_macros=[LIMITED, ("_DEFAULT_SOURCE", "1")],
            extra_compile_args=["-std=c11", "-O3", "-ffp-contract=off"],
            py_limited_api=True,
            optional=True,
        ),
        Extension(
            "kobza.models.native._step",
            sources=["kobza/models/native/step.c"],
            define_macros=[LIMITED],
            # subtle: nothing here looks at NaN or the sign of zero; sums may be reordered so that they vectorize
            extra_compile_args=["-std=gnu11", "-O3", "-fno-math-errno", "-fassociative-math", "-fno-signed-zeros",
                                "-fno-trapping-math", "-Wno-psabi"],
            libraries=["m"],
            py_limited_api=True,
            optional=True,
        ),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)  # fmt: skip
