"""The cluster environment of a process: its rank, signals to stop, heartbeat, watchdog and health check."""
