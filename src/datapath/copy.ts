/**
 * Copies of frames. Exactly the given bytes are read and written, so a receiver never sees what else the sender's buffer
 * holds (R9): where the length is no multiple of the blocks, the last block ends with the frame and overlaps the one
 * before. (Measured: faster than masking the last block, and no address need be aligned.) Long ones go by `memory.copy`,
 * whose stores are wider than WebAssembly's own: `copyBulk` says what makes that safe.
 */

/** Most bytes of a frame for `copyFrame`. */
export const SHORT: u32 = 64;

/** From so many bytes on `copyBulk` is worth its call, some 3 ns. */
export const BULK: u32 = 512;

/**
 * Copies a frame of 8 to SHORT bytes. This and `copyLong` make no calls and have one caller, so that they are inlined
 * in its loop, which keeps its state in registers.
 */
export function copyFrame(src: usize, dst: usize, len: u32): void {
  const over = dst - src;
  if (len >= 32) {
    const last = src + len - 32;
    const a = v128.load(src);
    const b = v128.load(src, 16);
    const c = v128.load(last);
    const d = v128.load(last, 16);
    v128.store(dst, a);
    v128.store(dst, b, 16);
    v128.store(last + over, c);
    v128.store(last + over, d, 16);
  } else if (len >= 16) {
    const last = src + len - 16;
    const a = v128.load(src);
    const b = v128.load(last);
    v128.store(dst, a);
    v128.store(last + over, b);
  } else {
    const last = src + len - 8;
    const a = load<u64>(src);
    const b = load<u64>(last);
    store<u64>(dst, a);
    store<u64>(last + over, b);
  }
}

/** Copies a frame of more than SHORT bytes; from BULK on `copyBulk` is faster. */
export function copyLong(src: usize, dst: usize, len: u32): void {
  const over = dst - src;
  const last = src + len - 64;
  for (const last2 = last - 64; src < last2; src += 128) copy128(src, src + over);
  if (src < last) copy64(src, src + over);
  copy64(last, last + over);
}

/** Loads a byte of every line of a frame, so that they are on their way here while something else is done. */
export function touch(src: usize, len: u32): void {
  for (const end = src + len; src < end; src += 64) load<u8>(src);
}

/** Copies any number of bytes between any addresses that do not overlap. */
export function copyBytes(src: usize, dst: usize, len: u32): void {
  if (len < 64) {
    copyShort(src, dst, len);
    return;
  }
  if (len >= BULK) {
    copyBulk(src, dst, len);
    return;
  }
  for (const last = src + len - 64; src < last; src += 64, dst += 64) copy64(src, dst);
  // src is now past the start of the last block, by as much as dst is.
  const over = (0 - len) & 63;
  copy64(src - over, dst - over);
}

/**
 * Copies a long frame by a bulk-memory instruction. Where nothing is mapped, or may not be written, one ends the process
 * instead of trapping (R2). So the first and the last byte go before, by plain instructions, which trap: a buffer lies in
 * one mapping, and is mapped from end to end or not at all.
 */
export function copyBulk(src: usize, dst: usize, len: u32): void {
  const last = len - 1;
  store<u8>(dst, load<u8>(src));
  store<u8>(dst + last, load<u8>(src + last));
  memory.copy(dst, src, len);
}

function copy128(src: usize, dst: usize): void {
  const a = v128.load(src);
  const b = v128.load(src, 16);
  const c = v128.load(src, 32);
  const d = v128.load(src, 48);
  const e = v128.load(src, 64);
  const f = v128.load(src, 80);
  const g = v128.load(src, 96);
  const h = v128.load(src, 112);
  v128.store(dst, a);
  v128.store(dst, b, 16);
  v128.store(dst, c, 32);
  v128.store(dst, d, 48);
  v128.store(dst, e, 64);
  v128.store(dst, f, 80);
  v128.store(dst, g, 96);
  v128.store(dst, h, 112);
}

function copy64(src: usize, dst: usize): void {
  const a = v128.load(src);
  const b = v128.load(src, 16);
  const c = v128.load(src, 32);
  const d = v128.load(src, 48);
  v128.store(dst, a);
  v128.store(dst, b, 16);
  v128.store(dst, c, 32);
  v128.store(dst, d, 48);
}

function copyShort(src: usize, dst: usize, len: u32): void {
  const end = src + len;
  if (len >= 16) {
    for (const last = end - 16; src < last; src += 16, dst += 16) v128.store(dst, v128.load(src));
    const over = end - 16 - src;
    v128.store(dst + over, v128.load(src + over));
    return;
  }
  for (; src != end; src++, dst++) store<u8>(dst, load<u8>(src));
}

/** Writes a VirtIO network header of `len` (10 or 12) bytes: its first 10 come from `header`, the others are 0. */
export function storeVnetHdr(dst: usize, header: v128, len: u32): void {
  store<u64>(dst, i64x2.extract_lane(header, 0));
  store<u16>(dst, <u16>i64x2.extract_lane(header, 1), 8);
  if (len == 12) store<u16>(dst, 0, 10);
}
