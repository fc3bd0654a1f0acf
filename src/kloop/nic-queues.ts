/**
 * The queues of interfaces that a datapath thread serves: opens and closes what is at their other end (an AF_XDP socket, or
 * a pump on a descriptor), and makes the system calls that their rings need, once per turn. The frames are moved by
 * src/datapath/nic.ts. docs/nics.md
 *
 * Owner: the datapath thread.
 */
import { kring, nic_queue, port } from '../abi/index.ts';
import type { Arena } from '../memory/index.ts';
import { pageRound } from '../memory/index.ts';
import type { Epoll, XskConfig, XskRing, XskRingName } from '../os/index.ts';
import {
  EPOLLET,
  EPOLLIN,
  errno,
  SysError,
  XDP_MAX_PIECES,
  XDP_PACKET_HEADROOM,
  XDP_RING_NEED_WAKEUP,
  XSK_RINGS,
  Xsk,
  xskMapSet,
  xskRingBytes,
} from '../os/index.ts';
import type { Datapath } from './datapath.ts';
import { FramePump, MAX_PIECES } from './nic-pump.ts';

/** Where a queue's frames come from and go to. */
export type NicLink =
  /** A queue of an interface, by AF_XDP. `map`: of the XDP program that is attached there. */
  | {
      readonly kind: 'xdp';
      readonly ifindex: number;
      readonly queue: number;
      readonly map: number;
      /** Whether zero copy is to be tried; `oneBuffer`: also where a frame is in one buffer only. Default: not. */
      readonly zeroCopy?: { readonly oneBuffer: boolean };
    }
  /** A packet socket: a read or write is a frame. `longest`: bytes of one. */
  | { readonly kind: 'packet'; readonly fd: number; readonly longest: number }
  /** The same of a TAP interface, opened with VirtIO headers. `longest`: of a frame without one. */
  | { readonly kind: 'tap'; readonly fd: number; readonly name: string; readonly longest: number };

/** A queue as control code describes it. Addresses are arena offsets. */
export interface NicQueueConfig {
  /** Of its nic_queue, zeroed. */
  readonly queue: number;
  readonly domain: number;
  readonly txKring: number;
  readonly rxKring: number;
  /** Whether the datapath is the rings' application. */
  readonly hosted: boolean;
  /** The region, from its beginning on. */
  readonly umem: { readonly address: number; readonly bytes: number };
  /** Buffers of the ring that receives: u32[]. */
  readonly ledger: number;
  /** Entries of each ring, a power of two. */
  readonly entries: number;
  /** Room for each ring: `xskRingBytes`. */
  readonly at: Readonly<Record<XskRingName, number>>;
  readonly link: NicLink;
}

/** What a queue costs the one who makes its rings. */
export function nicRingBytes(entries: number): Record<XskRingName, number> {
  return {
    rx: xskRingBytes('rx', entries),
    tx: xskRingBytes('tx', entries),
    fill: xskRingBytes('fill', entries),
    completion: xskRingBytes('completion', entries),
  };
}

/** A closed socket keeps its queue for some ms: how often, and how long, to try to open the next one. */
const RETRY_MS = 1;
const GIVE_UP_MS = 2000;
/**
 * While frames are on their way out, the thread sleeps so long, the first time; twice as long each time that nothing came of
 * it (the link may be down for hours), but no longer than the second.
 */
const BUSY_SLEEP_MS = 1;
const LONGEST_BUSY_SLEEP_MS = 64;
/** How often a pump looks for frames while the thread does not sleep. */
const PUMP_EVERY_MS = 0.05;
/** How often the kernel is asked what it dropped. */
const STATISTICS_EVERY_MS = 100;

/**
 * Binds a socket in the best way there is. Returns it, and the errno for which it is not zero copy though that was to be tried.
 * @throws SysError EBUSY
 */
function bindXsk(
  zeroCopy: { readonly oneBuffer: boolean } | undefined,
  config: Omit<XskConfig, 'zeroCopy' | 'chains'>,
): [Xsk, number] {
  let why = 0;
  for (const chains of zeroCopy === undefined ? [] : zeroCopy.oneBuffer ? [true, false] : [true]) {
    try {
      return [new Xsk({ ...config, zeroCopy: true, chains }), 0];
    } catch (e) {
      if (!(e instanceof SysError) || e.errno === errno.EBUSY) throw e;
      why = e.errno;
    }
  }
  return [new Xsk({ ...config, zeroCopy: false, chains: true }), why];
}

interface Queue {
  readonly config: NicQueueConfig;
  readonly address: number;
  xsk: Xsk | undefined;
  pump: FramePump | undefined;
  /** Arena addresses of the flags of the fill ring and the tx ring, and of the latter's consumer. */
  fillFlags: number;
  txFlags: number;
  txConsumer: number;
  /** Not open, on purpose: its slots are being rewritten. */
  frozen: boolean;
  /** When to try again to open it, and since when; 0: not. */
  retryAt: number;
  failingSince: number;
  /** Frames that the kernel had dropped when it was last asked. */
  dropped: number;
}

export class NicQueues {
  readonly #arena: Arena;
  readonly #datapath: Datapath;
  readonly #epoll: Epoll;
  readonly #queues: Queue[] = [];
  #statisticsAt = 0;
  #busySleepMs = BUSY_SLEEP_MS;
  readonly #failed: (message: string) => void;

  /** @param failed a queue could not be opened again */
  constructor(arena: Arena, datapath: Datapath, epoll: Epoll, failed: (message: string) => void) {
    this.#arena = arena;
    this.#datapath = datapath;
    this.#epoll = epoll;
    this.#failed = failed;
  }

  get any(): boolean {
    return this.#queues.length > 0;
  }

  /** Takes a queue into use. @throws SysError */
  up(config: NicQueueConfig): void {
    const queue: Queue = {
      config,
      address: config.queue,
      xsk: undefined,
      pump: undefined,
      fillFlags: 0,
      txFlags: 0,
      txConsumer: 0,
      frozen: false,
      retryAt: 0,
      failingSince: 0,
      dropped: 0,
    };
    try {
      this.#open(queue);
    } catch (e) {
      if (!(e instanceof SysError) || e.errno !== errno.EBUSY) throw e;
      this.#again(queue);
    }
    this.#queues.push(queue);
  }

  /** Lets go of a queue, for good. Nothing if there is none at that address. */
  down(address: number): void {
    const i = this.#queues.findIndex((q) => q.address === address);
    if (i < 0) return;
    this.#close(this.#queues[i]!);
    this.#queues.splice(i, 1);
  }

  /** Of queues of these krings, the kernel lets go of the buffers until `thaw`. */
  freeze(krings: readonly number[]): void {
    for (const queue of this.#of(krings)) {
      queue.frozen = true;
      this.#close(queue);
    }
  }

  thaw(krings: readonly number[]): void {
    for (const queue of this.#of(krings)) {
      if (!queue.frozen) continue;
      queue.frozen = false;
      this.#again(queue);
    }
  }

  /**
   * New rings are about to be started: frames of TAP interfaces get headers of the length that the port has now; what
   * had been read with another one is lost.
   */
  renew(krings: readonly number[]): void {
    for (const queue of this.#of(krings)) {
      if (queue.pump === undefined || queue.pump.vnetHdrLen === this.#vnetHdrLen(queue.config)) continue;
      this.#close(queue);
      this.#again(queue);
      this.#retry(queue);
    }
  }

  #vnetHdrLen({ rxKring }: NicQueueConfig): number {
    const { m } = this.#arena;
    return port.get.vnet_hdr_len(m, kring.get.port(m, rxKring));
  }

  /** The system calls of one turn. Returns whether something moved by them. */
  turn(): number {
    let moved = 0;
    const now = performance.now();
    this.#busySleepMs = BUSY_SLEEP_MS;
    if (now >= this.#statisticsAt) this.#countDrops(now);
    for (const queue of this.#queues) {
      if (queue.retryAt !== 0) this.#retry(queue);
      if (queue.xsk !== undefined) moved += this.#kick(queue, queue.xsk);
      else if (queue.pump !== undefined) moved += this.#pump(queue.pump, now);
    }
    return moved;
  }

  /** Something became readable. */
  ready(fd: number): void {
    for (const { pump } of this.#queues) if (pump?.fd === fd) pump.readable = true;
  }

  /** Whether a turn is to be made before the thread sleeps. */
  get due(): boolean {
    for (const q of this.#queues) {
      if (q.retryAt !== 0 && performance.now() >= q.retryAt) return true;
      if (q.pump !== undefined && q.pump.due) return true;
    }
    return false;
  }

  /** Longest sleep, given the longest of others in ms (-1: any). */
  sleepMs(ms: number): number {
    if (!this.any) return ms;
    this.#countDrops(performance.now());
    const { m } = this.#arena;
    let longest = ms;
    for (const q of this.#queues) {
      if (q.retryAt !== 0) return RETRY_MS;
      if (nic_queue.get.in_flight(m, q.address) !== 0) longest = this.#busySleepMs;
    }
    return longest;
  }

  /**
   * After a sleep: repeats the system calls that did not do everything (the link was down, the interface's queue full), or
   * that the kernel asked for meanwhile. What they move, a look finds.
   */
  slept(): void {
    this.#busySleepMs = Math.min(2 * this.#busySleepMs, LONGEST_BUSY_SLEEP_MS);
    for (const queue of this.#queues) {
      if (queue.xsk !== undefined) this.#kick(queue, queue.xsk);
      else queue.pump?.send();
    }
  }

  close(): void {
    for (const queue of this.#queues) this.#close(queue);
    this.#queues.length = 0;
  }

  #of(krings: readonly number[]): Queue[] {
    return this.#queues.filter(
      ({ config: c }) => !c.hosted && (krings.includes(c.txKring) || krings.includes(c.rxKring)),
    );
  }

  #kick(queue: Queue, xsk: Xsk): number {
    const { m } = this.#arena;
    let moved = 0;
    if (xsk.zeroCopy) {
      // The driver sends by itself until it has nothing to send.
      const waits = (m.u32[queue.txFlags >>> 2]! & XDP_RING_NEED_WAKEUP) !== 0;
      if (waits && nic_queue.get.in_flight(m, queue.address) !== 0) xsk.kickTx();
      nic_queue.set.kick(m, queue.address, 0);
    } else if (nic_queue.get.kick(m, queue.address) !== 0) {
      const taken = m.u32[queue.txConsumer >>> 2];
      const e = xsk.kickTx();
      if (e === 0) nic_queue.set.kick(m, queue.address, 0);
      // More than one call sends; or, if it sent nothing, more than there is room for on the way out.
      else if (e === errno.EAGAIN && m.u32[queue.txConsumer >>> 2] !== taken) moved = 1;
    }
    if ((m.u32[queue.fillFlags >>> 2]! & XDP_RING_NEED_WAKEUP) !== 0) xsk.kickRx();
    return moved;
  }

  /** Frames for which the kernel found no buffer or no room, in the counters of the ring that receives. */
  #countDrops(now: number): void {
    this.#statisticsAt = now + STATISTICS_EVERY_MS;
    for (const queue of this.#queues) {
      if (queue.xsk !== undefined) this.#count(queue, queue.xsk);
      else queue.pump?.countDrops();
    }
  }

  #count(queue: Queue, xsk: Xsk): void {
    const dropped = xsk.dropped();
    if (dropped === queue.dropped) return;
    const { hosted, txKring, rxKring } = queue.config;
    const k = hosted ? txKring : rxKring;
    const { m } = this.#arena;
    kring.set.drop_full(m, k, kring.get.drop_full(m, k) + BigInt(dropped - queue.dropped));
    queue.dropped = dropped;
  }

  #pump(pump: FramePump, now: number): number {
    if (now >= pump.lookAt) {
      pump.lookAt = now + PUMP_EVERY_MS;
      pump.readable = true;
    }
    return pump.send() + (pump.due ? pump.receive() : 0);
  }

  #again(queue: Queue): void {
    queue.failingSince = performance.now();
    queue.retryAt = queue.failingSince;
    kring.set.nic_opening(this.#arena.m, queue.config.txKring, 1n);
  }

  #noMore(queue: Queue): void {
    queue.retryAt = 0;
    kring.set.nic_opening(this.#arena.m, queue.config.txKring, 0n);
  }

  #retry(queue: Queue): void {
    const now = performance.now();
    if (now < queue.retryAt) return;
    try {
      this.#open(queue);
      this.#noMore(queue);
    } catch (e) {
      const busy = e instanceof SysError && e.errno === errno.EBUSY;
      if (busy && now - queue.failingSince < GIVE_UP_MS) {
        queue.retryAt = now + RETRY_MS;
        return;
      }
      this.#noMore(queue);
      this.#failed(e instanceof Error ? e.message : String(e));
    }
  }

  #open(queue: Queue): void {
    const { config, address } = queue;
    const { m } = this.#arena;
    const { link, at, umem } = config;
    const sizes = nicRingBytes(config.entries);
    for (const ring of XSK_RINGS) this.#arena.mapAnonymous(at[ring], sizes[ring]);
    let rings: Readonly<Record<XskRingName, XskRing>>;
    if (link.kind === 'xdp') {
      const inProcess = (ofs: number): number => this.#arena.addressOf(ofs);
      const [xsk, why] = bindXsk(link.zeroCopy, {
        ifindex: link.ifindex,
        queue: link.queue,
        umem: { address: inProcess(umem.address), bytes: umem.bytes },
        bufSize: kring.get.buf_size(m, config.rxKring),
        entries: config.entries,
        at: {
          rx: inProcess(at.rx),
          tx: inProcess(at.tx),
          fill: inProcess(at.fill),
          completion: inProcess(at.completion),
        },
      });
      queue.xsk = xsk;
      rings = xsk.rings;
      nic_queue.set.zero_copy(m, address, xsk.zeroCopy ? 1 : 0);
      nic_queue.set.copy_errno(m, address, why);
    } else {
      queue.pump = new FramePump(this.#arena, config, link, this.#vnetHdrLen(config));
      rings = FramePump.rings;
    }
    queue.fillFlags = at.fill + rings.fill.flags;
    queue.txFlags = at.tx + rings.tx.flags;
    queue.txConsumer = at.tx + rings.tx.consumer;
    try {
      this.#describe(queue, rings);
      this.#datapath.nicUp(config.domain, address);
      const fd = queue.xsk?.fd ?? queue.pump!.fd;
      this.#epoll.add(fd, EPOLLIN | EPOLLET, fd);
      if (link.kind === 'xdp') xskMapSet(link.map, link.queue, fd);
    } catch (e) {
      this.#close(queue);
      throw e;
    }
  }

  /** Fills the nic_queue. */
  #describe({ config, address, xsk }: Queue, rings: Readonly<Record<XskRingName, XskRing>>): void {
    const { m } = this.#arena;
    const { at } = config;
    const { set } = nic_queue;
    set.hosted(m, address, config.hosted ? 1 : 0);
    set.tx_kring(m, address, config.txKring);
    set.rx_kring(m, address, config.rxKring);
    set.umem(m, address, config.umem.address);
    set.headroom(m, address, XDP_PACKET_HEADROOM);
    set.mask(m, address, config.entries - 1);
    set.rx_producer(m, address, at.rx + rings.rx.producer);
    set.rx_consumer(m, address, at.rx + rings.rx.consumer);
    set.rx_desc(m, address, at.rx + rings.rx.desc);
    set.tx_producer(m, address, at.tx + rings.tx.producer);
    set.tx_desc(m, address, at.tx + rings.tx.desc);
    set.fill_producer(m, address, at.fill + rings.fill.producer);
    set.fill_desc(m, address, at.fill + rings.fill.desc);
    set.completion_producer(m, address, at.completion + rings.completion.producer);
    set.completion_consumer(m, address, at.completion + rings.completion.consumer);
    set.ledger(m, address, config.ledger);
    set.max_pieces(m, address, xsk === undefined ? MAX_PIECES : xsk.chains ? XDP_MAX_PIECES : 1);
  }

  #close(queue: Queue): void {
    const { xsk, pump, config, address } = queue;
    if (queue.retryAt !== 0) this.#noMore(queue);
    if (xsk !== undefined) this.#count(queue, xsk);
    if (xsk === undefined && pump === undefined) {
      this.#unmap(config);
      return;
    }
    // What its user has handed over is sent.
    while ((pump?.send() ?? 0) > 0);
    this.#datapath.nicDown(address);
    try {
      this.#epoll.remove(xsk?.fd ?? pump!.fd);
    } catch {
      // It was not added yet.
    }
    // The mappings would keep the socket bound.
    this.#unmap(config);
    xsk?.close();
    queue.dropped = 0;
    queue.xsk = undefined;
    queue.pump = undefined;
  }

  #unmap({ at, entries }: NicQueueConfig): void {
    const sizes = nicRingBytes(entries);
    for (const ring of XSK_RINGS) this.#arena.unmap(at[ring], pageRound(sizes[ring]));
  }
}
