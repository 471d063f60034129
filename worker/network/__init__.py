"""The data plane of the cluster's networks on one node: overlays, virtual IPs, the routing mesh.

It is told plain desired state (``types``), decides what to change without looking at anything (``plan``, ``balancing``),
and has the kernel do it (``overlays``). It knows no manager and no message: who is told what, and when, is the agent's
affair. ``driver`` is what the engine sees of it.
"""
