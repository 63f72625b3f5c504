"""The watchdog: ends all processes of a job when one of them fails."""
