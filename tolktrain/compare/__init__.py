"""`tolktrain compare`: evaluated runs side by side, and paired tests of their scores."""
