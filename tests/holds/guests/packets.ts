/**
 * Numbered packets whose every word depends on their number, and what both ends of a stream need: filling a packet into
 * slots, checking one, moving whole chains. Frames: Ethernet header (14 bytes, padded to 16), number, words.
 */
import type { NetmapPort, NetmapRing } from '../../../src/api/index.ts';
import { NS_MOREFRAG, POLLIN, POLLOUT } from '../../../src/api/index.ts';

const HEADER = 16;

export const macBytes = (text: string): number[] => text.split(':').map((hex) => Number.parseInt(hex, 16));

/** Word i of packet n. */
const word = (n: number, i: number): number => (Math.imul(n, 0x9e3779b1) ^ Math.imul(i, 0x85ebca6b)) >>> 0;

export class Stream {
  readonly port: NetmapPort;
  readonly bytes: number;
  readonly frags: number;
  readonly #dst: readonly number[];
  readonly #src: readonly number[];

  /** @param bytes of each packet, a multiple of 4 but for its header's 14 */
  constructor(port: NetmapPort, dst: string, bytes: number) {
    this.port = port;
    this.bytes = bytes;
    this.frags = Math.ceil(bytes / port.bufSize);
    this.#dst = macBytes(dst);
    this.#src = macBytes(port.mac);
  }

  /** Fills packet n into the slots from head on, if there is room. */
  put(ring: NetmapRing, n: number): boolean {
    if (ring.space() < this.frags) return false;
    const { m, bufSize } = this.port;
    let head = ring.head;
    let i = 0;
    for (let left = this.bytes, f = 0; left > 0; f++) {
      const len = left < bufSize ? left : bufSize;
      const at = ring.bufOfs(head);
      let p = at;
      if (f === 0) {
        for (let k = 0; k < 6; k++) {
          m.u8[at + k] = this.#dst[k]!;
          m.u8[at + 6 + k] = this.#src[k]!;
        }
        m.u8[at + 12] = 0x88;
        m.u8[at + 13] = 0xb5;
        m.u32[(at + HEADER) >>> 2] = n;
        p = at + HEADER + 4;
      }
      // Frames need not end on a word: the last bytes are those of a whole word.
      for (; p + 4 <= at + len; p += 4) m.u32[p >>> 2] = word(n, i++);
      for (let shift = 0; p < at + len; p++, shift += 8) m.u8[p] = word(n, i) >>> shift;
      ring.setLen(head, len);
      ring.setFlags(head, left > len ? NS_MOREFRAG : 0);
      head = ring.next(head);
      left -= len;
    }
    ring.head = ring.cur = head;
    return true;
  }

  /** Checks the packet at head and takes it. Returns its number. @throws Error if it is not what was sent */
  take(ring: NetmapRing): number {
    const { m, bufSize } = this.port;
    let head = ring.head;
    let i = 0;
    let n = 0;
    for (let left = this.bytes, f = 0; left > 0; f++) {
      const len = left < bufSize ? left : bufSize;
      const more = left > len;
      if (head === ring.tail) throw new Error(`packet cut at fragment ${f} of ${this.frags}`);
      if (ring.len(head) !== len || ((ring.flags(head) & NS_MOREFRAG) !== 0) !== more) {
        throw new Error(`fragment ${f} of ${this.frags}: ${ring.len(head)} bytes, flags ${ring.flags(head)}`);
      }
      const at = ring.bufOfs(head);
      let p = at;
      if (f === 0) {
        n = m.u32[(at + HEADER) >>> 2]!;
        p = at + HEADER + 4;
      }
      for (; p + 4 <= at + len; p += 4) if (m.u32[p >>> 2] !== word(n, i++)) this.#damaged(n, p - at);
      for (let shift = 0; p < at + len; p++, shift += 8) {
        if (m.u8[p] !== ((word(n, i) >>> shift) & 255)) this.#damaged(n, p - at);
      }
      head = ring.next(head);
      left -= len;
    }
    ring.head = ring.cur = head;
    return n;
  }

  #damaged(n: number, at: number): never {
    throw new Error(`packet ${n} is damaged at byte ${at}`);
  }
}

/** Waits for `events`; gives up (the parent has ended, say) after a minute. */
export function poll(port: NetmapPort, events: number): void {
  for (let i = 0; i < 600; i++) if (port.poll(events, 100) !== 0) return;
  throw new Error(
    `nothing for a minute: events ${events}, tx ${port.txRings[0]!.space()} rx ${port.rxRings[0]!.space()}`,
  );
}

export { POLLIN, POLLOUT };
