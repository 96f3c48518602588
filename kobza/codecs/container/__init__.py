"""The .kbz container: independent checked blocks, an index, and a footer that says the file is whole.

The format (version 1.1, little endian; `varint` is LEB128 in its shortest form, at most 2^64 - 1):

    header   magic 89 4B 42 5A 0D 0A 1A 0A | major u8 | minor u8 | flags u8 | log2(block size) u8
             raw size + 1 as varint, 0 when it was not known | number of codecs u8
             per codec: version u8 | name (u8 length, ASCII) | parameters (varint length, then per parameter:
             name (u8 length, ASCII), value (varint length, bytes); names ascending)
             CRC-32C of everything so far
    block    codec u8 (0 stored as it is, n the n-th codec of the header) | raw size varint | packed size varint
             CRC-32C of the raw bytes | payload
    end      FF | number of blocks varint | per block: raw size varint, packed size varint
    footer   length of the end part u32 | SHA-256 of all raw bytes | CRC-32C of end part and footer so far
             1A 'K' 'B' 'Z'

What fits in one block is written in fewer bytes (flag 2, minor version 1; the header tells the raw size), with the one
digest in place of block checksum, index and footer:

    block    codec u8 | packed size varint | payload
    end      first 16 bytes of the SHA-256 of the raw bytes

A block that would not shrink is stored. Minor versions only add; a critical flag that is not known is refused.
A file without its footer is an error, never an end.
"""
