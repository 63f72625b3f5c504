"""The watchdog: ends a job of several processes everywhere when one of them fails."""
