"""What a running instance measures, beside what its plan expects of it."""
