"""Training on a cluster: processes started by Slurm, a test that they reach each other, requeuing, submitting."""
