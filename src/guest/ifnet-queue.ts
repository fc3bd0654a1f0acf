/**
 * One pair of rings and the TAP descriptor it is bound to: frames go from the stack into tx slots and from rx slots to
 * the stack, each by one system call that reads or writes the netmap buffers where they are. What ptnet_drain_transmit
 * and ptnet_rx_eof do in if_ptnet.c.
 *
 * Owner: whoever calls `transmit` and `receive`, one thread.
 */
import type { Views } from '../abi/index.ts';
import { NETMAP_FIRST_BUF, NETMAP_MAX_FRAGS, NS_MOREFRAG, netmap_ring, netmap_slot } from '../abi/index.ts';
import { bufferAddress, errno, FrameVector } from '../os/index.ts';
import type { GuestKring } from './kring.ts';
import { hostError, type Memdev } from './memdev.ts';

/** Longest frame of the stack, header and VLAN tag included: a TCP segment of 64 KiB. */
export const MAX_FRAME = 65535 + 18 + 12;

/** What is counted of a queue, beside the kernel's own counters of the interface. */
export interface QueueCounters {
  txPackets: number;
  rxPackets: number;
  /** Frames of the host that were no packets: an empty slot, a chain cut off. */
  rxBad: number;
  /** Frames that the stack did not take (interface down, no memory). */
  rxDropped: number;
  /** Frames of the stack that the buffers of the longest chain do not hold: dropped. */
  txTooLong: number;
}

/** The buffers of a ring's slots for readv and writev, twice, so that a chain that wraps around is in one piece. */
class RingVector {
  readonly kring: GuestKring;
  readonly slots: number;
  readonly #m: Views;
  readonly #buffers: number;
  readonly #bufSize: number;
  readonly #numBufs: number;
  readonly #base: number;
  /** Slot i is at i and at i + slots. */
  readonly frames: FrameVector;
  readonly #known: Uint32Array;
  /** Index of slot 0's first word. */
  readonly #slot0: number;
  readonly #head: number;
  readonly #cur: number;

  constructor(kring: GuestKring, memdev: Memdev) {
    const n = kring.numSlots;
    this.kring = kring;
    this.slots = n;
    this.#m = kring.m;
    this.#bufSize = memdev.bufPool.objsz;
    this.#numBufs = memdev.bufPool.objnum;
    this.#buffers = memdev.region + memdev.bufPool.ofs;
    this.#base = bufferAddress(kring.m.u8.buffer) + this.#buffers;
    this.frames = new FrameVector(2 * n);
    this.#known = new Uint32Array(n);
    this.#slot0 = (kring.ring + netmap_ring.size) >>> 2;
    this.#head = (kring.ring + netmap_ring.ofs.head) >>> 2;
    this.#cur = (kring.ring + netmap_ring.ofs.cur) >>> 2;
  }

  next(i: number): number {
    return i + 1 === this.slots ? 0 : i + 1;
  }

  /** Takes note of slot i's buffer. @throws SysError EPROTO for a buffer that does not exist */
  refresh(i: number): void {
    const idx = this.#m.u32[this.#slot0 + 4 * i]!;
    if (idx === this.#known[i]) return;
    if (idx < NETMAP_FIRST_BUF || idx >= this.#numBufs) {
      throw hostError(`put buffer ${idx} into slot ${i} of ${this.kring.name}: there are 2 to ${this.#numBufs - 1}`);
    }
    const address = this.#base + idx * this.#bufSize;
    this.frames.set(i, address, this.#bufSize);
    this.frames.set(i + this.slots, address, this.#bufSize);
    this.#known[i] = idx;
  }

  /** Arena address of the buffer of slot i, which has been refreshed. */
  buf(i: number): number {
    return this.#buffers + this.#known[i]! * this.#bufSize;
  }

  len(i: number): number {
    return this.#m.u32[this.#slot0 + 4 * i + 1]! & 0xffff;
  }

  flags(i: number): number {
    return this.#m.u32[this.#slot0 + 4 * i + 1]! >>> 16;
  }

  setSlot(i: number, len: number, flags: number): void {
    this.#m.u32[this.#slot0 + netmap_slot.ofs.len / 4 + 4 * i] = len | (flags << 16);
  }

  get head(): number {
    return this.#m.u32[this.#head]!;
  }

  setHead(i: number): void {
    this.#m.u32[this.#head] = i;
    this.#m.u32[this.#cur] = i;
  }
}

export class IfnetQueue {
  readonly fd: number;
  readonly counters: QueueCounters = { txPackets: 0, rxPackets: 0, rxBad: 0, rxDropped: 0, txTooLong: 0 };
  /** The tx ring had no room for a frame at the last `transmit`. */
  blocked = false;
  readonly #m: Views;
  readonly #tx: RingVector;
  readonly #rx: RingVector;
  readonly #bufSize: number;
  readonly #hdr: number;
  /** Slots that the longest frame takes, and bytes of them from which on a frame may have been cut off. */
  readonly #maxSlots: number;
  readonly #tooLong: number;
  readonly #kick: (ring: GuestKring) => void;
  readonly #deliver: ((frame: Uint8Array) => Uint8Array[]) | undefined;
  /** Where a frame that is made in software stands while it is written. */
  readonly #copy = new Uint8Array(new ArrayBuffer(MAX_FRAME));
  readonly #one = new FrameVector(1);

  /**
   * @param hdr bytes of the VirtIO header, on the rings and on the TAP descriptor
   * @param kick tells the host of a ring @param deliver what to do to received packets in software, if anything
   */
  constructor(
    fd: number,
    tx: GuestKring,
    rx: GuestKring,
    memdev: Memdev,
    hdr: number,
    kick: (ring: GuestKring) => void,
    deliver?: (frame: Uint8Array) => Uint8Array[],
  ) {
    this.fd = fd;
    this.#m = tx.m;
    this.#tx = new RingVector(tx, memdev);
    this.#rx = new RingVector(rx, memdev);
    this.#bufSize = memdev.bufPool.objsz;
    this.#hdr = hdr;
    this.#maxSlots = Math.min(Math.ceil(MAX_FRAME / this.#bufSize), tx.numSlots - 1, NETMAP_MAX_FRAGS);
    this.#tooLong = Math.min(MAX_FRAME + 1, this.#maxSlots * this.#bufSize);
    this.#kick = kick;
    this.#deliver = deliver;
    this.#one.hold(0, this.#copy);
  }

  /**
   * From the stack to the host, at most `budget` frames. Returns their number.
   * @throws SysError EPROTO (the host broke the contract), ENODEV (the interface was removed)
   */
  transmit(budget: number): number {
    const tx = this.#tx;
    const { kring, slots } = tx;
    const max = this.#maxSlots;
    let head = tx.head;
    let frames = 0;
    this.blocked = false;
    while (frames < budget) {
      if ((kring.rtail - head + slots) % slots < max) {
        this.#sync(tx, head);
        if ((kring.rtail - head + slots) % slots < max) {
          this.blocked = true;
          break;
        }
      }
      for (let k = 0, i = head; k < max; k++, i = tx.next(i)) tx.refresh(i);
      const bytes = tx.frames.read(this.fd, head, max);
      if (bytes <= 0) {
        if (bytes === -errno.EBADF || bytes === -EBADFD) throw hostError('removed the interface');
        break;
      }
      frames++;
      if (bytes >= this.#tooLong) {
        this.counters.txTooLong++;
        continue;
      }
      // The kernel leaves num_buffers as it was.
      if (this.#hdr === 12) this.#m.u16[(tx.buf(head) + 10) >>> 1] = 0;
      let left = bytes;
      for (; left > this.#bufSize; left -= this.#bufSize, head = tx.next(head)) {
        tx.setSlot(head, this.#bufSize, NS_MOREFRAG);
      }
      tx.setSlot(head, left, 0);
      head = tx.next(head);
      this.counters.txPackets++;
    }
    if (frames > 0) this.#sync(tx, head);
    return frames;
  }

  /** From the host to the stack, at most `budget` packets. Returns their number. @throws as `transmit` */
  receive(budget: number): number {
    const rx = this.#rx;
    let head = rx.head;
    if (head === rx.kring.rtail) {
      this.#sync(rx, head);
      if (head === rx.kring.rtail) return 0;
    }
    let packets = 0;
    while (head !== rx.kring.rtail && packets < budget) {
      head = this.#receiveOne(head);
      packets++;
    }
    this.#sync(rx, head);
    return packets;
  }

  /** Gives the packet that begins at slot `head` to the stack. Returns the slot after it. */
  #receiveOne(head: number): number {
    const rx = this.#rx;
    const { rtail } = rx.kring;
    let i = head;
    let bytes = 0;
    let frags = 0;
    let good = true;
    for (let more = true; more && i !== rtail; i = rx.next(i), frags++) {
      const len = rx.len(i);
      more = (rx.flags(i) & NS_MOREFRAG) !== 0;
      if (len > this.#bufSize || (more && rx.next(i) === rtail)) good = false;
      rx.refresh(i);
      rx.frames.setBytes(head + frags, Math.min(len, this.#bufSize));
      bytes += len;
    }
    if (!good || bytes <= this.#hdr || frags > rx.slots) {
      this.counters.rxBad++;
      return i;
    }
    this.counters.rxPackets++;
    if (this.#deliver !== undefined) this.#software(head, frags, this.#deliver);
    else if (rx.frames.write(this.fd, head, frags) < 0) this.counters.rxDropped++;
    return i;
  }

  /** The same for packets that are changed on the way: collected, changed, written frame by frame. */
  #software(head: number, frags: number, deliver: (frame: Uint8Array) => Uint8Array[]): void {
    const rx = this.#rx;
    const parts: Uint8Array[] = [];
    for (let k = 0, i = head; k < frags; k++, i = rx.next(i)) {
      parts.push(this.#m.u8.subarray(rx.buf(i), rx.buf(i) + rx.len(i)));
    }
    for (const frame of deliver(Uint8Array.from(Buffer.concat(parts)))) {
      this.#copy.set(frame.subarray(0, MAX_FRAME));
      this.#one.setBytes(0, Math.min(frame.length, MAX_FRAME));
      if (this.#one.write(this.fd, 0, 1) < 0) this.counters.rxDropped++;
    }
  }

  /** Before sleeping: asks for interrupts; tx only while blocked. True if there is something to do already. */
  arm(): boolean {
    this.#rx.kring.arm();
    if (this.blocked) this.#tx.kring.arm();
    // Interrupts are on now, so look again (R13).
    this.#sync(this.#rx, this.#rx.head);
    if (this.blocked) this.#sync(this.#tx, this.#tx.head);
    const { rtail } = this.#tx.kring;
    const room = (rtail - this.#tx.head + this.#tx.slots) % this.#tx.slots >= this.#maxSlots;
    return this.#rx.head !== this.#rx.kring.rtail || (this.blocked && room);
  }

  disarm(): void {
    this.#rx.kring.disarm();
    this.#tx.kring.disarm();
  }

  #sync(ring: RingVector, head: number): void {
    ring.setHead(head);
    if (ring.kring.sync()) this.#kick(ring.kring);
  }
}

/** "File descriptor in bad state": what a TAP descriptor says when its interface was removed. */
const EBADFD = 77;
