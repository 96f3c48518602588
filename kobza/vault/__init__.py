"""The vault: one card per technique, saying what it is, where it comes from, what it claims and how it fared."""
