"""The kernel by way of netlink, nftables, namespaces, inotify and mounts: adapters that decide nothing."""
