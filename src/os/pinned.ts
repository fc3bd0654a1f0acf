/** Memory that devices reach: mappings with an address to tell, and huge pages with a physical one. */
import { closeSync, openSync, readSync, writeFileSync } from 'node:fs';
import { errno, SysError } from './errno.ts';
import { check, libc } from './libc.ts';
import { HUGE_PAGE, hugeMemfd, hugePages, PAGE_SIZE, PROT_READ, PROT_WRITE } from './memory.ts';

const MAP_SHARED = 1;
const MAP_POPULATE = 0x8000;
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
  const { total, free } = hugePages();
  if (free === 0) {
    try {
      writeFileSync(TOTAL_PAGES, String(total + 1));
    } catch {
      // Not allowed to: what follows fails with ENOMEM.
    }
  }
  return hugeMemfd(name, HUGE_PAGE);
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
