/**
 * Copies that sum: the ones' complement sum of the Internet checksum (RFC 1071), taken from the very bytes that are
 * written, so that a sender who changes a frame meanwhile gets at most a frame that is his own fault (R5). Touches
 * peers' memory, as copy.ts does; no bulk-memory instructions.
 */

/** Folds a sum of 16-bit words to 16 bits. */
export function foldSum(sum: u64): u32 {
  sum = (sum & 0xffff_ffff) + (sum >> 32);
  sum = (sum & 0xffff) + (sum >> 16);
  sum = (sum & 0xffff) + (sum >> 16);
  return <u32>((sum & 0xffff) + (sum >> 16));
}

/**
 * Copies exactly `len` bytes (at most 65,535), between any addresses. Returns the folded sum of their little-endian
 * 16-bit words; the last byte of an odd length counts as if a zero followed.
 */
export function copySum(src: usize, dst: usize, len: u32): u32 {
  // Four lanes of 32 bits: 4096 blocks add at most 2 * 65535 each, so no lane overflows.
  let lanes = i32x4.splat(0);
  let more = i32x4.splat(0);
  for (const end = src + (len & ~63); src != end; src += 64, dst += 64) {
    const a = v128.load(src);
    const b = v128.load(src, 16);
    const c = v128.load(src, 32);
    const e = v128.load(src, 48);
    v128.store(dst, a);
    v128.store(dst, b, 16);
    v128.store(dst, c, 32);
    v128.store(dst, e, 48);
    lanes = i32x4.add(lanes, i32x4.extadd_pairwise_i16x8_u(a));
    more = i32x4.add(more, i32x4.extadd_pairwise_i16x8_u(b));
    lanes = i32x4.add(lanes, i32x4.extadd_pairwise_i16x8_u(c));
    more = i32x4.add(more, i32x4.extadd_pairwise_i16x8_u(e));
  }
  for (const end = src + (len & 48); src != end; src += 16, dst += 16) {
    const a = v128.load(src);
    v128.store(dst, a);
    lanes = i32x4.add(lanes, i32x4.extadd_pairwise_i16x8_u(a));
  }
  let sum = sumLanes(lanes) + sumLanes(more);
  for (const end = src + (len & 14); src != end; src += 2, dst += 2) {
    const word = load<u16>(src);
    store<u16>(dst, word);
    sum += word;
  }
  if ((len & 1) != 0) {
    const byte = load<u8>(src);
    store<u8>(dst, byte);
    sum += byte;
  }
  return foldSum(sum);
}

function sumLanes(lanes: v128): u64 {
  return (
    <u64>(<u32>i32x4.extract_lane(lanes, 0)) +
    <u64>(<u32>i32x4.extract_lane(lanes, 1)) +
    <u64>(<u32>i32x4.extract_lane(lanes, 2)) +
    <u64>(<u32>i32x4.extract_lane(lanes, 3))
  );
}

/** Writes one byte of a frame that is the host's. */
export function storeFrameByte(dst: usize, value: u32): void {
  store<u8>(dst, <u8>value);
}
