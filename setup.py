"""What is compiled, and what wheels carry beside the package; everything else is in setup.cfg."""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ENGINE = Path("bireal_jax/runtime/engine")
# Or a line elsewhere moves the kernels' loops, and they take up to 2 % more or less time.
ALIGNED = ["-falign-functions=64", "-falign-loops=32"]
BINARY = Path("bireal_jax/binary")
COMPILE = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden"]
# Python's own flags ask for debug symbols, and a library would be ten times as large.
STRIP = ["-Wl,--strip-all"] if sys.platform == "linux" else []


class Libraries(build_ext):
    """Libraries that ctypes opens: they know nothing of Python, so one name and one wheel serve every version."""

    def finalize_options(self):
        """The two large ones are compiled side by side."""
        super().finalize_options()
        self.parallel = 2

    def get_ext_filename(self, fullname):
        """Without the version of Python."""
        return f"{fullname.replace('.', '/')}.so"

    def get_export_symbols(self, ext):
        """None of Python's."""
        return ext.export_symbols


class Wheel(bdist_wheel):
    """A wheel for every Python 3 on one platform."""

    def get_tag(self):
        """py3-none-PLATFORM."""
        return "py3", "none", super().get_tag()[2]


class WithRecipes(build_py):
    """Recipes lie beside the package in a checkout, and in it where it is installed: `main` looks there."""

    def run(self):
        """Copies them."""
        super().run()
        if not self.editable_mode:
            self.copy_tree("configs", str(Path(self.build_lib, "bireal_jax", "recipes", "configs")))


def engine() -> Extension:
    """Of the runtime; packaging/runtime builds it, too."""
    return Extension(
        "bireal_jax.runtime._engine",
        [str(path) for path in sorted(ENGINE.glob("*.cc"))],
        depends=[str(path) for path in sorted(ENGINE.glob("*.h")) + sorted(ENGINE.glob("*.inc"))],
        language="c++",
        extra_compile_args=[*COMPILE, "-pthread", *ALIGNED],
        extra_link_args=["-pthread", *STRIP],
        optional=True,  # without a compiler the package installs and runs the reference
    )


if __name__ == "__main__":
    setup(
        cmdclass={"build_ext": Libraries, "bdist_wheel": Wheel, "build_py": WithRecipes},
        ext_modules=[
            engine(),
            Extension(
                "bireal_jax.binary._packed",
                [str(path) for path in sorted(BINARY.glob("*.cc"))],
                depends=[str(path) for path in sorted(BINARY.glob("*.h")) + sorted(BINARY.glob("*.inc"))],
                language="c++",
                # The same bits with every instruction set: no product and sum in one, which rounds once.
                extra_compile_args=[*COMPILE, "-pthread", "-ffp-contract=off"],
                extra_link_args=["-pthread", *STRIP],
                optional=True,
            ),
            Extension(
                "bireal_jax.data._jpeg",
                ["bireal_jax/data/jpeg.cc"],
                language="c++",
                libraries=["jpeg"],
                extra_compile_args=COMPILE,
                extra_link_args=STRIP,
                optional=True,  # without libjpeg-turbo's headers, too
            ),
        ],
    )
