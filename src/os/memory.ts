/** Shared memory: sealed memory files and their mappings. Addresses are process addresses, lengths bytes. */
import { readFileSync, statfsSync } from 'node:fs';
import { errno, SysError } from './errno.ts';
import { addressOf, check, lastErrno, libc } from './libc.ts';

export const PAGE_SIZE = 4096;
/** Bytes of a huge page (x86-64). */
export const HUGE_PAGE = 2 ** 21;

const MFD_CLOEXEC = 1;
const MFD_ALLOW_SEALING = 2;
const MFD_HUGETLB = 4;
const MFD_HUGE_2MB = 21 * 2 ** 26;
const HUGETLBFS_MAGIC = 0x958458f6;
const HUGE_PAGES = '/sys/kernel/mm/hugepages/hugepages-2048kB';
const F_ADD_SEALS = 1033;
const F_GET_SEALS = 1034;
export const F_SEAL_SEAL = 1;
export const F_SEAL_SHRINK = 2;
export const F_SEAL_GROW = 4;
export const PROT_NONE = 0;
export const PROT_READ = 1;
export const PROT_WRITE = 2;
const MAP_SHARED = 1;
const MAP_PRIVATE = 2;
const MAP_FIXED = 0x10;
const MAP_ANONYMOUS = 0x20;
const MAP_NORESERVE = 0x4000;
const SEEK_CUR = 1;
const SEEK_END = 2;

const SEALED = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

/**
 * A memory file (memfd_create(2)) of the given size, close-on-exec.
 * @param seals seals applied after sizing; by default no shrinking, no growing, no further seals (R1).
 */
export function memfd(name: string, bytes: number, seals = SEALED): number {
  return memoryFile(name, bytes, 0, (fd) => {
    if (seals !== 0) check(libc.fcntl(fd, F_ADD_SEALS, seals), `fcntl("${name}", F_ADD_SEALS)`);
  });
}

/**
 * A memory file on huge pages, sealed, all of whose pages are there: were one not to be had later, whoever touches it
 * would be ended (SIGBUS). @param bytes a multiple of HUGE_PAGE @throws SysError ENOMEM: not so many are free
 */
export function hugeMemfd(name: string, bytes: number): number {
  try {
    return memoryFile(name, bytes, MFD_HUGETLB | MFD_HUGE_2MB, (fd) => {
      check(libc.fallocate(fd, 0, 0, bytes), `fallocate("${name}", ${bytes})`);
      check(libc.fcntl(fd, F_ADD_SEALS, SEALED), `fcntl("${name}", F_ADD_SEALS)`);
    });
  } catch {
    const what = `${bytes / HUGE_PAGE} huge pages of 2 MiB for "${name}"`;
    throw new SysError(`${what}: ${hugePages().free} are free (as root, raise vm.nr_hugepages)`, errno.ENOMEM);
  }
}

/** The kernel's huge pages: how many there are, and how many of them nobody has. */
export function hugePages(): { total: number; free: number } {
  const read = (name: string): number => {
    try {
      return Number(readFileSync(`${HUGE_PAGES}/${name}_hugepages`, 'utf8'));
    } catch {
      return 0; // a kernel without them
    }
  };
  return { total: read('nr'), free: read('free') };
}

/** Bytes of the pages that a file lies on: addresses and lengths of its mappings are multiples of it. */
export function pageBytesOf(fd: number): number {
  const { type, bsize } = statfsSync(`/proc/self/fd/${fd}`);
  return type === HUGETLBFS_MAGIC ? bsize : PAGE_SIZE;
}

function memoryFile(name: string, bytes: number, flags: number, finish: (fd: number) => void): number {
  const fd = check(libc.memfd_create(name, flags | MFD_CLOEXEC | MFD_ALLOW_SEALING), `memfd_create("${name}")`);
  try {
    check(libc.ftruncate(fd, bytes), `ftruncate("${name}", ${bytes})`);
    finish(fd);
  } catch (e) {
    libc.close(fd);
    throw e;
  }
  return fd;
}

/** Seals of a file; 0 where the file system has none (regular files). */
export function getSeals(fd: number): number {
  const seals = libc.fcntl(fd, F_GET_SEALS, 0);
  if (seals < 0) {
    const e = lastErrno();
    if (e === errno.EINVAL) return 0;
    throw new SysError(`fcntl(${fd}, F_GET_SEALS)`, e);
  }
  return seals;
}

/** Size of a file in bytes. Leaves the file position as it was. @throws SysError (ESPIPE for sockets, pipes, eventfds) */
export function fileSize(fd: number): number {
  const at = check(libc.lseek(fd, 0, SEEK_CUR), `lseek(${fd})`);
  const size = check(libc.lseek(fd, 0, SEEK_END), `lseek(${fd})`);
  libc.lseek(fd, at, 0);
  return size;
}

/** Maps a file, shared, over existing addresses (MAP_FIXED). All three of address, bytes and ofs are page multiples. */
export function mapFixed(address: number, bytes: number, fd: number, ofs: number, prot = PROT_READ | PROT_WRITE): void {
  const got = libc.mmap(address, bytes, prot, MAP_SHARED | MAP_FIXED, fd, ofs);
  check(got, `mmap(fd ${fd}, offset ${ofs}, ${bytes} bytes)`);
}

/** Maps fresh zeroed private memory over existing addresses. */
export function mapAnonymousFixed(address: number, bytes: number, prot = PROT_READ | PROT_WRITE): void {
  const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
  check(libc.mmap(address, bytes, prot, flags, -1, 0), `mmap(anonymous, ${bytes} bytes)`);
}

/** Address of a WebAssembly memory (or any shared buffer) in this process. */
export function bufferAddress(buffer: ArrayBufferLike): number {
  return addressOf(new Uint8Array(buffer));
}
