"""What is compiled; everything else is in setup.cfg."""

from pathlib import Path

from setuptools import Extension, setup

ENGINE = Path("bireal_jax/runtime/engine")
# Or a line elsewhere moves the kernels' loops, and they take up to 2 % more or less time.
ALIGNED = ["-falign-functions=64", "-falign-loops=32"]
BINARY = Path("bireal_jax/binary")

setup(
    ext_modules=[
        Extension(
            "bireal_jax.runtime._engine",
            [str(path) for path in sorted(ENGINE.glob("*.cc"))],
            depends=[str(path) for path in sorted(ENGINE.glob("*.h")) + sorted(ENGINE.glob("*.inc"))],
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", "-fvisibility=hidden", "-pthread", *ALIGNED],
            extra_link_args=["-pthread"],
            optional=True,  # without a compiler the package installs and runs the reference
        ),
        Extension(
            "bireal_jax.binary._packed",
            [str(path) for path in sorted(BINARY.glob("*.cc"))],
            depends=[str(path) for path in sorted(BINARY.glob("*.h")) + sorted(BINARY.glob("*.inc"))],
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", "-fvisibility=hidden", "-pthread"],
            extra_link_args=["-pthread"],
            optional=True,
        ),
        Extension(
            "bireal_jax.data._jpeg",
            ["bireal_jax/data/jpeg.cc"],
            language="c++",
            libraries=["jpeg"],
            extra_compile_args=["-std=c++17", "-O3", "-fvisibility=hidden"],
            optional=True,  # without libjpeg-turbo's headers, too
        ),
    ]
)
