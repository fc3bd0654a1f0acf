/**
 * Private copy of a packet's protocol headers (offload.hdr): read and changed here, never in a peer's memory (R5).
 * `p` is an offset in it. Words of the network are big-endian; sums are of little-endian words (as in offload-copy.ts).
 */
import { offload_hdr } from './layouts.generated';

export function get8(o: usize, p: u32): u32 {
  return load<u8>(o + p, offload_hdr);
}
export function get16(o: usize, p: u32): u32 {
  return bswap<u16>(load<u16>(o + p, offload_hdr));
}
export function get32(o: usize, p: u32): u32 {
  return bswap<u32>(load<u32>(o + p, offload_hdr));
}
export function put8(o: usize, p: u32, value: u32): void {
  store<u8>(o + p, <u8>value, offload_hdr);
}
export function put16(o: usize, p: u32, value: u32): void {
  store<u16>(o + p, bswap<u16>(<u16>value), offload_hdr);
}
export function put32(o: usize, p: u32, value: u32): void {
  store<u32>(o + p, bswap<u32>(value), offload_hdr);
}
/** Stores the complement of a folded sum: a finished checksum. */
export function putCheck(o: usize, p: u32, sum: u32): void {
  store<u16>(o + p, <u16>~sum, offload_hdr);
}
/** Sum of `len` bytes from `p` on; `len` is even. */
export function sumHeader(o: usize, p: u32, len: u32): u64 {
  let sum: u64 = 0;
  for (const end = p + len; p != end; p += 2) sum += load<u16>(o + p, offload_hdr);
  return sum;
}
