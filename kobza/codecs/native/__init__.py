"""Inner loops in C, each with a plain Python twin that specifies it.

The compiled module `_kernels` is optional: without a compiler the twins do the same work, slower, bit for bit.
`compiled` says which of the two is in use; `kernels` is the compiled module, or None.
"""

from __future__ import annotations

from typing import Any

from kobza.codecs.native import plain_bpe, plain_checksum, plain_glyphs, plain_mixing, plain_picture, plain_ulz

kernels: Any
try:
    from kobza.codecs.native import _kernels as kernels  # type: ignore[attr-defined, no-redef]
except ImportError:
    kernels = None

compiled: bool = kernels is not None

crc32c = kernels.crc32c if compiled else plain_checksum.crc32c
bpe_learn = kernels.bpe_learn if compiled else plain_bpe.bpe_learn
bpe_apply = kernels.bpe_apply if compiled else plain_bpe.bpe_apply
bpe_expand = kernels.bpe_expand if compiled else plain_bpe.bpe_expand
ulz_encode = kernels.ulz_encode if compiled else plain_ulz.ulz_encode
ulz_decode = kernels.ulz_decode if compiled else plain_ulz.ulz_decode
mixing_encode = kernels.mixing_encode if compiled else plain_mixing.mixing_encode
mixing_open = kernels.mixing_open if compiled else plain_mixing.mixing_open
mixing_turn = kernels.mixing_turn if compiled else plain_mixing.mixing_turn
mixing_predict = kernels.mixing_predict if compiled else plain_mixing.mixing_predict
mixing_update = kernels.mixing_update if compiled else plain_mixing.mixing_update
mixing_decode = kernels.mixing_decode if compiled else plain_mixing.mixing_decode
picture_encode = kernels.picture_encode if compiled else plain_picture.picture_encode
picture_decode = kernels.picture_decode if compiled else plain_picture.picture_decode
glyphs_encode = kernels.glyphs_encode if compiled else plain_glyphs.glyphs_encode
glyphs_decode = kernels.glyphs_decode if compiled else plain_glyphs.glyphs_decode
