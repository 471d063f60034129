"""The agent: keeps a session with the managers and makes this node run what they assign."""

from worker.agent.agent import Agent, AgentListener, ChannelFactory
from worker.agent.executor import Executor

__all__ = ["Agent", "AgentListener", "ChannelFactory", "Executor"]
