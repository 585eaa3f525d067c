"""Flowstack as a distribution: the package, the twistd plugin, and the files an operator copies.

With ``FLOWSTACK_COMPILE=1`` in the environment, mypyc compiles the modules that :mod:`flowstack.build` names.
"""

import os
import re
import runpy
from glob import glob
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
SHARE = "share/flowstack"

# What `flowstack stand-in` needs beside the rest; the service needs none of it.
STANDIN = ["h11>=0.16", "multipart>=2.0", "wsproto>=1.3"]
# What [shared] postgres needs beside the rest.
POSTGRES = ["psycopg[binary]>=3.3"]
# What [shared] redis needs beside the rest.
REDIS = ["hiredis>=3.5", "redis>=8.1"]
TEST = [
    *STANDIN,
    *POSTGRES,
    *REDIS,
    "hypothesis>=6.170",
    "packaging>=26.3",
    "playwright>=1.65",
    "pytest>=9.2",
    "pytest-twisted>=1.14",
    "pytest-xdist>=3.8",
    "setuptools>=84.2",
    "wsproto>=1.3",
]
LINT = ["import-linter>=2.17", "ruff>=0.17", "mypy>=2.4", "mypy-zope>=1.0.17"]
DOCS = ["furo>=2025.12", "sphinx>=9.0", "sphinx-copybutton>=0.5"]
# The lower bounds are the versions that the tests ran with; requirements/constraints.txt has them exactly.
RUN = [
    "attrs>=26.1",
    "brotli>=1.2",
    "click>=8.5",
    "cryptography>=50.0",
    "httptools>=0.9",
    "orjson>=3.13",
    "prometheus_client>=0.26",
    "pyopenssl>=26.4",
    "rich>=15.0",
    "service-identity>=26.1",
    "treq>=26.7",
    "twisted[tls]>=26.10",
    "uvloop>=0.23",
    "zope.interface>=8.7",
    "zstandard>=0.25",
]

COMPILE = os.environ.get("FLOWSTACK_COMPILE", "0") == "1"


def version() -> str:
    """Read ``__version__`` without importing: at build time the dependencies are not there."""
    found = re.search(r'^__version__ = "([^"]+)"$', (HERE / "flowstack/__init__.py").read_text("utf-8"), re.MULTILINE)
    if found is None:
        raise SystemExit('flowstack/__init__.py has no line of the form: __version__ = "1.2.3"')
    return found[1]


def pinned(requirements: list[str]) -> list[str]:
    """The same distributions, and all that they need, in the versions that the tests ran with."""
    pins = (HERE / "requirements/constraints.txt").read_text("utf-8")
    names = [re.match(r"[\w.-]+", requirement)[0] for requirement in requirements]
    return [re.search(rf"^{re.escape(name)}==.+$", pins, re.MULTILINE | re.IGNORECASE)[0] for name in names]


class Compile(build_ext):
    """Compiles when it comes to that: whoever only asks for metadata has no compiler yet."""

    def run(self) -> None:
        """Have C made of the modules, and machine code of that."""
        if self.inplace or self.editable_mode:
            raise SystemExit(
                "FLOWSTACK_COMPILE=1 and an editable install: compiled modules beside sources that change would hide "
                "the changes. Leave FLOWSTACK_COMPILE out, or install without --editable."
            )
        for module in Path(self.build_lib).rglob("*.so"):  # left by a build of other modules
            module.unlink()
        from mypyc.build import mypycify

        modules = runpy.run_path(str(HERE / "flowstack/build.py"))["COMPILED"]
        self.distribution.ext_modules = mypycify(
            ["--config-file=mypy.ini", *(f"flowstack/{module}.py" for module in modules)],
            group_name="flowstack", multi_file=True, opt_level="1", debug_level="0",
        )  # fmt: skip
        self.initialize_options()  # once more, as what was said of the placeholder does not hold
        self.finalize_options()
        super().run()


setup(
    name="flowstack",
    version=version(),
    description="A proxy of your own in front of the OpenAI API: your keys say who may call, bytes pass as they came",
    long_description=(HERE / "README.rst").read_text("utf-8"),
    long_description_content_type="text/x-rst",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # Without package_dir an editable install finds the plugin but not the package behind the command.
    package_dir={"": "."},
    # twisted.plugins is named, not found: it must have no __init__.py, which would hide Twisted or the plugin.
    packages=[*find_packages(include=["flowstack", "flowstack.*"]), "twisted.plugins"],
    package_data={
        "flowstack": ["py.typed"],
        "flowstack.admin": ["static/*", "static/vendor/*"],
        "flowstack.ledger": ["migrations/*.sql"],
        "flowstack.limits": ["functions.lua"],
        "flowstack.prices": ["prices.json"],
    },
    data_files=[
        (f"{SHARE}/etc", sorted(name for name in glob("etc/*") if Path(name).is_file())),
        *((f"{SHARE}/etc/{folder}", sorted(glob(f"etc/{folder}/*"))) for folder in ("haproxy", "nginx", "systemd")),
    ],
    entry_points={"console_scripts": ["flowstack = flowstack.cli.main:main"]},
    install_requires=RUN,
    # mypyc reads the types of what is imported, too.
    setup_requires=pinned(["mypy", "mypy-zope", *RUN]) if COMPILE else [],
    ext_modules=[Extension("flowstack__mypyc", [])] if COMPILE else [],  # the name makes it a wheel of this platform
    cmdclass={"build_ext": Compile} if COMPILE else {},
    extras_require={
        **{"postgres": POSTGRES, "redis": REDIS, "standin": STANDIN},
        **{"test": TEST, "lint": LINT, "docs": DOCS},
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: No Input/Output (Daemon)",
        "Framework :: Twisted",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Topic :: Internet :: Proxy Servers",
        "Typing :: Typed",
    ],
    zip_safe=False,
)
