"""The managers' control API: what users ask of the cluster, answered by the leader (docs/design/control.md).

``service.ControlService`` answers, ``forward.LeaderForwarder`` finds the manager that may, ``rpc.control_handler`` puts
either on gRPC.
"""
