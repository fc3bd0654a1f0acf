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

/** Pins the calling thread to one CPU, 0 to 1023. @throws SysError EINVAL: this process may not use such a CPU */
export function pinThread(cpu: number): void {
  const mask = scratch(128);
  mask.u8[cpu >>> 3] = 1 << (cpu & 7);
  check(libc.sched_setaffinity(0, 128, mask.address), `pin a thread to CPU ${cpu}`);
}
