"""Files of bitmap fonts, each taken apart into its glyphs' bits and the rest, and put together again byte for byte.

A format is a module that gives

    take(raw, at) -> (end, rest, bits)   the file that begins at `at`; ValueError when none does
    grid(rest) -> Grid                   where the glyphs lie in the bits, from the rest alone
    give(rest, bits) -> bytes            the file

`rest` is not what lies around the bits as it stands but as it packs best: tables by column, numbers as differences.
"""
