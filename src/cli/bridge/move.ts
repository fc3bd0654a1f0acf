/**
 * Moving packets from rx rings to tx rings: netmap bridge's rings_move and ports_move. By swapping buffers if both rings
 * are in one region, by copying otherwise. Nothing is allocated for a packet.
 */
import { NS_MOREFRAG, type Views } from '../../api/index.ts';
import type { PktPort, PktRing } from '../pkt-gen/run.ts';
import { BUF_CHANGED, LEN, LEN_FLAGS, MOREFRAG, SLOT_WORDS } from '../slot-words.ts';

/** Up to this length a loop over words is faster than copyWithin. */
const SHORT_COPY = 256;

/** Copies `len` bytes between multiples of 4; up to 3 bytes more. */
export function copyBytes(from: Views, at: number, to: Views, ofs: number, len: number): void {
  if (len <= SHORT_COPY) {
    const source = at >>> 2;
    const target = ofs >>> 2;
    const words = (len + 3) >>> 2;
    for (let i = 0; i < words; i++) to.u32[target + i] = from.u32[source + i]!;
  } else if (from.u8 === to.u8) to.u8.copyWithin(ofs, at, at + len);
  else to.u8.set(from.u8.subarray(at, at + len), ofs);
}

/** What was moved. */
export class Moved {
  packets = 0;
  bytes = 0;
  /** Slots whose length or buffer made no sense: sent empty. */
  bad = 0;
  /** Packets with more slots than a tx ring can ever take: dropped. */
  tooLong = 0;
}

/** Slots that can be moved, at most `limit`, without cutting a packet in two: the rest of it might go another way. */
function wholePackets(rx: PktRing, room: number, limit: number): number {
  const there = rx.space();
  let slots = Math.min(there, room, limit);
  if (slots === there) return slots; // an rx ring ends with a whole packet
  for (let last = (rx.head + slots - 1) % rx.numSlots; slots > 0; slots--) {
    if ((rx.flags(last) & NS_MOREFRAG) === 0) return slots;
    last = last === 0 ? rx.numSlots - 1 : last - 1;
  }
  // The first packet is longer than `limit`.
  return room > limit ? wholePackets(rx, room, room) : 0;
}

/** Exchanges the buffers of n slots, of which the first are at words r and t; len and NS_MOREFRAG go with the packets. */
function exchange(src: PktPort, r: number, dst: PktPort, t: number, n: number, moved: Moved): void {
  const from = src.m.u32;
  const to = dst.m.u32;
  const { bufSize } = src;
  const end = r + n * SLOT_WORDS;
  let packets = 0;
  let bytes = 0;
  for (; r !== end; r += SLOT_WORDS, t += SLOT_WORDS) {
    const full = from[r]!;
    const lenFlags = from[r + LEN_FLAGS]!;
    let len = lenFlags & LEN;
    if (len > bufSize) {
      moved.bad += 1;
      len = 0;
    }
    from[r] = to[t]!;
    from[r + LEN_FLAGS] = lenFlags | BUF_CHANGED;
    to[t] = full;
    to[t + LEN_FLAGS] = (to[t + LEN_FLAGS]! & ~(LEN | MOREFRAG)) | BUF_CHANGED | (lenFlags & MOREFRAG) | len;
    bytes += len;
    if ((lenFlags & MOREFRAG) === 0) packets += 1;
  }
  moved.packets += packets;
  moved.bytes += bytes;
}

/** Copies a slot's packet. */
function copySlot(src: PktPort, rx: PktRing, j: number, dst: PktPort, tx: PktRing, k: number, moved: Moved): void {
  let len = rx.len(j);
  if (len > src.bufSize) {
    moved.bad += 1;
    len = 0;
  }
  const more = rx.flags(j) & NS_MOREFRAG;
  copyBytes(src.m, rx.bufOfs(j), dst.m, tx.bufOfs(k), len);
  tx.setLen(k, len);
  tx.setFlags(k, (tx.flags(k) & ~NS_MOREFRAG) | more);
  moved.bytes += len;
  if (more === 0) moved.packets += 1;
}

/** Releases the first packet of an rx ring, for which the whole tx ring is too short. Returns its slots. */
function dropPacket(rx: PktRing, moved: Moved): number {
  let slots = 0;
  for (let more = NS_MOREFRAG; more !== 0 && rx.head !== rx.tail; rx.head = rx.next(rx.head), slots++) {
    more = rx.flags(rx.head) & NS_MOREFRAG;
  }
  rx.cur = rx.head;
  moved.tooLong += 1;
  return slots;
}

/** Moves up to `limit` slots from an rx ring to a tx ring; returns how many, or how many it had to drop. */
function ringsMove(
  src: PktPort,
  rx: PktRing,
  dst: PktPort,
  tx: PktRing,
  limit: number,
  zeroCopy: boolean,
  moved: Moved,
): number {
  const slots = wholePackets(rx, tx.space(), limit);
  if (slots === 0 && tx.space() === tx.numSlots - 1) return dropPacket(rx, moved);
  let j = rx.head;
  let k = tx.head;
  for (let left = slots; left > 0; ) {
    const n = Math.min(left, rx.numSlots - j, tx.numSlots - k);
    if (zeroCopy) exchange(src, rx.slotOfs(j) >>> 2, dst, tx.slotOfs(k) >>> 2, n, moved);
    else for (let i = 0; i < n; i++) copySlot(src, rx, j + i, dst, tx, k + i, moved);
    left -= n;
    j = j + n === rx.numSlots ? 0 : j + n;
    k = k + n === tx.numSlots ? 0 : k + n;
  }
  rx.head = j;
  rx.cur = j;
  tx.head = k;
  // A packet that does not fit yet: POLLOUT means more room than there is now.
  tx.cur = slots === 0 ? tx.tail : k;
  return slots;
}

/** Moves what there is from a port's rx rings to another's tx rings, at most about `limit` slots a ring. */
export function portsMove(src: PktPort, dst: PktPort, limit: number, zeroCopy: boolean, moved: Moved): void {
  let di = 0;
  for (let si = 0; si < src.rxRings.length; si++) {
    const rx = src.rxRings[si]!;
    let left = limit;
    while (left > 0 && rx.space() > 0 && di < dst.txRings.length) {
      const slots = ringsMove(src, rx, dst, dst.txRings[di]!, left, zeroCopy, moved);
      if (slots === 0) di++;
      else left -= slots;
    }
  }
}
