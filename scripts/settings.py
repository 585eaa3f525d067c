"""Write what the table of settings says: ``etc/flowstack.toml``, and the settings' part of the manual.

``make settings`` writes the file; a test holds it equal to this.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from attrs import NOTHING

from flowstack.config.settings import OF_UPSTREAMS, TABLES, Fallback, Prefix, Price, Retry, Target, written
from flowstack.config.values import Pairs, Setting, settings_of

OFF = {Target, Retry, Fallback}
"""Tables that do something by being there."""

EXAMPLE = Path(__file__).parent.parent / "etc/flowstack.toml"

_HEAD = """\
# Flowstack's configuration: every setting, with its default. A line that begins with "#" and a letter is a setting
# that is off: remove the "#" to change it. "flowstack check --config THIS-FILE" says what is wrong with it.
#
# Times are in seconds, sizes in bytes. A relative path starts at this file's directory; paths inside an endpoint
# string start at the working directory, so write those in full. An empty string means "none" where that is said.
# What needs a restart and what a reload applies: the manual's page on settings.
"""


def example() -> str:
    """All settings with their defaults, switched off, each explained above it."""
    parts = [_HEAD]
    for name, cls in TABLES.items():
        if cls is Price:
            parts.append(_example_prices())
            continue
        parts.append(_example_table(name.replace("upstreams", "upstreams.openai"), cls))
        if name == "upstreams":
            parts += [_example_inner(inner, cls) for inner, cls in OF_UPSTREAMS.items()]
    return "\n".join(parts)


def _example_table(name: str, cls: type) -> str:
    return f"{_comment(_doc(cls))}\n[{name}]\n" + "\n".join(map(_example_setting, _settings(cls)))


def _example_inner(name: str, cls: type) -> str:
    """A table of an upstream's; one that does something by being there is a comment as a whole."""
    table = _example_table(f"upstreams.openai.{name.replace('TARGET', 'west')}", cls)
    return re.sub(r"(?m)^(#(?=\w)|(?=\[))", "# ", table) if cls in OFF else table


def _example_setting(setting: Setting) -> str:
    takes = setting.reader.takes
    bounds = f" Takes {takes}." if re.search("one of|from", takes) else ""
    lines = [_comment(setting.text + bounds, re.findall(r'"([^"]+)"', takes))]
    examples = [(f"{setting.name} = {value}", remark) for value, remark in setting.examples]
    width = max((len(value) for value, _ in examples if len(value) < 60), default=0)
    for value, remark in examples:
        lines += [f"#   {value:<{width}}  # {remark}" if remark else f"#   {value}"]
    if _required(setting):
        return "\n".join([*lines[:-1], f"#{setting.name} = {setting.examples[0][0]}\n"])
    return "\n".join([*lines, f"#{setting.name} = {toml(setting.default)}\n"])


def _example_prices() -> str:
    lines = [_comment(_doc(Price)), '# [prices."my-model*"]']
    for setting in _settings(Price):
        value = f"{setting.name} = {setting.examples[0][0]}"
        lines.append(f"# {value:<26}# {_unmarked(setting.text)}")
    return "\n".join(lines) + "\n"


def settings_reference() -> str:
    """A section for each table, and in it one for each setting: syntax, default, what it does, an example."""
    parts = []
    for name, cls in TABLES.items():
        parts.append(_table_section(name, written(name), cls))
        if name == "upstreams":
            for inner, kind in OF_UPSTREAMS.items():
                label = f"upstreams.{inner.partition('.')[0]}"
                parts.append(_table_section(label, f"[upstreams.NAME.{inner}]", kind))
    return "\n".join(parts)


def _table_section(name: str, heading: str, cls: type) -> str:
    title = f"``{heading}``"
    sections = "\n".join(_setting_section(name, setting) for setting in _settings(cls))
    return f"{title}\n{'-' * len(title)}\n\n{_wrapped(_doc(cls))}\n\n{sections}"


def _setting_section(table: str, setting: Setting) -> str:
    title = f"``{setting.name}``"
    lines = [f".. _setting-{table}-{setting.name}:", "", title, "~" * len(title), ""]
    lines.append(f":Syntax: ``{setting.name} =`` {setting.reader.takes}")
    if table != "prices" and not _required(setting):
        lines.append(f":Default: ``{setting.name} = {toml(setting.default)}``")
    lines += ["", _wrapped(setting.text), ""]
    if setting.examples and table != "prices":
        lines += [".. code-block:: toml", ""]
        for value, remark in setting.examples:
            lines.append(f"   {setting.name} = {value}" + (f"  # {remark}" if remark else ""))
        lines.append("")
    return "\n".join(lines)


def toml(value: Any) -> str:
    """Write a default as TOML has it."""
    match value:
        case None:
            return '""'
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float():
            return f"{value:g}"
        case Pairs():
            return "{}"
        case tuple():
            return f"[{', '.join(map(toml, value))}]"
        case Prefix():
            return toml(value.path)
    return json.dumps(str(value))


def _required(setting: Setting) -> bool:
    return setting.text.endswith("Required.")


def _settings(cls: type) -> Iterator[Setting]:
    """Those that are values, and not tables of their own, which have no text."""
    for setting in settings_of(cls).values():
        assert setting.default is not NOTHING
        if setting.text:
            yield setting


def _doc(cls: type) -> str:
    return " ".join((cls.__doc__ or "").split())


def _unmarked(text: str, quoted: Collection[str] = ()) -> str:
    """Text without literals' marks; those that are *quoted*, and several words, stand in quotes."""
    return re.sub(r"``([^`]+)``", lambda one: f'"{one[1]}"' if one[1] in quoted or " " in one[1] else one[1], text)


def _comment(text: str, quoted: Collection[str] = ()) -> str:
    return textwrap.fill(
        _unmarked(text, quoted), 118, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 118, break_on_hyphens=False, break_long_words=False)


if __name__ == "__main__":
    EXAMPLE.write_text(example())
