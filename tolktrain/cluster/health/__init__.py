"""The health check before the first step: finds broken and slow nodes and names them."""
