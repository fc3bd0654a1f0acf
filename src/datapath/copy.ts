/**
 * Copies between frames' buffers. Whole buffers start at multiples of 64 bytes and their sizes are multiples of 64, so
 * blocks of 64 bytes never leave one. No bulk-memory instructions: on an unmapped page they end the process.
 */

/**
 * Copies `len` bytes, 64 at a time, from the start of a buffer to the start of another one of at least `len` bytes.
 * What the last block holds beyond `len` becomes zeros: no stale bytes of the sender (R9).
 */
export function copyBuffer(src: usize, dst: usize, len: u32): void {
  const end = src + (len & ~63);
  while (src != end) {
    const a = v128.load(src);
    const b = v128.load(src, 16);
    const c = v128.load(src, 32);
    const d = v128.load(src, 48);
    v128.store(dst, a);
    v128.store(dst, b, 16);
    v128.store(dst, c, 32);
    v128.store(dst, d, 48);
    src += 64;
    dst += 64;
  }
  const rest = len & 63;
  if (rest == 0) return;
  const limit = i8x16.splat(<i8>rest);
  const first = i8x16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const a = v128.load(src);
  const b = v128.load(src, 16);
  const c = v128.load(src, 32);
  const d = v128.load(src, 48);
  v128.store(dst, keep(a, limit, first));
  v128.store(dst, keep(b, limit, i8x16.add(first, i8x16.splat(16))), 16);
  v128.store(dst, keep(c, limit, i8x16.add(first, i8x16.splat(32))), 32);
  v128.store(dst, keep(d, limit, i8x16.add(first, i8x16.splat(48))), 48);
}

/** Those bytes of a block whose position is below the limit. Signed comparison: one instruction; all are below 128. */
function keep(block: v128, limit: v128, positions: v128): v128 {
  return v128.and(block, i8x16.gt_s(limit, positions));
}

/** Copies exactly `len` bytes between any addresses. Slower: for frames whose header is cut off or put in front. */
export function copyBytes(src: usize, dst: usize, len: u32): void {
  const end = src + len;
  for (const blocks = src + (len & ~15); src != blocks; src += 16, dst += 16) v128.store(dst, v128.load(src));
  for (; src != end; src++, dst++) store<u8>(dst, load<u8>(src));
}

/** Writes a VirtIO network header of `len` (10 or 12) bytes: its first 10 come from `header`, the others are 0. */
export function storeVnetHdr(dst: usize, header: v128, len: u32): void {
  store<u64>(dst, i64x2.extract_lane(header, 0));
  store<u16>(dst, <u16>i64x2.extract_lane(header, 1), 8);
  if (len == 12) store<u16>(dst, 0, 10);
}
