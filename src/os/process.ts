/** The process itself: ending it without waiting, locks on files, giving up the processor. */
import { errno, SysError } from './errno.ts';
import { check, lastErrno, libc, scratch } from './libc.ts';

const LOCK_EX = 2;
const LOCK_NB = 4;

/**
 * Ends the process at once, whatever its threads do (R20): no exit handler runs, no thread is joined.
 * `process.exit` would wait for a thread blocked in a native call.
 */
export function exitNow(status: number): never {
  libc._exit(status);
  throw new Error('unreachable');
}

/** Takes an exclusive lock on an open file, held until its last descriptor is closed. Returns false if another has it. */
export function tryLock(fd: number): boolean {
  if (libc.flock(fd, LOCK_EX | LOCK_NB) === 0) return true;
  const e = lastErrno();
  if (e === errno.EAGAIN) return false;
  throw new SysError(`flock(fd ${fd})`, e);
}

/** Gives the processor to another runnable thread, if there is one. */
export function yieldCpu(): void {
  libc.sched_yield();
}

const SYS_sched_setattr = 314;
const SYS_sched_getattr = 315;
/** struct sched_attr (sched_setattr(2)): size, policy, flags, nice, priority, runtime, deadline, period. */
const SCHED_ATTR_SIZE = 48;
const SCHED_ATTR = { policy: 4, flags: 8, runtime: 24 } as const;
const SCHED_OTHER = 0;
const SCHED_FLAG_RESET_ON_FORK = 1n;
/** The shortest that Linux takes, ns. */
const SLICE_NS = 100_000n;

/**
 * Gives the calling thread the shortest time slice: it gets its CPU as often as others, for a shorter time. A thread that
 * yields forfeits a slice, and is not to wait long for its CPU. Returns false, with nothing changed, before Linux 6.12, which
 * has no such slices, and for threads that somebody gave a policy of their own.
 */
export function shortTimeSlice(): boolean {
  const attr = scratch(SCHED_ATTR_SIZE);
  const read = (): boolean => libc.syscall(SYS_sched_getattr, 0, attr.address, SCHED_ATTR_SIZE, 0) === 0;
  if (!read() || attr.view.getUint32(SCHED_ATTR.policy, true) !== SCHED_OTHER) return false;
  // Older ones say that a thread has no slice.
  if (attr.view.getBigUint64(SCHED_ATTR.runtime, true) === 0n) return false;
  attr.view.setBigUint64(SCHED_ATTR.flags, SCHED_FLAG_RESET_ON_FORK, true);
  attr.view.setBigUint64(SCHED_ATTR.runtime, SLICE_NS, true);
  return libc.syscall(SYS_sched_setattr, 0, attr.address, 0, 0) === 0;
}

/** The CPUs that the calling thread may use, in order. */
export function usableCpus(): number[] {
  const mask = scratch(128);
  check(libc.sched_getaffinity(0, 128, mask.address), 'sched_getaffinity');
  return Array.from({ length: 1024 }, (_, cpu) => cpu).filter((cpu) => (mask.u8[cpu >>> 3]! & (1 << (cpu & 7))) !== 0);
}

/** Pins the calling thread to one CPU, 0 to 1023. @throws SysError EINVAL: this process may not use such a CPU */
export function pinThread(cpu: number): void {
  const mask = scratch(128);
  mask.u8[cpu >>> 3] = 1 << (cpu & 7);
  check(libc.sched_setaffinity(0, 128, mask.address), `pin a thread to CPU ${cpu}`);
}
