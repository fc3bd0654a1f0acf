/**
 * An open netmap port: rings, the sync functions and the two ways to wait. What an application has after NIOCREGIF and
 * mmap of a netmap descriptor, in one object.
 */
import type { Views } from '../abi/index.ts';
import { NR_DO_RX_POLL, NR_NO_TX_POLL, netmap_if } from '../abi/index.ts';
import type { GuestKring, Memdev, PtnetDriver } from '../guest/index.ts';
import type { Watch } from '../os/index.ts';
import { errno, eventfdRead, POLLERR, POLLHUP, POLLIN, POLLOUT, PollSet, Spin, SysError, watch } from '../os/index.ts';
import { NetmapRing } from './ring.ts';

export { POLLIN, POLLOUT } from '../os/index.ts';

export interface WaitOptions {
  /** Milliseconds; without it (or negative) there is no limit. */
  readonly timeoutMs?: number;
  /** Ends the wait: it throws the signal's reason. */
  readonly signal?: AbortSignal;
}

/** Longest time-out that poll(2) and setTimeout take, ms. */
const MAX_INT = 0x7fff_ffff;
/** So often a user who neither polls nor waits looks whether the daemon is there; a look is one system call. */
const LOOK_EVERY_CALLS = 1024;
const TX = 0;
const RX = 1;
const HANGUP = 2;

/** poll(2) of one port in its parts, for PortSet (port-set.ts). */
export interface PollParts {
  /** Descriptors: interrupts of tx rings, of rx rings, the end of the daemon. */
  readonly fds: readonly [number, number, number];
  /** If the device has no interrupts: how often to look, in ms. */
  readonly pollMs: number | undefined;
  /** Syncs as poll does; returns those of `events` that hold. @throws SysError ENODEV */
  readonly sync: (events: number) => number;
  /** Whether the host has moved a ring of the wanted directions since then. */
  readonly moved: (events: number) => boolean;
  /** Interrupts on, and off again. */
  readonly want: (events: number) => void;
  readonly unwant: (events: number) => void;
  /** To be called with what poll(2) said of each descriptor. @throws SysError ENODEV when the daemon is gone */
  readonly drain: (tx: number, rx: number, hangup: number) => void;
}

export class NetmapPort {
  /** The name it was opened by, e.g. "vale0:x". */
  readonly name: string;
  /** Ethernet address, e.g. "02:00:00:00:00:01". */
  readonly mac: string;
  /** Views over this process's arena: rings and buffers are in it. Addresses die with `close`. */
  readonly m: Views;
  /** Address of the port's netmap_if, for `netmap_if.get`. */
  readonly nifp: number;
  readonly txRings: readonly NetmapRing[];
  readonly rxRings: readonly NetmapRing[];
  /** Bytes of a buffer. */
  readonly bufSize: number;
  /** Bytes of the VirtIO network header that every frame begins with (0: none). */
  readonly vnetHdrLen: number;
  /** Number of the memory region (nr_mem_id): ports of one daemon with the same one can exchange buffers. */
  readonly memId: number;
  /**
   * Indexes of the buffers that the port has besides those of its rings (`extraBufs` of openPort): the list ni_bufs_head as
   * it was at the start. They are the application's until it closes the port, which gives back what it has.
   */
  readonly extraBufs: readonly number[];
  /** Not for applications: see PortSet. */
  readonly pollParts: PollParts;
  /** NR_NO_TX_POLL: poll and wait hand tx slots over only for POLLOUT; NR_DO_RX_POLL: they sync rx rings in any case. */
  pollFlags = 0;
  readonly #driver: PtnetDriver;
  readonly #tx: readonly GuestKring[];
  readonly #rx: readonly GuestKring[];
  readonly #buffers: number;
  readonly #numBufs: number;
  readonly #release: () => Promise<void>;
  readonly #pollSet: PollSet;
  readonly #spin = new Spin(0);
  /** Why the port is no longer usable. */
  #gone: string | undefined;
  /** Calls of txsync and rxsync since they looked whether the daemon is there. */
  #calls = 0;
  #closing: Promise<void> | undefined;
  /** Pending waits that want each direction: while there are any, its interrupts stay on. */
  readonly #waiting = [0, 0];
  readonly #wakeUps = new Set<() => void>();
  #watches: readonly Watch[] | undefined;

  /**
   * Made by openPort and openDevice. The driver's rings run.
   * @param release called once at close, after the driver was detached
   */
  constructor(name: string, driver: PtnetDriver, memdev: Memdev, release: () => Promise<void>) {
    this.name = name;
    this.mac = driver.mac;
    this.m = memdev.space.arena.m;
    this.nifp = driver.nifp;
    this.bufSize = memdev.bufPool.objsz;
    this.vnetHdrLen = driver.vnetHdrLen;
    this.memId = memdev.memId;
    this.extraBufs = bufferList(this.m, driver.nifp, memdev);
    this.#driver = driver;
    this.#tx = driver.txRings;
    this.#rx = driver.rxRings;
    this.#buffers = memdev.region + memdev.bufPool.ofs;
    this.#numBufs = memdev.bufPool.objnum;
    this.#release = release;
    const ring = (kring: GuestKring): NetmapRing =>
      new NetmapRing(kring, this.bufSize, this.#buffers, memdev.bufPool.objnum);
    this.txRings = driver.txRings.map(ring);
    this.rxRings = driver.rxRings.map(ring);
    const fds = [driver.txEventfd, driver.rxEventfd, driver.pci.hangupFd] as const;
    this.#pollSet = new PollSet(fds.map((fd, i) => ({ fd, events: i === HANGUP ? 0 : POLLIN })));
    this.pollParts = {
      fds,
      pollMs: driver.pci.pollMs,
      sync: (events) => this.#syncAll(events),
      moved: (events) => this.#moved(events),
      want: (events) => this.#want(events),
      unwant: (events) => this.#unwant(events),
      drain: (tx, rx, hangup) => this.#drain(tx, rx, hangup),
    };
    void this.#followGone();
  }

  async #followGone(): Promise<void> {
    const reason = await this.#driver.pci.gone;
    this.#gone ??= reason;
    this.#wake();
  }

  /** NETMAP_BUF: byte offset in `m.u8` of a buffer of the port's region. */
  bufOfs(bufIdx: number): number {
    if (!(bufIdx >= 0 && bufIdx < this.#numBufs)) {
      throw new RangeError(`port ${this.name} has no buffer ${bufIdx}: there are 2 to ${this.#numBufs - 1}`);
    }
    return this.#buffers + bufIdx * this.bufSize;
  }

  /**
   * NIOCTXSYNC: hands filled slots to the host, takes back the ones it has sent. All tx rings. Never waits.
   * @throws SysError ENODEV when the daemon or the port is gone
   */
  txsync(): void {
    if (++this.#calls >= LOOK_EVERY_CALLS) this.#look();
    if (this.#gone !== undefined) this.#throwGone();
    const rings = this.#tx;
    for (let i = 0; i < rings.length; i++) if (this.#sync(rings[i]!)) this.#driver.kick(rings[i]!.dir, i);
  }

  /** NIOCRXSYNC: gives consumed slots back, takes new packets. All rx rings. Never waits. @throws as txsync */
  rxsync(): void {
    if (++this.#calls >= LOOK_EVERY_CALLS) this.#look();
    if (this.#gone !== undefined) this.#throwGone();
    const rings = this.#rx;
    for (let i = 0; i < rings.length; i++) {
      if (this.#sync(rings[i]!)) this.#driver.kick(rings[i]!.dir, i);
      this.rxRings[i]!.stamp();
    }
  }

  /**
   * poll(2) on a netmap descriptor; blocks the thread (timers, promises and JavaScript signal handlers wait: see `wait`).
   * Syncs: hands over pending tx slots in any case, all rings of the wanted directions.
   * @param events POLLIN: a packet beyond cur in some rx ring; POLLOUT: room beyond cur in some tx ring
   * @param timeoutMs milliseconds, 0 returns at once, -1 has no limit
   * @returns those of `events` that hold, 0 at a time-out or when a signal interrupted the wait
   * @throws SysError ENODEV when the daemon is gone
   */
  poll(events: number, timeoutMs: number): number {
    let ready = this.#syncAll(events);
    if (ready !== 0 || timeoutMs === 0) return ready;
    const end = timeoutMs < 0 ? Number.POSITIVE_INFINITY : performance.now() + timeoutMs;
    while (this.#spin.until(this.pollParts.moved, events, end)) {
      ready = this.#syncAll(events);
      if (ready !== 0) return ready;
    }
    this.#want(events);
    try {
      for (;;) {
        // Interrupts are on now, so look again before sleeping (R13).
        ready = this.#syncAll(events);
        const now = performance.now();
        const left = end - now;
        if (ready !== 0 || left <= 0) return ready;
        const { pollMs } = this.#driver.pci;
        const sleep = pollMs === undefined ? left : Math.min(left, pollMs);
        const n = this.#pollSet.poll(sleep === Number.POSITIVE_INFINITY ? -1 : Math.min(Math.ceil(sleep), MAX_INT));
        const slept = performance.now() - now;
        this.#spin.slept(slept * 1000);
        if (n === 0 && slept >= sleep && sleep < left) continue; // a device without interrupts; no signal
        if (n === 0) return this.#syncAll(events);
        this.#drain(this.#pollSet.revents(TX), this.#pollSet.revents(RX), this.#pollSet.revents(HANGUP));
      }
    } finally {
      this.#unwant(events);
    }
  }

  /**
   * `poll` on the event loop: the thread goes on with other things. Several waits may be pending.
   * @returns those of `events` that hold, 0 at a time-out
   * @throws SysError ENODEV when the daemon is gone or the port was closed; the reason of `signal`
   */
  async wait(events: number, options: WaitOptions = {}): Promise<number> {
    const { timeoutMs = -1, signal } = options;
    signal?.throwIfAborted();
    let ready = this.#syncAll(events);
    if (ready !== 0 || timeoutMs === 0) return ready;
    this.#want(events);
    let timer: NodeJS.Timeout | undefined;
    let expired = false;
    let wakeUp = (): void => undefined;
    const onAbort = (): void => wakeUp();
    signal?.addEventListener('abort', onAbort);
    if (timeoutMs > 0) {
      timer = setTimeout(
        () => {
          expired = true;
          wakeUp();
        },
        Math.min(timeoutMs, MAX_INT),
      );
    }
    const { pollMs } = this.#driver.pci;
    const look = pollMs === undefined ? undefined : setInterval(() => wakeUp(), pollMs);
    try {
      for (;;) {
        ready = this.#syncAll(events);
        if (ready !== 0 || expired) return ready;
        signal?.throwIfAborted();
        await new Promise<void>((resolve) => {
          wakeUp = resolve;
          this.#wakeUps.add(resolve);
          this.#watch();
        });
        this.#wakeUps.delete(wakeUp); // which a time-out may have called
      }
    } finally {
      clearTimeout(timer);
      clearInterval(look);
      signal?.removeEventListener('abort', onAbort);
      this.#unwant(events);
    }
  }

  /** Stops the rings and gives everything back; the daemon removes the port. Pending waits end with an error. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    const daemonGone = this.#gone !== undefined;
    this.#gone ??= 'the port was closed';
    this.#wake();
    for (const w of this.#watches ?? []) w.close();
    this.#watches = [];
    for (const ring of [...this.txRings, ...this.rxRings]) ring.detach();
    try {
      await this.#driver.detach(daemonGone);
    } finally {
      await this.#release();
    }
  }

  /** Syncs as netmap_poll does; returns those of `events` that hold. */
  #syncAll(events: number): number {
    if (this.#gone !== undefined) this.#throwGone();
    let ready = 0;
    for (let i = 0; i < this.#tx.length; i++) {
      const kring = this.#tx[i]!;
      if ((events & POLLOUT) === 0 && ((this.pollFlags & NR_NO_TX_POLL) !== 0 || !kring.pending)) continue;
      if (this.#sync(kring)) this.#driver.kick(kring.dir, i);
      if (kring.rcur !== kring.rtail) ready |= POLLOUT;
    }
    if ((events & POLLIN) === 0 && (this.pollFlags & NR_DO_RX_POLL) === 0) return ready & events;
    for (let i = 0; i < this.#rx.length; i++) {
      const kring = this.#rx[i]!;
      if (this.#sync(kring)) this.#driver.kick(kring.dir, i);
      this.rxRings[i]!.stamp();
      if (kring.rcur !== kring.rtail) ready |= POLLIN;
    }
    return ready & events;
  }

  #moved(events: number): boolean {
    if ((events & POLLOUT) !== 0) for (let i = 0; i < this.#tx.length; i++) if (this.#tx[i]!.moved) return true;
    if ((events & POLLIN) !== 0) for (let i = 0; i < this.#rx.length; i++) if (this.#rx[i]!.moved) return true;
    return false;
  }

  /** Turns on the interrupts of the wanted directions. */
  #want(events: number): void {
    if ((events & POLLOUT) !== 0 && this.#waiting[TX]!++ === 0) for (const kring of this.#tx) kring.arm();
    if ((events & POLLIN) !== 0 && this.#waiting[RX]!++ === 0) for (const kring of this.#rx) kring.arm();
  }

  #unwant(events: number): void {
    if ((events & POLLOUT) !== 0 && --this.#waiting[TX]! === 0 && !this.#closing) this.#disarm(this.#tx);
    if ((events & POLLIN) !== 0 && --this.#waiting[RX]! === 0 && !this.#closing) this.#disarm(this.#rx);
  }

  #disarm(krings: readonly GuestKring[]): void {
    for (const kring of krings) kring.disarm();
  }

  /** Clears interrupts that poll(2) reported; pending waits look for themselves. */
  #drain(tx: number, rx: number, hangup: number): void {
    if ((tx & POLLIN) !== 0) eventfdRead(this.#driver.txEventfd);
    if ((rx & POLLIN) !== 0) eventfdRead(this.#driver.rxEventfd);
    const gone = (hangup & (POLLHUP | POLLERR)) !== 0;
    if (gone) this.#gone ??= 'it ended the connection';
    this.#wake();
    if (gone) this.#throwGone();
  }

  #wake(): void {
    for (const wakeUp of this.#wakeUps) wakeUp();
    this.#wakeUps.clear();
    for (const w of this.#watches ?? []) w.update({ readable: false, writable: false });
  }

  /** Watches the eventfds on the event loop until the next wake-up. */
  #watch(): void {
    const interest = { readable: true, writable: false };
    this.#watches ??= [this.#driver.txEventfd, this.#driver.rxEventfd].map((fd) =>
      watch(fd, interest, () => {
        eventfdRead(fd);
        this.#wake();
      }),
    );
    for (const w of this.#watches) w.update(interest);
  }

  /** Syncs a ring. @throws SysError EINVAL, EPROTO; ENODEV if the daemon is gone */
  #sync(kring: GuestKring): boolean {
    try {
      return kring.sync();
    } catch (e) {
      this.#look();
      if (this.#gone === undefined) throw e;
      return this.#throwGone();
    }
  }

  /** Looks whether the daemon is there. */
  #look(): void {
    this.#calls = 0;
    if (this.#gone !== undefined) return;
    this.#pollSet.poll(0);
    if ((this.#pollSet.revents(HANGUP) & (POLLHUP | POLLERR)) !== 0) this.#gone = 'it ended the connection';
  }

  #throwGone(): never {
    const removal = this.#closing === undefined ? this.#driver.pci.removal?.() : undefined;
    if (removal !== undefined) throw new SysError(`port ${this.name}: ${removal}`, errno.ENODEV);
    const why = this.#closing === undefined ? `the daemon of port ${this.name} is gone` : `port ${this.name}`;
    throw new SysError(`${why} (${this.#gone})`, errno.ENODEV);
  }
}

/** Walks the list of extra buffers. @throws SysError EPROTO if it leads nowhere */
function bufferList(m: Views, nifp: number, { region, bufPool }: Memdev): number[] {
  const list: number[] = [];
  for (let idx = netmap_if.get.ni_bufs_head(m, nifp); idx !== 0; ) {
    if (idx >= bufPool.objnum || list.length >= bufPool.objnum) {
      throw new SysError(`the list of extra buffers leads to buffer ${idx}, of ${bufPool.objnum}`, errno.EPROTO);
    }
    list.push(idx);
    idx = m.u32[(region + bufPool.ofs + idx * bufPool.objsz) >>> 2]!;
  }
  return list;
}
