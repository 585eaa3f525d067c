"""The wheel and the editable install: complete, and found from anywhere."""

from __future__ import annotations

import zipfile
from pathlib import Path

from flowstack import __version__
from tests.packaging.installed import ANY_PORT, ROOT, Installed, ask, copy_source, run


def test_neither_twisted_nor_its_plugins_folder_has_an_init_file() -> None:
    # The first would hide the real Twisted, the second the plugin.
    assert (ROOT / "twisted/plugins/flowstack_plugin.py").is_file()
    assert not list((ROOT / "twisted").rglob("__init__.py"))


def test_the_plugin_only_names_flowstack_and_imports_nothing_of_it() -> None:
    # twistd imports every plugin for every command: this one must cost nothing and break nothing.
    lines = (ROOT / "twisted/plugins/flowstack_plugin.py").read_text("utf-8").splitlines()
    imports = [line for line in lines if line.lstrip().startswith(("import ", "from "))]
    assert imports
    assert not [line for line in imports if "flowstack" in line]


def test_the_wheel_holds_the_package_the_plugin_and_what_an_operator_copies(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "flowstack").rglob("*.py")}
    assert modules <= names
    assert {"flowstack/py.typed", "twisted/plugins/flowstack_plugin.py"} <= names
    shared = f"flowstack-{__version__}.data/data/share/flowstack/"
    operators = {path for path in (ROOT / "etc").rglob("*") if path.is_file()}
    assert {shared + str(path.relative_to(ROOT)) for path in operators} <= names
    assert not [name for name in names if name.startswith("tests/") or name.endswith(("twisted/__init__.py", ".pyc"))]


def test_twistd_lists_the_plugin_from_a_neutral_directory_after_a_wheel_install(installed: Installed) -> None:
    assert "flowstack" in run([installed.bin / "twistd", "--help"]).stdout


def test_the_installed_commands_say_their_version_and_teach_their_use(installed: Installed) -> None:
    assert __version__ in run([installed.bin / "twistd", "flowstack", "--version"]).stdout
    assert __version__ in run([installed.bin / "flowstack", "--version"]).stdout
    usage = run([installed.bin / "twistd", "flowstack", "--help"]).stdout
    for flag in ("--config", "--listen", "--upstream", "--keys", "--state", "--workers", "--admin"):
        assert flag in usage
    assert "keys" in run([installed.bin / "flowstack", "--help"]).stdout


def test_an_installed_wheel_relays_a_request(installed: Installed, folder: Path, upstream: str) -> None:
    key = installed.add_key(folder / "keys")
    with installed.proxy(folder, "--listen", ANY_PORT, "--upstream", upstream, "--keys", folder / "keys") as proxy:
        status, answer = ask(proxy.url, key)
    assert (status, answer["path"]) == (200, "/v1/chat/completions")


def test_an_editable_install_has_the_command_and_the_plugin_and_relays(
    installed: Installed, folder: Path, upstream: str
) -> None:
    source = copy_source(folder / "checkout")
    editable = Installed(folder / "venv", "--editable", source, like=installed)
    show = "import flowstack, twisted; print(flowstack.__file__, twisted.__file__)"
    ours, theirs = run([editable.bin / "python", "-c", show]).stdout.split()
    assert Path(ours).is_relative_to(source)
    assert Path(theirs).is_relative_to(folder / "venv")
    assert "flowstack" in run([editable.bin / "twistd", "--help"]).stdout
    key = editable.add_key(folder / "keys")
    with editable.proxy(folder, "--listen", ANY_PORT, "--upstream", upstream, "--keys", folder / "keys") as proxy:
        assert ask(proxy.url, key)[0] == 200
