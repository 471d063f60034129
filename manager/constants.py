"""Timers and limits of the managers in one place (features, section A3; swarmkit's values)."""

from __future__ import annotations

# ---------------------------------------------------------------- nodes and sessions (A3.01 to A3.04)

HEARTBEAT_PERIOD_S = 5.0
"""How often an agent says that it lives, unless ``Dispatcher.HeartbeatPeriod`` of the cluster says otherwise."""

HEARTBEAT_JITTER_S = 0.5
"""The period an agent is told varies by as much in either direction, so that agents do not march in step."""

HEARTBEAT_GRACE_FACTOR = 3
"""A node silent for as many periods is DOWN."""

HEARTBEAT_GRACE_FACTOR_AFTER_LEADER_CHANGE = 6
"""The same for a node that a new leader has not heard of yet."""

NODE_UNKNOWN_MESSAGE = "Node moved to unknown state due to leadership change"

NODE_DOWN_ORPHAN_DELAY_S = 24 * 3600.0
"""Tasks of a node that is DOWN for as long are ORPHANED: what they hold is given to others."""

NEVER_CAME_NODES_MAX = 500
"""Nodes that have joined and had no session yet; while there are as many, no other joins."""

NEVER_CAME_FORGET_S = 3600.0
"""A worker that joined, had no session in time, and has been DOWN for as long since, is removed."""

REGISTRATIONS_WINDOW_S = 8.0
REGISTRATIONS_IN_WINDOW_MAX = 3

# ---------------------------------------------------------------- writing (A3.06, A3.08, A3.09)

REQUEST_TIMEOUT_S = 20.0
"""A request to a manager that the cluster cannot answer fails after that."""

# ---------------------------------------------------------------- tasks

TASK_HISTORY_RETENTION_LIMIT = 5
"""Tasks kept per slot (or node), the running one included (A1.08)."""

RESTARTS_KEPT_MAX = 1000
"""Restarts of a slot that are remembered, and tasks of it that are kept to be seen, where its policy asks for as many: a
maximum of attempts above it, counted within a window, is taken for it."""

OLD_TASK_STOP_TIMEOUT_S = 60.0
"""A replacement starts after that though the task before it has not stopped (A3.12)."""

CLOCK_SKEW_S_MAX = 10.0
"""Managers' clocks differ by less. A time that is further ahead was written by a clock that was wrong."""

NODE_FAILURES_WINDOW_S = 300.0
NODE_FAILURES_MAX = 5
"""A node on which a service's version failed as often within the window is the last choice for it (A3.11)."""

RESTART_DELAY_S = 5.0
STOP_GRACE_PERIOD_S = 10.0
UPDATE_MONITOR_S = 5.0

UPDATE_STAY_UP_S = 1.0
"""A start-first update tells the old task to stop when the new one has run for as long (or for the monitor window, where
that is shorter): a command that dies at once takes nothing down."""

# ---------------------------------------------------------------- the reconcile loop

PACE_S = 0.025
"""While changes follow upon each other they are looked at, written and sent out once in so long at most, all that came
together: a pass, an entry, a round costs a millisecond beside what it does. What comes alone waits for nothing."""

DUE_PACE_S = 0.2
"""The same of what is due though nothing changed: delays and monitor windows, as many as the slots of an update, end each
for itself."""

PASS_OBJECTS_MAX = 400
"""Objects one pass of the reconcile loop may write before it commits and lets others run (X25)."""

PASS_LOOKS_MAX = 1000
"""Slots, and tasks of nodes and services, that one pass looks at, written to or not; also objects that a new leader
takes in at a time. Some 15 ms of work."""
