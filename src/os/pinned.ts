/** Memory that devices reach: mappings with an address to tell, and huge pages with a physical one. */
import { closeSync, openSync, readFileSync, readSync, writeFileSync } from 'node:fs';
import { errno, SysError } from './errno.ts';
import { check, libc } from './libc.ts';
import { PAGE_SIZE, PROT_READ, PROT_WRITE } from './memory.ts';

/** Bytes of a huge page (x86-64). */
export const HUGE_PAGE = 2 ** 21;

const MFD_CLOEXEC = 1;
const MFD_HUGETLB = 4;
const MFD_HUGE_2MB = 21 * 2 ** 26;
const MAP_SHARED = 1;
const MAP_POPULATE = 0x8000;
const FREE_PAGES = '/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages';
const TOTAL_PAGES = '/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages';

/** Maps a file, shared, its pages present. Returns the address. */
export function mapShared(fd: number, bytes: number): number {
  const got = libc.mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
  return check(got, `mmap(fd ${fd}, ${bytes} bytes)`);
}

export function unmapShared(address: number, bytes: number): void {
  check(libc.munmap(address, bytes), `munmap(${bytes} bytes)`);
}

/**
 * A file of one huge page, which the kernel does not move; reserves one more if none is free (that needs root).
 * @throws SysError ENOMEM
 */
export function hugePageFile(name: string): number {
  if (Number(readFileSync(FREE_PAGES, 'utf8')) === 0) {
    const total = Number(readFileSync(TOTAL_PAGES, 'utf8'));
    try {
      writeFileSync(TOTAL_PAGES, String(total + 1));
    } catch {
      // Not allowed to: what follows fails with ENOMEM.
    }
  }
  const fd = check(libc.memfd_create(name, MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB), `memfd_create("${name}", huge)`);
  try {
    check(libc.ftruncate(fd, HUGE_PAGE), `ftruncate("${name}", ${HUGE_PAGE})`);
    unmapShared(mapShared(fd, HUGE_PAGE), HUGE_PAGE);
  } catch {
    libc.close(fd);
    throw new SysError('a huge page for the device: none is free (as root, raise vm.nr_hugepages)', errno.ENOMEM);
  }
  return fd;
}

/** The physical address of a mapped page of this process (/proc/self/pagemap). @throws SysError EPERM without root */
export function physicalAddress(address: number): number {
  const entry = new DataView(new ArrayBuffer(8));
  const fd = openSync('/proc/self/pagemap', 'r');
  try {
    readSync(fd, entry, 0, 8, Math.floor(address / PAGE_SIZE) * 8);
  } finally {
    closeSync(fd);
  }
  // Bits 0 to 54: page frame number, 0 for those who may not know it.
  const frame = entry.getUint32(0, true) + (entry.getUint32(4, true) & 0x7fffff) * 2 ** 32;
  if (frame === 0) throw new SysError('the physical address of a page: only root may know it', errno.EPERM);
  return frame * PAGE_SIZE + (address % PAGE_SIZE);
}
