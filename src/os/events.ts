/** Event descriptors: eventfd, epoll, poll. */
import { readlinkSync } from 'node:fs';
import koffi from 'koffi';
import { errno, SysError } from './errno.ts';
import { addressOf, check, lastErrno, libc, scratch } from './libc.ts';

const EFD_CLOEXEC = 0x80000;
const EFD_NONBLOCK = 0x800;
const O_NONBLOCK = 0x800;
const F_GETFL = 3;
const F_SETFL = 4;
const F_DUPFD_CLOEXEC = 1030;
const EPOLL_CLOEXEC = 0x80000;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
export const EPOLLIN = 1;
export const EPOLLOUT = 4;
export const EPOLLHUP = 0x10;
export const EPOLLRDHUP = 0x2000;
export const EPOLLET = 0x80000000;
export const POLLIN = 1;
export const POLLOUT = 4;
export const POLLERR = 8;
export const POLLHUP = 0x10;

const one = scratch(8);
one.view.setBigUint64(0, 1n, true);
const eight = scratch(8);

/** A new eventfd, non-blocking, close-on-exec, counter 0. */
export function eventfd(): number {
  return check(libc.eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), 'eventfd');
}

/** Adds 1 to an eventfd. Returns 0, or the errno (EAGAIN: the counter is full). Never throws: for hot loops. */
export function eventfdSignal(fd: number): number {
  return libc.write(fd, one.address, 8) === 8 ? 0 : lastErrno();
}

/** Reads and clears an eventfd. Returns the counter, 0 if there was none (non-blocking descriptors). */
export function eventfdRead(fd: number): bigint {
  if (libc.read(fd, eight.address, 8) === 8) return eight.view.getBigUint64(0, true);
  const e = lastErrno();
  if (e === errno.EAGAIN || e === errno.EINTR) return 0n;
  throw new SysError(`read(fd ${fd})`, e);
}

const RWF_NOWAIT = 8;
const iov = scratch(16);
iov.view.setBigUint64(0, BigInt(eight.address), true);
iov.view.setBigUint64(8, 8n, true);
/** Empties an eventfd without ever blocking, even if someone made it a blocking one (preadv2 with RWF_NOWAIT). */
export function eventfdDrain(fd: number): void {
  libc.preadv2(fd, iov.address, 1, -1, RWF_NOWAIT);
}

const full = scratch(8);
/** Whether an eventfd's counter is at its highest value, so that a write has to wait. */
export function eventfdIsFull(fd: number): boolean {
  full.view.setInt32(0, fd, true);
  full.view.setInt16(4, POLLOUT, true);
  full.view.setInt16(6, 0, true);
  return libc.poll(full.address, 1, 0) === 0;
}

/** Whether a descriptor, whoever sent it, is really an eventfd (R15). */
export function isEventfd(fd: number): boolean {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`) === 'anon_inode:[eventfd]';
  } catch {
    return false;
  }
}

export function setNonblocking(fd: number): void {
  const flags = check(libc.fcntl(fd, F_GETFL, 0), `fcntl(fd ${fd}, F_GETFL)`);
  check(libc.fcntl(fd, F_SETFL, flags | O_NONBLOCK), `fcntl(fd ${fd}, F_SETFL)`);
}

/** A duplicate descriptor, close-on-exec. */
export function dup(fd: number): number {
  return check(libc.fcntl(fd, F_DUPFD_CLOEXEC, 0), `fcntl(fd ${fd}, F_DUPFD_CLOEXEC)`);
}

/** Closes a descriptor; negative ones are ignored, errors too (nothing is to be done about them). */
export function closeFd(fd: number): void {
  if (fd >= 0) libc.close(fd);
}

/** An epoll instance. `wait` allocates nothing. */
export class Epoll {
  readonly fd: number;
  readonly #max: number;
  readonly #events: ReturnType<typeof scratch>;
  readonly #one = scratch(12);

  /** @param max most events returned by one wait */
  constructor(max = 64) {
    this.fd = check(libc.epoll_create1(EPOLL_CLOEXEC), 'epoll_create1');
    this.#max = max;
    this.#events = scratch(12 * max); // struct epoll_event is packed on x86-64: events u32, data u64
  }

  /** Watches a descriptor. `data`: a 32-bit number that `data(i)` gives back. */
  add(fd: number, events: number, data: number): void {
    this.#one.view.setUint32(0, events, true);
    this.#one.view.setUint32(4, data, true);
    check(libc.epoll_ctl(this.fd, EPOLL_CTL_ADD, fd, this.#one.address), `epoll_ctl(ADD, fd ${fd})`);
  }

  remove(fd: number): void {
    check(libc.epoll_ctl(this.fd, EPOLL_CTL_DEL, fd, 0), `epoll_ctl(DEL, fd ${fd})`);
  }

  /** Waits for events: -1 ms for ever. Returns their number; an interrupted wait gives 0. */
  wait(timeoutMs: number): number {
    const n = libc.epoll_wait(this.fd, this.#events.address, this.#max, timeoutMs);
    if (n < 0) {
      const e = lastErrno();
      if (e === errno.EINTR) return 0;
      throw new SysError('epoll_wait', e);
    }
    return n;
  }

  events(i: number): number {
    return this.#events.view.getUint32(12 * i, true);
  }

  data(i: number): number {
    return this.#events.view.getUint32(12 * i + 4, true);
  }

  close(): void {
    closeFd(this.fd);
  }
}

/** A fixed set of descriptors for poll(2), reusable without allocation. */
export class PollSet {
  readonly #pollfds: Uint8Array;
  readonly #view: DataView;
  readonly #address: number;
  readonly length: number;

  constructor(fds: readonly { fd: number; events: number }[]) {
    this.length = fds.length;
    this.#pollfds = new Uint8Array(new ArrayBuffer(8 * Math.max(1, fds.length)));
    this.#view = new DataView(this.#pollfds.buffer);
    this.#address = addressOf(this.#pollfds);
    fds.forEach(({ fd, events }, i) => {
      this.#view.setInt32(8 * i, fd, true);
      this.#view.setInt16(8 * i + 4, events, true);
    });
  }

  /** Changes what is waited for on entry i; a negative fd makes poll ignore it. */
  set(i: number, fd: number, events: number): void {
    this.#view.setInt32(8 * i, fd, true);
    this.#view.setInt16(8 * i + 4, events, true);
  }

  /** Waits; returns the number of ready entries (0 on time-out or interruption). Blocks the thread. */
  poll(timeoutMs: number): number {
    const n = libc.poll(this.#address, this.length, timeoutMs);
    if (n < 0) {
      const e = lastErrno();
      if (e === errno.EINTR) return 0;
      throw new SysError('poll', e);
    }
    return n;
  }

  revents(i: number): number {
    return this.#view.getInt16(8 * i + 6, true);
  }
}

export interface Watch {
  /** Changes what is watched. */
  update(interest: { readable: boolean; writable: boolean }): void;
  close(): void;
}

/** Descriptors that this thread's event loop watches. */
const watched = new Set<number>();
/** Never waited for: only asked whether it would take a descriptor. */
const watchable = new Epoll(1);

/**
 * Watches a descriptor on this thread's event loop (level-triggered). A watch keeps the loop alive until closed.
 * Close the watch before the descriptor. An error on the descriptor is reported as readable and writable, so that the
 * next call on it gives the reason. What `onReady` throws becomes an uncaught exception of this thread (koffi alone
 * would swallow it, and never call again).
 * @throws SysError EPERM if the descriptor cannot be watched (regular files), EBADF, EEXIST if this loop watches it already
 */
export function watch(
  fd: number,
  interest: { readable: boolean; writable: boolean },
  onReady: (ready: { readable: boolean; writable: boolean }) => void,
): Watch {
  // What libuv refuses, koffi turns into the end of the process: refuse it here.
  if (watched.has(fd)) throw new SysError(`watch(fd ${fd})`, errno.EEXIST);
  watchable.add(fd, 0, 0);
  watchable.remove(fd);
  let closed = false;
  let now = interest;
  const callback = (status: number, ev: { readable: boolean; writable: boolean }): void => {
    if (closed) return;
    try {
      onReady(status < 0 ? { readable: true, writable: true } : ev);
    } catch (e) {
      setImmediate(() => {
        throw e;
      });
    }
  };
  const handle = koffi.node.poll(fd, interest, callback as never);
  watched.add(fd);
  return {
    update: (next) => {
      if (closed) return; // the handle's methods crash the process once it is closed
      if (next.readable === now.readable && next.writable === now.writable) return;
      now = { readable: next.readable, writable: next.writable };
      if (next.readable || next.writable) handle.start(next, callback as never);
      else handle.stop();
    },
    close: () => {
      if (closed) return;
      closed = true;
      watched.delete(fd);
      handle.close();
    },
  };
}
