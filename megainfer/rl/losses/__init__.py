"""What is minimised, for each token; sums and means are the caller's."""
