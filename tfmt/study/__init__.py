"""Many runs: their specs, folders and records."""
