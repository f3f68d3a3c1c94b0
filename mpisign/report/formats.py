"""The formats that a run is printed in. This module imports nothing, so that a command's --help is quick."""

FORMATS = ("table", "markdown", "csv", "json", "lines")
