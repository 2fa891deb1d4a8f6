"""What an answer is worth: rules, and functions of the user's, which may hang or die; no torch."""
