/**
 * Two ports joined by a wire, in plain memory: what pkt-gen's loops are tested on. A sync moves packets from one port's
 * tx rings to the other's rx rings as VALE does: copied, dropped when the ring is full.
 */
import { NETMAP_FIRST_BUF, NS_BUF_CHANGED, netmap_slot, type Views, views } from '../../../src/abi/index.ts';
import { POLLIN, POLLOUT } from '../../../src/api/index.ts';
import type { PktPort, PktRing } from '../../../src/cli/pkt-gen/run.ts';

export class FakeRing implements PktRing {
  readonly numSlots: number;
  readonly ringId = 0;
  head = 0;
  cur = 0;
  tail: number;
  readonly #port: FakePort;
  readonly #slots: number;

  constructor(port: FakePort, slots: number, slotsAt: number, firstBuf: number, tail: number) {
    this.#port = port;
    this.numSlots = slots;
    this.#slots = slotsAt;
    this.tail = tail;
    for (let i = 0; i < slots; i++) netmap_slot.set.buf_idx(port.m, this.#slot(i), firstBuf + i);
  }
  space(): number {
    return (this.tail - this.head + this.numSlots) % this.numSlots;
  }
  next(i: number): number {
    return i + 1 === this.numSlots ? 0 : i + 1;
  }
  bufIdx(i: number): number {
    return netmap_slot.get.buf_idx(this.#port.m, this.#slot(i));
  }
  setBufIdx(i: number, bufIdx: number): void {
    netmap_slot.set.buf_idx(this.#port.m, this.#slot(i), bufIdx);
    this.setFlags(i, this.flags(i) | NS_BUF_CHANGED);
  }
  len(i: number): number {
    return netmap_slot.get.len(this.#port.m, this.#slot(i));
  }
  setLen(i: number, bytes: number): void {
    netmap_slot.set.len(this.#port.m, this.#slot(i), bytes);
  }
  flags(i: number): number {
    return netmap_slot.get.flags(this.#port.m, this.#slot(i));
  }
  setFlags(i: number, flags: number): void {
    netmap_slot.set.flags(this.#port.m, this.#slot(i), flags);
  }
  bufOfs(i: number): number {
    return this.#port.buffers + (this.bufIdx(i) - NETMAP_FIRST_BUF) * this.#port.bufSize;
  }
  slotOfs(i: number): number {
    return this.#slot(i);
  }
  #slot(i: number): number {
    return this.#slots + i * netmap_slot.size;
  }
}

export class FakePort implements PktPort {
  readonly mac: string;
  readonly bufSize = 2048;
  readonly buffers = 65536;
  readonly m: Views;
  readonly txRings: readonly FakeRing[];
  readonly rxRings: readonly FakeRing[];
  peer: FakePort | undefined;
  /** Every slot that was sent: its bytes and flags. */
  readonly sent: { readonly bytes: Uint8Array; readonly flags: number }[] = [];
  keepSent = true;
  /** Packets that the wire took from tx rings. */
  taken = 0;
  dropped = 0;
  /** Called at every poll. */
  onPoll: () => void = () => undefined;

  constructor(mac: string, slots = 64) {
    this.mac = mac;
    this.m = views(new SharedArrayBuffer(65536 + 2 * slots * this.bufSize));
    this.txRings = [new FakeRing(this, slots, 0, NETMAP_FIRST_BUF, slots - 1)];
    this.rxRings = [new FakeRing(this, slots, slots * netmap_slot.size, NETMAP_FIRST_BUF + slots, 0)];
  }

  poll(events: number, _timeoutMs: number): number {
    this.onPoll();
    this.txsync();
    const tx = this.txRings[0]!;
    const rx = this.rxRings[0]!;
    return events & ((tx.cur === tx.tail ? 0 : POLLOUT) | (rx.cur === rx.tail ? 0 : POLLIN));
  }

  txsync(): void {
    const tx = this.txRings[0]!;
    for (let i = tx.next(tx.tail); i !== tx.head; i = tx.next(i)) {
      const at = tx.bufOfs(i);
      const bytes = this.m.u8.subarray(at, at + tx.len(i));
      if (this.keepSent) this.sent.push({ bytes: bytes.slice(), flags: tx.flags(i) });
      this.taken += 1;
      this.peer?.receive(bytes, tx.flags(i));
    }
    tx.tail = (tx.head + tx.numSlots - 1) % tx.numSlots;
  }

  receive(bytes: Uint8Array, flags: number): void {
    const rx = this.rxRings[0]!;
    if (rx.next(rx.tail) === rx.head) {
      this.dropped += 1;
      return;
    }
    this.m.u8.set(bytes, rx.bufOfs(rx.tail));
    rx.setLen(rx.tail, bytes.length);
    rx.setFlags(rx.tail, flags);
    rx.tail = rx.next(rx.tail);
  }
}

/** Two joined ports. */
export function wire(slots?: number): [FakePort, FakePort] {
  const a = new FakePort('02:00:00:00:00:0a', slots);
  const b = new FakePort('02:00:00:00:00:0b', slots);
  a.peer = b;
  b.peer = a;
  return [a, b];
}
