/**
 * The ptnet driver as a network interface (interface mode of if_ptnet.c): a device bound to the Linux network stack
 * through a TAP interface of the process's network namespace, one queue for each pair of rings. The interface goes
 * with its process.
 *
 * Entry point: `run`, which moves frames on the calling thread until `close`; it gives the event loop its turn every
 * few milliseconds, and whenever a signal arrives.
 */
import { NETMAP_MAX_FRAGS } from '../abi/index.ts';
import type { Tap } from '../os/index.ts';
import {
  closeFd,
  errno,
  eventfdDrain,
  interfaceFeature,
  openTap,
  POLLERR,
  POLLHUP,
  POLLIN,
  PollSet,
  setInterfaceEther,
  setInterfaceFlags,
  setInterfaceMtu,
  IFF_UP,
  SysError,
} from '../os/index.ts';
import type { PtnetDriver } from './driver.ts';
import type { QueueCounters } from './ifnet-queue.ts';
import { IfnetQueue } from './ifnet-queue.ts';
import { softwareReceive } from './ifnet-software.ts';
import type { Memdev } from './memdev.ts';

export interface IfnetOptions {
  /** The interface's name (default ptnet0, or the first free number). */
  readonly name?: string;
  /** 68 to 9000 (default 1500). */
  readonly mtu?: number;
  /** Ethernet address, 6 bytes (default: the device's). */
  readonly ether?: Uint8Array;
  /** Offloads, all on by default; without VirtIO header there are none. */
  readonly txcsum?: boolean;
  readonly rxcsum?: boolean;
  readonly tso?: boolean;
  readonly lro?: boolean;
}

export const MTU_MIN = 68;
export const MTU_MAX = 9000;

/** Longest segment of TCP that the stack leaves to the driver, with its headers. */
const MAX_SEGMENT = 65536;

/** Frames of one direction before the other has its turn. */
const BUDGET = 64;
/**
 * µs of empty turns before sleeping. Not `Spin` of src/os, which may go on for longer: its looks are at memory, here each is
 * a system call for each queue.
 */
const SPIN_US = 20;
/** The event loop has its turn at least this often. */
const YIELD_MS = 5;
/** Longest sleep: the event loop's turn while idle. A device without interrupts says itself how often to look. */
const SLEEP_MS = 100;

export class Ifnet {
  readonly name: string;
  readonly vnetHdrLen: number;
  readonly rxcsum: boolean;
  readonly lro: boolean;
  readonly queues: readonly IfnetQueue[];
  readonly #driver: PtnetDriver;
  readonly #tap: Tap;
  readonly #release: () => Promise<void>;
  readonly #pollSet: PollSet;
  #reason: string | undefined;
  readonly #removal: () => string | undefined;
  #closing: Promise<void> | undefined;

  /**
   * Makes the interface and brings it up. The driver's rings run.
   * @param release called once at close, after the driver was detached
   * @throws SysError EINVAL: rings or buffers too small for a 64 KiB segment; what openTap throws
   */
  constructor(driver: PtnetDriver, memdev: Memdev, options: IfnetOptions, release: () => Promise<void>) {
    const { txcsum = true, rxcsum = true, tso = true, lro = true, mtu = 1500 } = options;
    this.#driver = driver;
    this.#release = release;
    this.vnetHdrLen = driver.vnetHdrLen;
    this.rxcsum = rxcsum && this.vnetHdrLen > 0;
    this.lro = lro && this.rxcsum;
    const pairs = Math.min(driver.txRings.length, driver.rxRings.length);
    const slots = Math.min(...driver.txRings.map((r) => r.numSlots));
    if (slots <= 64) {
      throw new SysError(`an interface needs rings of more than 64 slots; these have ${slots}`, errno.EINVAL);
    }
    // Without as much, all long segments of TCP would be lost, which it takes for a slow link.
    const bufSize = memdev.bufPool.objsz;
    if (this.vnetHdrLen > 0 && bufSize * NETMAP_MAX_FRAGS < MAX_SEGMENT) {
      const least = MAX_SEGMENT / NETMAP_MAX_FRAGS;
      throw new SysError(
        `an interface with a VirtIO header needs buffers of ${least} bytes, these have ${bufSize}: do without (--vnet-hdr 0)`,
        errno.EINVAL,
      );
    }
    this.#tap = openTap(options.name ?? 'ptnet%d', pairs, this.vnetHdrLen, { txcsum, tso });
    this.name = this.#tap.name;
    try {
      setInterfaceEther(this.name, options.ether ?? parseEther(driver.mac));
      if (mtu !== 1500) setInterfaceMtu(this.name, mtu);
      setInterfaceFlags(this.name, IFF_UP, true);
    } catch (e) {
      for (const fd of this.#tap.fds) closeFd(fd);
      throw e;
    }
    const software =
      this.vnetHdrLen > 0 && !(this.rxcsum && this.lro)
        ? (packet: Uint8Array) => softwareReceive(packet, this.vnetHdrLen, { rxcsum: this.rxcsum, lro: this.lro })
        : undefined;
    this.queues = this.#tap.fds.map((fd, i) => {
      const kick = (ring: { dir: number }): void => driver.kick(ring.dir, i);
      return new IfnetQueue(fd, driver.txRings[i]!, driver.rxRings[i]!, memdev, this.vnetHdrLen, kick, software);
    });
    this.#pollSet = new PollSet([
      { fd: driver.pci.hangupFd, events: 0 },
      { fd: driver.rxEventfd, events: POLLIN },
      { fd: driver.txEventfd, events: POLLIN },
      ...this.#tap.fds.map((fd) => ({ fd, events: POLLIN })),
    ]);
    this.#removal = () => driver.pci.removal?.();
    void driver.pci.gone.then((reason) => (this.#reason ??= reason));
  }

  /** Offloads that are on; txcsum and tso as the interface has them now. */
  get options(): { txcsum: boolean; rxcsum: boolean; tso: boolean; lro: boolean } {
    const { name, rxcsum, lro } = this;
    return { txcsum: interfaceFeature(name, 'txcsum'), rxcsum, tso: interfaceFeature(name, 'tso'), lro };
  }

  /** Sums over all queues, since the interface was made. */
  get counters(): QueueCounters {
    const sum: QueueCounters = { txPackets: 0, rxPackets: 0, rxBad: 0, rxDropped: 0, txTooLong: 0 };
    for (const { counters } of this.queues) {
      for (const key of Object.keys(sum) as (keyof QueueCounters)[]) sum[key] += counters[key];
    }
    return sum;
  }

  /** Moves frames until `close`. @throws SysError ENODEV when the daemon or the interface is gone */
  async run(): Promise<void> {
    let yielded = performance.now();
    let moved = yielded;
    while (this.#closing === undefined) {
      if (this.#reason !== undefined) {
        const why = this.#removal() ?? this.#reason;
        throw new SysError(`the device of interface ${this.name} is gone (${why})`, errno.ENODEV);
      }
      const busy = this.#turn();
      const now = performance.now();
      if (busy) moved = now;
      else if (now - moved > SPIN_US / 1000 && !this.#sleep()) yielded = 0;
      if (now - yielded < YIELD_MS) continue;
      await new Promise(setImmediate);
      yielded = performance.now();
    }
  }

  #turn(): boolean {
    let frames = 0;
    for (const queue of this.queues) frames += queue.receive(BUDGET) + queue.transmit(BUDGET);
    return frames > 0;
  }

  /** Sleeps until there is something to do. False at a time-out or a signal. */
  #sleep(): boolean {
    const { queues } = this;
    let ready = 0;
    for (const [i, queue] of queues.entries()) {
      if (queue.arm()) ready++;
      this.#pollSet.set(3 + i, queue.blocked ? -1 : queue.fd, POLLIN);
    }
    if (ready === 0) {
      ready = this.#pollSet.poll(this.#driver.pci.pollMs ?? SLEEP_MS);
      if (ready > 0) this.#drain();
    }
    for (const queue of queues) queue.disarm();
    return ready > 0;
  }

  #drain(): void {
    if ((this.#pollSet.revents(0) & (POLLHUP | POLLERR)) !== 0) this.#reason ??= 'its server ended the connection';
    if ((this.#pollSet.revents(1) & POLLIN) !== 0) eventfdDrain(this.#driver.rxEventfd);
    if ((this.#pollSet.revents(2) & POLLIN) !== 0) eventfdDrain(this.#driver.txEventfd);
    for (let i = 0; i < this.queues.length; i++) {
      if ((this.#pollSet.revents(3 + i) & (POLLHUP | POLLERR)) !== 0) this.#reason ??= 'the interface was removed';
    }
  }

  /** Removes the interface, stops the rings and gives everything back. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    for (const fd of this.#tap.fds) closeFd(fd);
    try {
      await this.#driver.detach(this.#reason !== undefined);
    } finally {
      await this.#release();
    }
  }
}

/** "02:00:00:00:00:01" as bytes. @throws RangeError */
export function parseEther(text: string): Uint8Array {
  if (!/^([0-9a-f]{2}:){5}[0-9a-f]{2}$/i.test(text)) {
    throw new RangeError(`"${text}" is no Ethernet address: six pairs of hexadecimal digits, as in 02:00:00:00:00:01`);
  }
  return Uint8Array.from(text.split(':'), (pair) => Number.parseInt(pair, 16));
}
