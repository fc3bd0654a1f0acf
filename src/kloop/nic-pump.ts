/**
 * The other end of a nic_queue whose frames come from a descriptor: a TAP interface, or a packet socket where AF_XDP is not
 * to be had. It plays the kernel of an AF_XDP socket: takes addresses from the fill ring, reads frames there and puts
 * them into the rx ring; writes what is in the tx ring and puts it into the completion ring. One system call a frame.
 */
import type { Views } from '../abi/index.ts';
import { kring, nic_queue } from '../abi/index.ts';
import type { Arena } from '../memory/index.ts';
import type { XskRing, XskRingName } from '../os/index.ts';
import { errno, PacketVector, TAG_AT, TapVector, XDP_PACKET_HEADROOM } from '../os/index.ts';
import type { NicLink, NicQueueConfig } from './nic-queues.ts';

/** Frames of one turn and direction. */
const BUDGET = 256;
/** Most pieces of one frame: 64 KiB in buffers of 1 KiB. */
export const MAX_PIECES = 65;
/** Bytes of the longest frame that offloads make, before the header: an IP packet, two VLAN tags. */
const TSO_FRAME = 65535 + 22;
const CONTINUES = 1;

export class FramePump {
  /** Where the words of each ring are in its mapping. */
  static readonly rings: Readonly<Record<XskRingName, XskRing>> = (() => {
    const ring = { producer: 0, consumer: 64, flags: 128, desc: 192 };
    return { rx: ring, tx: ring, fill: ring, completion: ring };
  })();

  readonly fd: number;
  /** Bytes of the VirtIO header of the frames in the rings. */
  readonly vnetHdrLen: number;
  /** Whether there may be something to read. */
  readable = true;
  /** When to try again while nothing says so. */
  lookAt = 0;
  /** Whether something may be left to be read, for want of buffers. */
  #starved = false;
  readonly #m: Views;
  readonly #base: number;
  readonly #umem: number;
  readonly #queue: number;
  readonly #at: Readonly<Record<XskRingName, number>>;
  readonly #mask: number;
  readonly #bufSize: number;
  /** Pieces that a frame read may take, as its interface's MTU was, and most of them. */
  #pieces: number;
  readonly #room: number;
  readonly #vector: PacketVector | TapVector;
  /** Krings that count what is dropped on the way out, and in. */
  readonly #counters: { readonly tx: number; readonly receives: number };
  #fillCons = 0;
  #rxProd = 0;
  #txCons = 0;
  #compProd = 0;

  /** @throws SysError: the interface is gone */
  constructor(
    arena: Arena,
    config: NicQueueConfig,
    link: Exclude<NicLink, { readonly kind: 'xdp' }>,
    vnetHdrLen: number,
  ) {
    this.fd = link.fd;
    this.vnetHdrLen = vnetHdrLen;
    this.#m = arena.m;
    this.#base = arena.addressOf(config.umem.address);
    this.#umem = config.umem.address;
    this.#queue = config.queue;
    this.#at = config.at;
    this.#mask = config.entries - 1;
    this.#bufSize = kring.get.buf_size(arena.m, config.rxKring);
    const receives = config.hosted ? config.txKring : config.rxKring;
    const longest = vnetHdrLen + (vnetHdrLen > 0 ? TSO_FRAME : link.longest);
    const room = Math.min(MAX_PIECES, kring.get.num_slots(arena.m, receives) - 1);
    this.#room = room;
    this.#pieces = Math.min(Math.ceil(longest / this.#bufSize), room);
    if (link.kind === 'packet') this.#vector = new PacketVector(MAX_PIECES);
    else {
      const offload = { txcsum: true, tso: room * this.#bufSize >= longest };
      this.#vector = new TapVector({ name: link.name, fds: [link.fd] }, MAX_PIECES, vnetHdrLen, offload);
    }
    this.#counters = { tx: config.txKring, receives };
  }

  /** Whether `receive` may find something. */
  get due(): boolean {
    return this.readable || (this.#starved && (this.#filled() - this.#fillCons) >>> 0 >= this.#pieces);
  }

  #filled(): number {
    return Atomics.load(this.#m.i32, this.#word('fill', 'producer')) >>> 0;
  }

  /** Reads frames into buffers of the fill ring. Returns how many. */
  receive(): number {
    const i32 = this.#m.i32;
    const filled = this.#filled();
    this.#starved = false;
    const desc = this.#at.rx + FramePump.rings.rx.desc;
    const fill = this.#at.fill + FramePump.rings.fill.desc;
    let frames = 0;
    while (frames < BUDGET) {
      const pieces = this.#pieces;
      if ((filled - this.#fillCons) >>> 0 < pieces) {
        // The longest frame would not fit: it waits in the descriptor until the ring's user has released more.
        this.readable = false;
        this.#starved = true;
        break;
      }
      for (let i = 0; i < pieces; i++) {
        const e = (this.#fillCons + i) & this.#mask;
        const address = this.#m.u32[(fill + 8 * e) >>> 2]! + XDP_PACKET_HEADROOM;
        this.#vector.set(i, this.#base + address, this.#bufSize);
      }
      let bytes = this.#vector.read(this.fd, 0, pieces);
      if (bytes <= 0) {
        this.readable = false;
        break;
      }
      frames++;
      if (this.#vector instanceof PacketVector && this.#vector.tag.length > 0) {
        bytes = this.#insert(this.#vector.tag, bytes, pieces);
      }
      if (bytes > pieces * this.#bufSize) {
        this.#drop(1); // unfinished, or the interface's MTU was raised: then the next ones get more room
        if (Number.isFinite(bytes)) this.#pieces = Math.min(this.#room, Math.ceil(bytes / this.#bufSize));
        continue;
      }
      // The kernel leaves num_buffers as it was.
      if (this.vnetHdrLen === 12) this.#m.u16[(this.#address(0) + 10) >>> 1] = 0;
      for (let left = bytes; left > 0; left -= this.#bufSize) {
        const e = this.#rxProd & this.#mask;
        const address = this.#m.u32[(fill + 8 * (this.#fillCons & this.#mask)) >>> 2]! + XDP_PACKET_HEADROOM;
        const p = (desc + 16 * e) >>> 2;
        this.#m.u32[p] = address;
        this.#m.u32[p + 1] = 0;
        this.#m.u32[p + 2] = Math.min(left, this.#bufSize);
        this.#m.u32[p + 3] = left > this.#bufSize ? CONTINUES : 0;
        this.#fillCons = (this.#fillCons + 1) >>> 0;
        this.#rxProd = (this.#rxProd + 1) >>> 0;
      }
    }
    if (frames > 0) {
      Atomics.store(i32, this.#word('fill', 'consumer'), this.#fillCons | 0);
      Atomics.store(i32, this.#word('rx', 'producer'), this.#rxProd | 0);
    }
    return frames;
  }

  /** Counts what the kernel had no room for. */
  countDrops(): void {
    if (this.#vector instanceof PacketVector) this.#drop(this.#vector.dropped(this.fd));
  }

  #drop(frames: number): void {
    const { receives } = this.#counters;
    if (frames > 0) kring.set.drop_full(this.#m, receives, kring.get.drop_full(this.#m, receives) + BigInt(frames));
  }

  /** Puts a VLAN tag into a frame of the next pieces, where the kernel took it out. Returns the bytes it has then. */
  #insert(tag: readonly number[], bytes: number, pieces: number): number {
    const all = bytes + tag.length;
    if (all > pieces * this.#bufSize) return all;
    const { u8 } = this.#m;
    const at = (i: number): number => this.#address(Math.floor(i / this.#bufSize)) + (i % this.#bufSize);
    for (let i = all - 1; i >= TAG_AT + tag.length; i--) u8[at(i)] = u8[at(i - tag.length)]!;
    for (const [i, byte] of tag.entries()) u8[at(TAG_AT + i)] = byte;
    return all;
  }

  /** Arena address of the i-th next buffer of the fill ring. */
  #address(i: number): number {
    const e = (this.#fillCons + i) & this.#mask;
    return this.#umem + this.#m.u32[(this.#at.fill + FramePump.rings.fill.desc + 8 * e) >>> 2]! + XDP_PACKET_HEADROOM;
  }

  /** Writes what is in the tx ring. Returns how many frames. What the interface refuses is dropped and counted. */
  send(): number {
    if (nic_queue.get.kick(this.#m, this.#queue) === 0) return 0;
    const i32 = this.#m.i32;
    const produced = Atomics.load(i32, this.#word('tx', 'producer')) >>> 0;
    const desc = this.#at.tx + FramePump.rings.tx.desc;
    let frames = 0;
    while (this.#txCons !== produced && frames < BUDGET) {
      let pieces = 0;
      for (let more = true; more; pieces++) {
        const p = (desc + 16 * ((this.#txCons + pieces) & this.#mask)) >>> 2;
        this.#vector.set(pieces, this.#base + this.#m.u32[p]!, this.#m.u32[p + 2]!);
        more = (this.#m.u32[p + 3]! & CONTINUES) !== 0;
      }
      const bytes = this.#vector.write(this.fd, 0, pieces);
      if (bytes === -errno.EAGAIN || bytes === -errno.ENOBUFS) break;
      if (bytes < 0) {
        kring.set.drop_dst(this.#m, this.#counters.tx, kring.get.drop_dst(this.#m, this.#counters.tx) + 1n);
      }
      frames++;
      this.#txCons = (this.#txCons + pieces) >>> 0;
      this.#compProd = (this.#compProd + pieces) >>> 0;
    }
    if (frames > 0) {
      Atomics.store(i32, this.#word('tx', 'consumer'), this.#txCons | 0);
      Atomics.store(i32, this.#word('completion', 'producer'), this.#compProd | 0);
    }
    if (this.#txCons === produced) nic_queue.set.kick(this.#m, this.#queue, 0);
    return frames;
  }

  #word(ring: XskRingName, word: 'producer' | 'consumer'): number {
    return (this.#at[ring] + FramePump.rings[ring][word]) >>> 2;
  }
}
