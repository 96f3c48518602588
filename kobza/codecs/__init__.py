"""Codecs: bytes to fewer bytes and back. Every module gives `compress` and `decompress`; see `base`."""
