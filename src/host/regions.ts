/**
 * The regions of the daemon and who may use them (docs/memory.md). A region lives as long as a port lies in it or a memdev
 * shows it. Control thread.
 */
import type { RegionConfig } from '../memory/index.ts';
import { Region, regionLayout } from '../memory/index.ts';
import { errno, SysError } from '../os/index.ts';

export type PortOwner = { readonly vm: string } | { readonly pid: number; readonly uid: number };

/** Sizes of a region, and what it is to lie on. */
export type RegionSizes = Omit<RegionConfig, 'name'>;

/** Bytes that a region may become, whether it gets huge pages or not. */
export function regionBytes(sizes: RegionSizes): number {
  const on = (hugePages: boolean): number => regionLayout({ name: '', ...sizes, hugePages }).fileSize;
  return Math.max(on(false), on(sizes.hugePages === true));
}

export interface SharedRegion {
  readonly region: Region;
  /** Who made it. */
  readonly owner: PortOwner;
  /** The name it was asked for by (@ID). */
  readonly id: string | undefined;
  /** Ports and memdevs that use it. */
  users: number;
}

export class Regions {
  readonly #byMemId = new Map<number, SharedRegion>();
  readonly #sizesOf: (id: string) => RegionSizes;
  readonly #log: (level: 'warn', message: string) => void;

  /** @param sizesOf sizes of the region of an @ID @param log what is not as it was to be */
  constructor(sizesOf: (id: string) => RegionSizes, log: (level: 'warn', message: string) => void) {
    this.#sizesOf = sizesOf;
    this.#log = log;
  }

  get all(): Iterable<SharedRegion> {
    return this.#byMemId.values();
  }

  /** Makes a region. `use` it, or it stays for ever. */
  create(name: string, sizes: RegionSizes, owner: PortOwner, id?: string): SharedRegion {
    const hugePages = sizes.hugePages === true && mayHaveHugePages(owner);
    const region = new Region({ name, ...sizes, hugePages }, this.#freeMemId(id));
    if (region.because !== undefined) {
      this.#log('warn', `region ${name} lies on ordinary pages, not on huge ones: ${region.because}`);
    }
    const shared: SharedRegion = { region, owner, id, users: 0 };
    this.#byMemId.set(region.memId, shared);
    return shared;
  }

  /** The region of an @ID, made if it is not there. */
  named(id: string, owner: PortOwner): SharedRegion {
    return [...this.#byMemId.values()].find((r) => r.id === id) ?? this.create(`@${id}`, this.#sizesOf(id), owner, id);
  }

  use(shared: SharedRegion): void {
    shared.users++;
  }

  /** Ends a use; after the last one the region is closed. */
  leave(shared: SharedRegion): void {
    if (--shared.users > 0) return;
    this.#close(shared);
  }

  /** Closes regions that were made for something that then failed. */
  closeUnused(): void {
    for (const shared of this.#byMemId.values()) if (shared.users === 0) this.#close(shared);
  }

  #close(shared: SharedRegion): void {
    this.#byMemId.delete(shared.region.memId);
    shared.region.close();
  }

  /** The number itself for "@5" if it is free, else any. */
  #freeMemId(id: string | undefined): number {
    const wanted = Number(id);
    if (Number.isInteger(wanted) && wanted >= 1 && wanted < 65536 && !this.#byMemId.has(wanted)) return wanted;
    for (let n = 65535; n > 0; n--) if (!this.#byMemId.has(n)) return n;
    throw new SysError('open: no free memory identifier', errno.ENOSPC);
  }
}

/**
 * Whether somebody may be given memory on huge pages: a VM, the daemon's own user, root. Whoever has such memory can take its
 * pages away (fallocate; seals do not forbid it), which can end whoever else has it mapped, the daemon too (docs/security.md).
 */
export function mayHaveHugePages(owner: PortOwner): boolean {
  return 'vm' in owner || owner.uid === 0 || owner.uid === process.getuid!();
}

/**
 * Whether a port in a region may be given to somebody without further permission: to its own VM, to the user who made it.
 * Whoever is, can read and write everything in the region.
 */
export function isOwn({ owner: mine }: SharedRegion, owner: PortOwner): boolean {
  return isOwner(mine, owner);
}

/** Whether two owners are the same VM, or processes of the same user. */
export function isOwner(mine: PortOwner, owner: PortOwner): boolean {
  if ('vm' in mine || 'vm' in owner) return 'vm' in mine && 'vm' in owner && mine.vm === owner.vm;
  return mine.uid === owner.uid;
}
