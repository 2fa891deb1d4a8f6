"""Who starts the agents of an instance: processes of this machine, Ray, torchrun or Slurm."""
