/** Huge pages for a test: those that are free, or, where it is root, more of them for as long as it runs. */
import { openSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { closeFd, hugePages, tryLock } from '../../../src/os/index.ts';

const TOTAL = '/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages';
/** Pages that other tests of this machine may take meanwhile. */
const SPARE = 2;
const MAX = 64;

export interface HugePages {
  /** Why there are not so many; false: there are (as `skip` of a test). */
  readonly skip: string | false;
  /** Puts the number of pages back. Everybody must have closed what lies on them. */
  giveBack(): void;
}

/** One test at a time has them. @param pages at most 62 */
export async function borrowHugePages(pages: number): Promise<HugePages> {
  const wanted = Math.min(pages + SPARE, MAX);
  const lock = openSync(join(tmpdir(), 'ptnet-huge-pages.lock'), 'a');
  while (!tryLock(lock)) await setTimeout(50);
  const { total, free } = hugePages();
  let raised = false;
  if (free < wanted && process.getuid!() === 0) {
    try {
      writeFileSync(TOTAL, String(total + wanted - free));
      raised = true;
    } catch {
      // A kernel without huge pages, or a sysfs that cannot be written: there are none, then.
    }
  }
  const giveBack = (): void => {
    if (raised) writeFileSync(TOTAL, String(total));
    closeFd(lock);
  };
  const now = hugePages().free;
  if (now >= wanted) return { skip: false, giveBack };
  giveBack();
  const skip = `needs ${wanted} free huge pages (vm.nr_hugepages); there are ${now}`;
  return { skip, giveBack: () => undefined };
}
