/**
 * One direction of a pipe, naively: positions that only grow, and what each slot holds, whoever has it. Written from
 * docs/pipes.md, not from the code.
 */
import { NS_BUF_CHANGED, NS_INDIRECT, NS_MOREFRAG } from '../../src/abi/index.ts';

export interface ModelSlot {
  idx: number;
  len: number;
  flags: number;
}

export class ModelPipe {
  readonly n: number;
  readonly bufSize: number;
  readonly isBuffer: (idx: number) => boolean;
  /** What is in slot k, as its holder has it. */
  readonly slots: ModelSlot[];
  /** Buffer that was last exchanged at slot k. */
  readonly record: number[];
  /** Sender's head, how far it said so, handed over up to, visible up to. */
  head = 0;
  published = 0;
  sent = 0;
  visible = 0;
  /** Receiver's head, how far it said so, released up to. */
  taken = 0;
  returned = 0;
  released = 0;
  packets = 0;
  dropped = 0;
  #bad = false;

  constructor(buffers: readonly number[], bufSize: number, isBuffer: (idx: number) => boolean) {
    this.n = buffers.length;
    this.bufSize = bufSize;
    this.isBuffer = isBuffer;
    this.slots = buffers.map((idx) => ({ idx, len: 0, flags: 0 }));
    this.record = [...buffers];
  }

  /** The slot at a position. */
  at(position: number): ModelSlot {
    return this.slots[position % this.n]!;
  }

  /** Slots the sender may fill. */
  get room(): number {
    return this.released + this.n - 1 - this.head;
  }

  /** Takes back what the receiver released. */
  release(): void {
    for (; this.released < this.returned; this.released++) {
      const slot = this.at(this.released);
      const k = this.released % this.n;
      if (!this.isBuffer(slot.idx)) {
        slot.idx = this.record[k]!;
        slot.len = 0;
        slot.flags = 0;
      }
      this.record[k] = slot.idx;
    }
  }

  /** Hands over what the sender published. */
  transfer(): void {
    for (; this.sent < this.published; ) {
      const slot = this.at(this.sent);
      const k = this.sent % this.n;
      this.sent++;
      const end = (slot.flags & NS_MOREFRAG) === 0 || this.sent - this.visible === this.n - 1;
      const known = this.isBuffer(slot.idx);
      if (!known || slot.len > this.bufSize || (slot.flags & NS_INDIRECT) !== 0) {
        this.#bad = true;
        if (!known) slot.idx = this.record[k]!;
        slot.len = 0;
        slot.flags = 0;
      } else if (end) {
        slot.flags &= ~NS_MOREFRAG;
      }
      this.record[k] = slot.idx;
      if (!end) continue;
      if (this.#bad) {
        this.dropped++;
        for (let p = this.visible; p < this.sent; p++) Object.assign(this.at(p), { len: 0, flags: 0 });
      } else this.packets++;
      this.#bad = false;
      this.visible = this.sent;
    }
  }

  /** The sender is gone: what it had not sent whole is its own again. */
  abandonSender(): void {
    this.sent = this.visible;
    this.forgetUnsent();
    this.#bad = false;
  }

  /** The sender's application begins anew where the host stands. */
  forgetUnsent(): void {
    this.head = this.sent;
    this.published = this.sent;
  }

  forgetUnreleased(): void {
    this.taken = this.released;
    this.returned = this.released;
  }

  /** Positions whose slots the sender's side has, and the receiver's. */
  senders(): number[] {
    return Array.from({ length: this.n - (this.sent - this.released) }, (_, i) => this.sent + i);
  }

  receivers(): number[] {
    return Array.from({ length: this.sent - this.released }, (_, i) => this.released + i);
  }
}

/** Flags as they may differ: NS_BUF_CHANGED is between an application and its host. */
export const meaning = (flags: number): number => flags & ~NS_BUF_CHANGED;
