"""What every part of localkube shares: tasks, clock, logs, namespaces, host sockets, work queues."""
