/**
 * The guest's half of one ring: netmap's kring in CSB mode. Mirrors nm_txsync_prologue, nm_rxsync_prologue, nm_sync_finalize
 * (netmap.c), netmap_pt_guest_txsync/rxsync (netmap_kloop.c) and nm_sync_kloop_appl_write/read (net/netmap.h).
 *
 * head/cur of the netmap_ring are the application's; rhead/rcur/rtail are checked copies; hwcur/hwtail what the host
 * last said. Order (docs/rules.md R6): slots, then cur, then head; hwtail is read before hwcur.
 */
import type { Views } from '../abi/index.ts';
import { NR_DIR_TX, netmap_ring, nm_csb_atok, nm_csb_ktoa } from '../abi/index.ts';
import { errno, SysError } from '../os/index.ts';
import { hostError } from './memdev.ts';

/** Where a kring's parts are. Addresses are byte offsets in the memory that the views cover. */
export interface KringPlace {
  readonly m: Views;
  /** Address of the netmap_ring. */
  readonly ring: number;
  readonly atok: number;
  readonly ktoa: number;
  readonly numSlots: number;
  readonly dir: number;
  readonly ringId: number;
}

export class GuestKring {
  readonly m: Views;
  readonly ring: number;
  readonly numSlots: number;
  readonly dir: number;
  readonly ringId: number;
  rhead = 0;
  rcur = 0;
  rtail = 0;
  hwcur = 0;
  hwtail = 0;
  /** What appl_need_kick holds: whether the host is to interrupt. The host never writes it while the ring runs. */
  armed = false;
  // Indexes of 32-bit words in the views.
  readonly #head: number;
  readonly #cur: number;
  readonly #tail: number;
  readonly #atokHead: number;
  readonly #atokCur: number;
  readonly #applNeedKick: number;
  readonly #hwcur: number;
  readonly #hwtail: number;
  readonly #kernNeedKick: number;

  constructor(place: KringPlace) {
    this.m = place.m;
    this.ring = place.ring;
    this.numSlots = place.numSlots;
    this.dir = place.dir;
    this.ringId = place.ringId;
    this.#head = (place.ring + netmap_ring.ofs.head) >>> 2;
    this.#cur = (place.ring + netmap_ring.ofs.cur) >>> 2;
    this.#tail = (place.ring + netmap_ring.ofs.tail) >>> 2;
    this.#atokHead = (place.atok + nm_csb_atok.ofs.head) >>> 2;
    this.#atokCur = (place.atok + nm_csb_atok.ofs.cur) >>> 2;
    this.#applNeedKick = (place.atok + nm_csb_atok.ofs.appl_need_kick) >>> 2;
    this.#hwcur = (place.ktoa + nm_csb_ktoa.ofs.hwcur) >>> 2;
    this.#hwtail = (place.ktoa + nm_csb_ktoa.ofs.hwtail) >>> 2;
    this.#kernNeedKick = (place.ktoa + nm_csb_ktoa.ofs.kern_need_kick) >>> 2;
  }

  get name(): string {
    return `${this.dir === NR_DIR_TX ? 'tx' : 'rx'} ring ${this.ringId}`;
  }

  /** What the guest sets before CREATE: rx rings want interrupts, the host wants kicks. */
  prepareCreate(): void {
    Atomics.store(this.m.i32, this.#applNeedKick, this.dir === NR_DIR_TX ? 0 : 1);
    Atomics.store(this.m.i32, this.#kernNeedKick, 1);
  }

  /**
   * Takes the positions that the host filled in at CREATE, and turns interrupts off until somebody waits.
   * @throws SysError EPROTO if they make no sense
   */
  syncFromCsb(): void {
    this.rhead = this.#index(this.#atokHead, 'head');
    this.rcur = this.#index(this.#atokCur, 'cur');
    this.#readTail();
    this.rtail = this.hwtail;
    const n = this.numSlots;
    const space = (this.rtail - this.hwcur + n) % n;
    const head = (this.rhead - this.hwcur + n) % n;
    const cur = (this.rcur - this.hwcur + n) % n;
    if (head > cur || cur > space) {
      throw hostError(
        `put ${this.name} at head ${this.rhead} cur ${this.rcur} with hwcur ${this.hwcur} hwtail ${this.hwtail} of ${n} slots`,
      );
    }
    this.m.u32[this.#head] = this.rhead;
    this.m.u32[this.#cur] = this.rcur;
    this.m.u32[this.#tail] = this.rtail;
    this.armed = true;
    this.disarm();
  }

  /**
   * txsync or rxsync: checks the application's head and cur, publishes them, and takes what the host has done since.
   * Returns whether the host wants a kick.
   * @throws SysError EINVAL for a bad head or cur (they are put back to their last good values), EPROTO
   */
  sync(): boolean {
    const { m, numSlots: n, rhead, rtail } = this;
    const head = m.u32[this.#head]!;
    const cur = m.u32[this.#cur]!;
    if (head !== rhead || cur !== this.rcur) {
      // Distances from rhead on: rhead <= head <= cur <= rtail, in ring order.
      const space = rtail >= rhead ? rtail - rhead : rtail - rhead + n;
      const headAt = head >= rhead ? head - rhead : head - rhead + n;
      const curAt = cur >= rhead ? cur - rhead : cur - rhead + n;
      if (head >= n || cur >= n || headAt > curAt || curAt > space) this.#badRing(head, cur);
      m.u32[this.#atokCur] = cur;
      // Orders the slots and cur before head, and head before the reads below; pairs with the host's read of head.
      Atomics.store(m.i32, this.#atokHead, head);
      this.rhead = head;
      this.rcur = cur;
    }
    this.#readTail();
    this.rtail = this.hwtail;
    m.u32[this.#tail] = this.hwtail;
    return (head !== this.hwcur || cur === this.hwtail) && Atomics.load(m.i32, this.#kernNeedKick) !== 0;
  }

  /**
   * Asks the host for an interrupt when it moves hwtail. The caller syncs again before it sleeps: the store is a full
   * barrier, so either that sync sees the move or the host sees the wish (pairs with R13).
   */
  arm(): void {
    if (this.armed) return;
    this.armed = true;
    Atomics.store(this.m.i32, this.#applNeedKick, 1);
  }

  disarm(): void {
    if (!this.armed) return;
    this.armed = false;
    Atomics.store(this.m.i32, this.#applNeedKick, 0);
  }

  /** Whether the host has moved hwtail since the last sync. */
  get moved(): boolean {
    return Atomics.load(this.m.i32, this.#hwtail) !== this.hwtail;
  }

  /** Whether the application has moved head or cur since the last sync. */
  get pending(): boolean {
    return this.m.u32[this.#head] !== this.rhead || this.m.u32[this.#cur] !== this.rcur;
  }

  #readTail(): void {
    const hwtail = Atomics.load(this.m.i32, this.#hwtail);
    const hwcur = Atomics.load(this.m.i32, this.#hwcur);
    if (hwtail >>> 0 >= this.numSlots || hwcur >>> 0 >= this.numSlots) {
      throw hostError(`put ${this.name} at hwcur ${hwcur >>> 0} hwtail ${hwtail >>> 0}, of ${this.numSlots} slots`);
    }
    this.hwtail = hwtail;
    this.hwcur = hwcur;
  }

  #index(word: number, what: string): number {
    const value = Atomics.load(this.m.i32, word) >>> 0;
    if (value >= this.numSlots) throw hostError(`put ${what} of ${this.name} at ${value}, of ${this.numSlots} slots`);
    return value;
  }

  #badRing(head: number, cur: number): never {
    this.m.u32[this.#head] = this.rhead;
    this.m.u32[this.#cur] = this.rcur;
    this.m.u32[this.#tail] = this.rtail;
    throw new SysError(
      `${this.name}: head ${head} cur ${cur} are not in order between ${this.rhead} and tail ${this.rtail} ` +
        `(${this.numSlots} slots); they were put back to ${this.rhead} and ${this.rcur}`,
      errno.EINVAL,
    );
  }
}
