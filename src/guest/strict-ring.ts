/**
 * One ring as a strict guest drives it: the accesses that FreeBSD's if_ptnet, netmap's Linux driver and netmap's guest
 * sync functions make to the CSB, in their order and with no barrier more than they have, with every value that they
 * rely on checked. What it checks is listed in strict-guest.ts.
 *
 * CSB words are plain loads and stores on purpose: on x86 that is what the drivers' stores and loads are, so a store of
 * head may still be on its way while kern_need_kick is read (R12). Only `stldBarrier` is a full barrier.
 */
import type { Views } from '../abi/index.ts';
import {
  NETMAP_FIRST_BUF,
  NETMAP_MAX_FRAGS,
  NR_DIR_TX,
  NS_INDIRECT,
  NS_MOREFRAG,
  NS_RFRAGS_SHIFT,
  netmap_ring,
  netmap_slot,
  nm_csb_atok,
  nm_csb_ktoa,
} from '../abi/index.ts';
import { errno, SysError } from '../os/index.ts';

/** The host broke a rule that a guest driver relies on. */
export function violation(text: string): SysError {
  return new SysError(`strict guest: ${text}`, errno.EPROTO);
}

export function must(holds: boolean, text: () => string): void {
  if (!holds) throw violation(text());
}

const fence = new Int32Array(new SharedArrayBuffer(4));
/** nm_stld_barrier. */
export function stldBarrier(): void {
  Atomics.add(fence, 0, 1);
}

export interface StrictRingPlace {
  readonly m: Views;
  /** Addresses of the netmap_ring, of this ring's CSB halves, and of buffer 0. */
  readonly ring: number;
  readonly atok: number;
  readonly ktoa: number;
  readonly buffers: number;
  readonly numSlots: number;
  readonly dir: number;
  readonly ringId: number;
  readonly bufSize: number;
  readonly numBufs: number;
}

export class StrictRing {
  readonly at: StrictRingPlace;
  readonly name: string;
  /** ring->head and ring->cur, and what was last written to the CSB (kring->rhead, rcur). */
  head = 0;
  cur = 0;
  rhead = 0;
  rcur = 0;
  /** ring->tail = kring->rtail = nr_hwtail, and nr_hwcur. */
  tail = 0;
  hwcur = 0;
  #applNeedKick = 0;
  #syncFlags = 0;
  /** The host has taken the ring over: what is the guest's to write, the guest alone writes. */
  #running = false;

  constructor(at: StrictRingPlace) {
    this.at = at;
    this.name = `${at.dir === NR_DIR_TX ? 'tx' : 'rx'} ring ${at.ringId}`;
  }

  // The two halves of the CSB, word by word.

  get applNeedKick(): number {
    return nm_csb_atok.get.appl_need_kick(this.at.m, this.at.atok);
  }
  set applNeedKick(value: number) {
    if (this.#running) this.#checkUntouched();
    this.#applNeedKick = value;
    nm_csb_atok.set.appl_need_kick(this.at.m, this.at.atok, value);
  }
  set syncFlags(value: number) {
    this.#syncFlags = value;
    nm_csb_atok.set.sync_flags(this.at.m, this.at.atok, value);
  }
  get kernNeedKick(): boolean {
    const value = nm_csb_ktoa.get.kern_need_kick(this.at.m, this.at.ktoa);
    must(value <= 1, () => `${this.name}: kern_need_kick is ${value}, 0 or 1 is legal`);
    return value !== 0;
  }
  set kernNeedKick(value: boolean) {
    nm_csb_ktoa.set.kern_need_kick(this.at.m, this.at.ktoa, value ? 1 : 0);
  }

  next(i: number): number {
    return i + 1 === this.at.numSlots ? 0 : i + 1;
  }

  prev(i: number): number {
    return i === 0 ? this.at.numSlots - 1 : i - 1;
  }

  /** Slots from a on to b, in ring order. */
  distance(a: number, b: number): number {
    return b >= a ? b - a : b - a + this.at.numSlots;
  }

  get space(): number {
    return this.distance(this.head, this.tail);
  }

  /** Whether the host has moved hwtail since it was last read. */
  get moved(): boolean {
    return nm_csb_ktoa.get.hwtail(this.at.m, this.at.ktoa) !== this.tail;
  }

  /**
   * Takes the positions that the host wrote at CREATE (ptnet_sync_from_csb). A ring that ran before goes on where it
   * stopped: `before` is the ring as it was at DELETE.
   */
  syncFromCsb(before?: StrictRing): void {
    const { m, atok, ktoa, numSlots: n, dir } = this.at;
    const head = nm_csb_atok.get.head(m, atok);
    const cur = nm_csb_atok.get.cur(m, atok);
    const hwcur = nm_csb_ktoa.get.hwcur(m, ktoa);
    const hwtail = nm_csb_ktoa.get.hwtail(m, ktoa);
    const says = (): string => `head ${head} cur ${cur} hwcur ${hwcur} hwtail ${hwtail} of ${n} slots after CREATE`;
    must(head < n && cur < n && hwcur < n && hwtail < n, () => `${this.name}: ${says()}: out of range`);
    const toTail = this.distance(hwcur, hwtail);
    const toCur = this.distance(hwcur, cur);
    must(this.distance(hwcur, head) <= toCur && toCur <= toTail, () => `${this.name}: ${says()}: not in order`);
    must(this.applNeedKick === 1, () => `${this.name}: appl_need_kick is ${this.applNeedKick} after CREATE`);
    if (before === undefined) {
      const fresh = head === 0 && hwcur === 0 && (dir !== NR_DIR_TX || hwtail === n - 1);
      must(fresh, () => `${this.name} is new, but has ${says()}`);
    } else {
      must(head === before.rhead && cur === before.rcur, () => {
        return `${this.name} was deleted at head ${before.rhead} cur ${before.rcur}, now it has ${says()}`;
      });
      const moved = this.distance(before.tail, hwtail);
      must(moved <= this.distance(before.tail, this.prev(before.rhead)), () => {
        return `${this.name} was deleted at hwtail ${before.tail}, now it has ${says()}`;
      });
    }
    // The ring runs already: packets may have come before the guest looked.
    if (dir !== NR_DIR_TX) this.#checkReceived(head, hwtail);
    this.rhead = head;
    this.rcur = cur;
    this.hwcur = hwcur;
    this.setTail(hwtail);
    this.setHeadCur(head, cur);
    this.#applNeedKick = 1;
    this.#running = true;
    this.#syncFlags = nm_csb_atok.get.sync_flags(m, atok);
  }

  /** ring->head and ring->cur. */
  setHeadCur(head: number, cur = head): void {
    this.head = head;
    this.cur = cur;
    netmap_ring.set.head(this.at.m, this.at.ring, head);
    netmap_ring.set.cur(this.at.m, this.at.ring, cur);
  }

  setTail(tail: number): void {
    this.tail = tail;
    netmap_ring.set.tail(this.at.m, this.at.ring, tail);
  }

  /** nm_sync_kloop_appl_write: cur, then head. Its barriers order stores only, which x86 does by itself. */
  applWrite(): void {
    this.rhead = this.head;
    this.rcur = this.cur;
    nm_csb_atok.set.cur(this.at.m, this.at.atok, this.rcur);
    nm_csb_atok.set.head(this.at.m, this.at.atok, this.rhead);
  }

  /** nm_sync_kloop_appl_read: hwtail, then hwcur; then everything that a driver takes for granted about them. */
  applRead(): void {
    const { m, ktoa, numSlots: n } = this.at;
    const hwtail = nm_csb_ktoa.get.hwtail(m, ktoa);
    const hwcur = nm_csb_ktoa.get.hwcur(m, ktoa);
    this.#checkUntouched();
    must(hwtail < n && hwcur < n, () => `${this.name}: hwcur ${hwcur} hwtail ${hwtail}, of ${n} slots`);
    must(this.distance(this.hwcur, hwcur) <= this.distance(this.hwcur, this.rhead), () => {
      return `${this.name}: hwcur went from ${this.hwcur} to ${hwcur}, which is backwards or past head ${this.rhead}`;
    });
    // All slots but one before hwcur are the host's to give.
    must(this.distance(this.tail, hwtail) <= this.distance(this.tail, this.prev(hwcur)), () => {
      return `${this.name}: hwtail went from ${this.tail} to ${hwtail}, which is backwards or past hwcur ${hwcur}`;
    });
    if (this.at.dir !== NR_DIR_TX) this.#checkReceived(this.tail, hwtail);
    this.hwcur = hwcur;
    this.setTail(hwtail);
  }

  /** What the host may not write while a ring runs: the application's half of the CSB, and the ring's indexes. */
  #checkUntouched(): void {
    const { m, atok, ring } = this.at;
    const words: readonly (readonly [string, number, number])[] = [
      ['atok head', nm_csb_atok.get.head(m, atok), this.rhead],
      ['atok cur', nm_csb_atok.get.cur(m, atok), this.rcur],
      ['atok appl_need_kick', this.applNeedKick, this.#applNeedKick],
      ['atok sync_flags', nm_csb_atok.get.sync_flags(m, atok), this.#syncFlags],
      ['ring head', netmap_ring.get.head(m, ring), this.head],
      ['ring cur', netmap_ring.get.cur(m, ring), this.cur],
      ['ring tail', netmap_ring.get.tail(m, ring), this.tail],
      ['ring num_slots', netmap_ring.get.num_slots(m, ring), this.at.numSlots],
      ['ring nr_buf_size', netmap_ring.get.nr_buf_size(m, ring), this.at.bufSize],
    ];
    for (const [what, is, was] of words) {
      must(is === was, () => `${this.name}: the host changed ${what} from ${was} to ${is}`);
    }
  }

  /** Received slots: whole packets only, sizes and buffers that exist, fragments counted. */
  #checkReceived(from: number, to: number): void {
    let fragments = 0;
    let counted = 0;
    for (let i = from; i !== to; i = this.next(i)) {
      const { bufIdx, len, flags } = this.slot(i);
      must(bufIdx >= NETMAP_FIRST_BUF && bufIdx < this.at.numBufs, () => `${this.name} slot ${i}: buffer ${bufIdx}`);
      must(len > 0 && len <= this.at.bufSize, () => `${this.name} slot ${i}: ${len} bytes, buffer ${this.at.bufSize}`);
      must((flags & NS_INDIRECT) === 0, () => `${this.name} slot ${i}: NS_INDIRECT in a received slot`);
      if (fragments === 0) counted = flags >>> NS_RFRAGS_SHIFT;
      fragments++;
      if ((flags & NS_MOREFRAG) !== 0) {
        must(fragments < NETMAP_MAX_FRAGS, () => `${this.name} slot ${i}: a packet of more than 64 slots`);
        must(this.next(i) !== to, () => `${this.name}: hwtail ${to} is inside a packet (NS_MOREFRAG in slot ${i})`);
        continue;
      }
      must(counted === fragments || counted === 0, () => {
        return `${this.name} slot ${i}: a packet of ${fragments} slots, its flags say ${counted}`;
      });
      fragments = 0;
    }
  }

  slot(i: number): { bufIdx: number; len: number; flags: number } {
    const p = this.at.ring + netmap_ring.size + i * netmap_slot.size;
    const { m } = this.at;
    return {
      bufIdx: netmap_slot.get.buf_idx(m, p),
      len: netmap_slot.get.len(m, p),
      flags: netmap_slot.get.flags(m, p),
    };
  }

  setSlot(i: number, len: number, flags: number): void {
    const p = this.at.ring + netmap_ring.size + i * netmap_slot.size;
    netmap_slot.set.len(this.at.m, p, len);
    netmap_slot.set.flags(this.at.m, p, flags);
  }

  /** NMB: the address of slot i's buffer. */
  buffer(i: number): number {
    const { bufIdx } = this.slot(i);
    must(bufIdx >= NETMAP_FIRST_BUF && bufIdx < this.at.numBufs, () => `${this.name} slot ${i}: buffer ${bufIdx}`);
    return this.at.buffers + bufIdx * this.at.bufSize;
  }

  /** Writes a frame into slots from `head` on, buffer by buffer; returns the head after it. */
  putFrame(frame: Uint8Array, head: number): number {
    let i = head;
    for (let at = 0; ; ) {
      const part = frame.subarray(at, at + this.at.bufSize);
      must(i !== this.tail, () => `${this.name}: ran out of slots that hwtail had promised`);
      this.at.m.u8.set(part, this.buffer(i));
      at += part.length;
      this.setSlot(i, part.length, at < frame.length ? NS_MOREFRAG : 0);
      i = this.next(i);
      if (at >= frame.length) return i;
    }
  }

  /** Copies the packet that begins in slot `head`, which is known to be whole; returns it and the head after it. */
  getFrame(head: number): { frame: Uint8Array; head: number } {
    const parts: Uint8Array[] = [];
    for (let i = head; ; ) {
      const { len, flags } = this.slot(i);
      const p = this.buffer(i);
      parts.push(this.at.m.u8.slice(p, p + len));
      i = this.next(i);
      if ((flags & NS_MOREFRAG) === 0) return { frame: Uint8Array.from(Buffer.concat(parts)), head: i };
      must(i !== this.tail, () => `${this.name}: a packet goes past hwtail ${this.tail}`);
    }
  }
}
