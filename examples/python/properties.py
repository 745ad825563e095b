# SPDX-License-Identifier: MIT OR Apache-2.0
"""What properties an element has, and setting them to values that come from outside: a command line, a web page.

PyGObject clamps nothing and only prints a warning for a value that is out of range; here it is a ValueError that names
the property and what was expected.
"""

import gi

gi.require_version("Gst", "1.0")
from gi.repository import GObject, Gst  # noqa: E402  (after the version is chosen)

KINDS = {
    "gboolean": "bool",
    "gint": "int",
    "guint": "int",
    "gint64": "int",
    "guint64": "int",
    "gfloat": "float",
    "gdouble": "float",
    "gchararray": "text",
    "GEnum": "enum",
}


class Property:
    """A property that can be set from outside."""

    def __init__(self, spec):
        self.name = spec.name
        self.nick = spec.nick
        self.blurb = spec.blurb
        self.kind = KINDS[spec.value_type.fundamental.name]
        # Takes effect while playing.
        self.live = bool(int(spec.flags) & Gst.PARAM_MUTABLE_PLAYING)
        self.minimum = self.maximum = None
        self.choices = []
        if self.kind in ("int", "float"):
            self.minimum, self.maximum = spec.minimum, spec.maximum
        elif self.kind == "enum":
            values = spec.enum_class.__enum_values__.values()
            self.choices = [value.value_nick for value in values]

    def check(self, value):
        """The value as `set_property` takes it; a ValueError if it is of another type or out of range."""
        expected = {
            "bool": "true or false",
            "int": f"a whole number from {self.minimum} to {self.maximum}",
            "float": f"a number from {self.minimum} to {self.maximum}",
            "text": "text",
            "enum": f"one of {', '.join(self.choices)}",
        }[self.kind]
        if self.kind == "bool":
            valid = isinstance(value, bool)
        elif self.kind in ("int", "float"):
            numbers = int if self.kind == "int" else (int, float)
            valid = isinstance(value, numbers) and not isinstance(value, bool)
            # (Whole numbers may be too long for a float; comparing them is exact. Comparisons with NaN are false.)
            valid = valid and self.minimum <= value <= self.maximum
        elif self.kind == "text":
            valid = value is None or (isinstance(value, str) and "\0" not in value)
            # Lone halves of a surrogate pair, which JSON can hold, are no text.
            valid = valid and (value is None or value == value.encode("utf-8", "ignore").decode())
        else:
            valid = value in self.choices
        if not valid:
            raise ValueError(f"property {self.name}: expected {expected}, not {value!r:.100}")
        return value

    def parse(self, text):
        """The value that a text such as "0.5" stands for."""
        if self.kind == "bool":
            return self.check({"true": True, "false": False}.get(text.lower(), text))
        if self.kind in ("int", "float"):
            try:
                return self.check((int if self.kind == "int" else float)(text))
            except ValueError:
                return self.check(text)
        return self.check(text)

    def get(self, element):
        """The value as JSON can hold it."""
        value = element.get_property(self.name)
        return value.value_nick if self.kind == "enum" else value


def properties(element):
    """The element's own properties that can be set, by name, in its order."""
    own = element.get_factory().get_element_type()
    found = {}
    for spec in element.list_properties():
        settable = int(spec.flags) & int(GObject.ParamFlags.WRITABLE)
        if spec.owner_type == own and settable and spec.value_type.fundamental.name in KINDS:
            found[spec.name] = Property(spec)
    return found


def set_property(element, name, value):
    """Sets a property to a value of its type."""
    element.set_property(name, find(element, name).check(value))


def set_from_text(element, text):
    """Sets a property from "PROPERTY=VALUE"."""
    name, _, value = text.partition("=")
    element.set_property(name, find(element, name).parse(value))


def find(element, name):
    """The property of this name; a ValueError if there is none to set."""
    found = properties(element).get(name)
    if found is None:
        raise ValueError(f"{element.get_factory().get_name()} has no property '{name}' to set")
    return found
