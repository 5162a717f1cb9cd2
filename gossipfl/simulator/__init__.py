"""Many hospitals in one process: baselines, and drivers over a virtual clock. Nothing of a deployed node needs this."""
