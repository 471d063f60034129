"""The version of this distribution, of the daemon and of the command: the one place that says it."""

VERSION = "0.1.0"
