"""What turns text into token ids: a backend for each kind of file that models come with."""
