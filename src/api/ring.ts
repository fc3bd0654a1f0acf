/**
 * A netmap ring as an application sees it: netmap's accessors, on shared memory. Nothing here allocates, calls the host or
 * uses an atomic operation; the sync functions of the port do.
 *
 * The application owns the slots from head to the one before tail, writes head and cur, and never writes tail
 * (net/netmap.h, "RINGS"). tx: slots it may fill; rx: slots that hold packets.
 */
import type { Views } from '../abi/index.ts';
import { NETMAP_FIRST_BUF, NR_DIR_TX, NR_TIMESTAMP, NS_BUF_CHANGED, netmap_ring, netmap_slot } from '../abi/index.ts';
import type { GuestKring } from '../guest/index.ts';

const { head: HEAD, cur: CUR } = netmap_ring.ofs;
const { len: LEN, flags: FLAGS } = netmap_slot.ofs;
const SLOT_SHIFT = Math.log2(netmap_slot.size);

/** A ring outlives its port's memory; after `close` accesses find nothing, instead of an address without memory. */
const noMemory: Views = {
  u8: new Uint8Array(0),
  u16: new Uint16Array(0),
  u32: new Uint32Array(0),
  i32: new Int32Array(0),
  u64: new BigUint64Array(0),
};

export class NetmapRing {
  readonly numSlots: number;
  /** Bytes of each slot's buffer (nr_buf_size). */
  readonly bufSize: number;
  readonly ringId: number;
  /** NR_DIR_TX or NR_DIR_RX. */
  readonly dir: number;
  readonly #kring: GuestKring;
  #m: Views;
  readonly #head: number;
  readonly #cur: number;
  readonly #ringFlags: number;
  readonly #tsSec: number;
  readonly #tsUsec: number;
  /** Address of slot 0. */
  readonly #slots: number;
  /** Address of buffer 0, and how many buffers there are. */
  readonly #buffers: number;
  readonly #numBufs: number;

  /** Made by the port. @param buffers address of buffer 0 @param numBufs buffers in the region */
  constructor(kring: GuestKring, bufSize: number, buffers: number, numBufs: number) {
    this.numSlots = kring.numSlots;
    this.bufSize = bufSize;
    this.ringId = kring.ringId;
    this.dir = kring.dir;
    this.#kring = kring;
    this.#m = kring.m;
    this.#head = (kring.ring + HEAD) >>> 2;
    this.#cur = (kring.ring + CUR) >>> 2;
    this.#ringFlags = (kring.ring + netmap_ring.ofs.flags) >>> 2;
    this.#tsSec = (kring.ring + netmap_ring.ofs.ts_sec) >>> 2;
    this.#tsUsec = (kring.ring + netmap_ring.ofs.ts_usec) >>> 2;
    this.#slots = kring.ring + netmap_ring.size;
    this.#buffers = buffers;
    this.#numBufs = numBufs;
  }

  /** First slot that the application owns. Moving it forward hands slots over at the next sync. */
  get head(): number {
    return this.#m.u32[this.#head]!;
  }
  set head(i: number) {
    this.#m.u32[this.#head] = i;
  }

  /** Wake-up point: poll and wait return when tail goes past it. From head to tail. */
  get cur(): number {
    return this.#m.u32[this.#cur]!;
  }
  set cur(i: number) {
    this.#m.u32[this.#cur] = i;
  }

  /** First slot that the host owns; changed by the sync functions only. */
  get tail(): number {
    return this.#kring.rtail;
  }

  /** Flags of the ring: NR_TIMESTAMP asks for `ts`; NR_FORWARD means nothing without host rings. */
  get ringFlags(): number {
    return this.#m.u32[this.#ringFlags]!;
  }
  set ringFlags(flags: number) {
    this.#m.u32[this.#ringFlags] = flags;
  }

  /** ts: when the last sync of this rx ring took place, if it has NR_TIMESTAMP; µs since 1970. */
  get ts(): number {
    return this.#m.u32[this.#tsSec]! * 1e6 + this.#m.u32[this.#tsUsec]!;
  }

  /** Called by the port after a sync. Here, not on the host, as in CSB mode the host leaves the netmap_ring alone (R6). */
  stamp(): void {
    if ((this.#m.u32[this.#ringFlags]! & NR_TIMESTAMP) === 0) return;
    const us = (performance.timeOrigin + performance.now()) * 1000;
    this.#m.u32[this.#tsSec] = us / 1e6;
    this.#m.u32[this.#tsUsec] = us % 1e6;
  }

  /** Slots that the application owns, from head on (nm_ring_space with head). */
  space(): number {
    const space = this.#kring.rtail - this.#m.u32[this.#head]!;
    return space < 0 ? space + this.numSlots : space;
  }

  /** The slot after slot i (nm_ring_next). */
  next(i: number): number {
    return i + 1 === this.numSlots ? 0 : i + 1;
  }

  /**
   * Where slot i is in the port's memory: &ring->slot[i], the byte offset of a netmap_slot; the slots up to the last one
   * follow. For loops over many slots, which then read and write words of `port.m` without a check for each.
   * @throws RangeError if there is no such slot, or no ring any more (the port was closed)
   */
  slotOfs(i: number): number {
    if (this.#m === noMemory) throw new RangeError(`${this.name} has no slots: its port was closed`);
    return this.#slot(i);
  }

  /** Index of slot i's buffer (buf_idx). */
  bufIdx(i: number): number {
    return this.#m.u32[this.#slot(i) >>> 2]!;
  }

  /** Puts another buffer into slot i, and says so (NS_BUF_CHANGED). For passing packets on without copying them. */
  setBufIdx(i: number, bufIdx: number): void {
    const p = this.#slot(i);
    this.#m.u32[p >>> 2] = bufIdx;
    this.#m.u16[(p + FLAGS) >>> 1]! |= NS_BUF_CHANGED;
  }

  /** Bytes of slot i's packet (of this part of it, if NS_MOREFRAG is set). */
  len(i: number): number {
    return this.#m.u16[(this.#slot(i) + LEN) >>> 1]!;
  }
  setLen(i: number, bytes: number): void {
    this.#m.u16[(this.#slot(i) + LEN) >>> 1] = bytes;
  }

  /** NS_ flags of slot i. */
  flags(i: number): number {
    return this.#m.u16[(this.#slot(i) + FLAGS) >>> 1]!;
  }
  setFlags(i: number, flags: number): void {
    this.#m.u16[(this.#slot(i) + FLAGS) >>> 1] = flags;
  }

  /** Where slot i's buffer is in the port's memory: NETMAP_BUF, a byte offset in `port.m.u8`. */
  bufOfs(i: number): number {
    const bufIdx = this.#m.u32[this.#slot(i) >>> 2]!;
    if (bufIdx < NETMAP_FIRST_BUF || bufIdx >= this.#numBufs) this.#badBuffer(i, bufIdx);
    return this.#buffers + bufIdx * this.bufSize;
  }

  /** Called by the port when its memory goes away. */
  detach(): void {
    this.#m = noMemory;
  }

  get name(): string {
    return `${this.dir === NR_DIR_TX ? 'tx' : 'rx'} ring ${this.ringId}`;
  }

  #slot(i: number): number {
    if (!(i >= 0 && i < this.numSlots)) this.#badSlot(i);
    return this.#slots + (i << SLOT_SHIFT);
  }

  #badSlot(i: number): never {
    throw new RangeError(`${this.name} has no slot ${i}: it has ${this.numSlots}, from 0 on`);
  }

  #badBuffer(i: number, bufIdx: number): never {
    throw new RangeError(`slot ${i} of ${this.name} has buffer ${bufIdx}: there are 2 to ${this.#numBufs - 1}`);
  }
}
