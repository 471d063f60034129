"""Sessions with agents: who is alive, what each node has to run, and what became of it."""

from manager.dispatcher.dispatcher import Dispatcher

__all__ = ["Dispatcher"]
