/** What a hostile client does to descriptors that it shares with the daemon. */
import { libc } from '../../../src/os/libc.ts';
import { check, scratch } from '../../../src/os/libc.ts';

const F_SETFL = 4;
const O_RDWR = 2;

/** Sets an eventfd's counter to its highest value: the next write has no room. The descriptor must be non-blocking. */
export function fill(fd: number): void {
  const max = scratch(8);
  max.view.setBigUint64(0, 0xffff_ffff_ffff_fffen, true);
  libc.read(fd, scratch(8).address, 8);
  check(libc.write(fd, max.address, 8), `write(fd ${fd})`);
}

/** Takes O_NONBLOCK off the file, whoever set it. */
export function makeBlocking(fd: number): void {
  check(libc.fcntl(fd, F_SETFL, O_RDWR), `fcntl(fd ${fd})`);
}

const MFD_CLOEXEC = 1;
const MFD_ALLOW_SEALING = 2;
const MFD_HUGETLB = 4;
const MFD_HUGE_2MB = 21 << 26;
const F_ADD_SEALS = 1033;

/** A memory file on pages of 2 MiB, sealed against shrinking. */
export function hugeMemfd(bytes: number): number {
  const flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB | MFD_HUGE_2MB;
  const fd = check(libc.memfd_create('test:huge', flags), 'memfd_create(MFD_HUGETLB)');
  check(libc.ftruncate(fd, bytes), 'ftruncate');
  check(libc.fcntl(fd, F_ADD_SEALS, 2), 'fcntl(F_ADD_SEALS)');
  return fd;
}
