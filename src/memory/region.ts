/**
 * Regions: one memory file laid out as netmap's allocator lays out its own: a pool of netmap_if, a pool of rings, a pool
 * of buffers (sys/dev/netmap/netmap_mem2.c). The memdev registers report the pools' offsets, counts and sizes, and a
 * guest computes every address from them. A region belongs to one trust domain.
 */
import { NETMAP_FIRST_BUF, netmap_if, netmap_ring, netmap_slot } from '../abi/index.ts';
import { closeFd, HUGE_PAGE, hugeMemfd, memfd, PAGE_SIZE, SysError, XDP_PACKET_HEADROOM } from '../os/index.ts';
import type { ArenaSpace } from './arena.ts';
import { pageRound } from './arena.ts';

/** What a region must hold. */
export interface RegionConfig {
  /** Name for /proc/PID/maps and messages. */
  readonly name: string;
  /** netmap_if objects: one per registration. */
  readonly interfaces: number;
  /** Rings in all, host rings not counted (they have none here). */
  readonly rings: number;
  /** Slots of the longest ring. */
  readonly slots: number;
  /** Buffers usable in slots and extra lists (the two reserved ones come on top). */
  readonly buffers: number;
  /** Bytes of a buffer, a multiple of 64, at most 65,472. */
  readonly bufSize: number;
  /** Whether it is to lie on huge pages, if there are enough (docs/memory.md). Default: not. */
  readonly hugePages?: boolean;
}

/** One pool as the memdev's registers give it. */
export interface Pool {
  /** Byte offset of object 0 in the region. */
  readonly ofs: number;
  readonly objnum: number;
  readonly objsz: number;
}

export interface RegionLayout {
  readonly ifPool: Pool;
  readonly ringPool: Pool;
  readonly bufPool: Pool;
  /** Bytes of a page that it lies on. */
  readonly pageBytes: number;
  /** Bytes used, a multiple of the page size. */
  readonly size: number;
  /** Bytes of the PCI BAR that shows it, a power of two. */
  readonly barSize: number;
  /**
   * Bytes of the region's file. As many as the BAR has, so that a guest finds memory (which costs nothing until touched)
   * wherever it touches it; huge pages cost something at once, so that there are no more than are used.
   */
  readonly fileSize: number;
}

/** Bytes of a ring with its slots, aligned as netmap_ring is. */
const ringBytes = (slots: number): number => Math.ceil((netmap_ring.size + slots * netmap_slot.size) / 128) * 128;

/**
 * Lays out a region.
 *
 * A netmap_if object is made as large as a ring: ring_ofs of host rings has to be 0, so a guest that opens a host ring
 * writes a ring over its netmap_if (docs/abi.md 3.1), and that must not reach anything else.
 */
export function regionLayout(config: RegionConfig): RegionLayout {
  const { bufSize, slots, rings, interfaces, buffers } = config;
  if (bufSize % 64 !== 0 || bufSize < 64 || bufSize > 65472) {
    throw new RangeError(`buffer size ${bufSize}: must be a multiple of 64 from 64 to 65472`);
  }
  const objsz = ringBytes(slots);
  if (objsz < netmap_if.size + 8 * (rings + 2)) throw new RangeError(`${slots} slots are too few for ${rings} rings`);
  const ifPool = { ofs: 0, objnum: interfaces, objsz };
  const ringPool = { ofs: pageRound(interfaces * objsz), objnum: rings, objsz };
  const bufPool = {
    ofs: ringPool.ofs + pageRound(rings * objsz),
    objnum: buffers + NETMAP_FIRST_BUF,
    objsz: bufSize,
  };
  const pageBytes = config.hugePages === true ? HUGE_PAGE : PAGE_SIZE;
  if (pageBytes === HUGE_PAGE) for (let i = 0; i < bufPool.objnum; i++) if (isTorn(bufPool, i)) bufPool.objnum++;
  const size = Math.ceil((bufPool.ofs + bufPool.objnum * bufSize) / pageBytes) * pageBytes;
  const barSize = 2 ** Math.ceil(Math.log2(size));
  const fileSize = pageBytes === HUGE_PAGE ? size : barSize;
  return { ifPool, ringPool, bufPool, pageBytes, size, barSize, fileSize };
}

/**
 * Whether a buffer, with the headroom that XDP has in front of it, goes over the end of a huge page: a card may find its two
 * parts far from each other, so the kernel refuses such a one (docs/nics.md).
 */
function isTorn({ ofs, objsz }: Pool, i: number): boolean {
  const page = (at: number): number => Math.floor(at / HUGE_PAGE);
  return page(ofs + i * objsz - XDP_PACKET_HEADROOM) !== page(ofs + (i + 1) * objsz - 1);
}

/** A region has too few objects of a kind left. */
export class RegionFullError extends Error {
  /** @param what key of the region's configuration: interfaces, rings, slots, buffers */
  constructor(region: string, what: string, wanted: number, free: number) {
    const has = what === 'slots' ? `rings of at most ${free} slots` : `${free} free ${what}`;
    super(
      `region "${region}" has ${has}, ${wanted} wanted: raise ${what} of the region in the configuration (regions), ` +
        'use fewer or smaller rings, or close ports that use it',
    );
    this.name = 'RegionFullError';
  }
}

/** What becomes of an object of a pool. */
const FREE = 0;
const OUT = 1;
const KEPT = 2;

/** Hands out object numbers of one pool, lowest first. */
class ObjectPool {
  readonly #region: string;
  readonly #what: string;
  /** FREE, OUT or KEPT: each object's. */
  readonly #state: Uint8Array;
  #free = 0;
  /** No object below is free. */
  #lowest = 0;

  /** @param kept whether an object is never handed out */
  constructor(region: string, what: string, first: number, end: number, kept: (i: number) => boolean = () => false) {
    this.#region = region;
    this.#what = what;
    this.#state = Uint8Array.from({ length: end }, (_, i) => (i < first || kept(i) ? KEPT : FREE));
    for (const state of this.#state) if (state === FREE) this.#free++;
  }

  take(n: number): number[] {
    if (n > this.#free) throw new RegionFullError(this.#region, this.#what, n, this.#free);
    const objects: number[] = [];
    while (objects.length < n) {
      const i = this.#state.indexOf(FREE, this.#lowest);
      this.#state[i] = OUT;
      objects.push(i);
      this.#lowest = i + 1;
    }
    this.#free -= n;
    return objects;
  }

  /** @throws RangeError if one is not out: given back twice it would have two users later. Then none is taken back. */
  give(objects: readonly number[]): void {
    for (const [at, i] of objects.entries()) {
      if (this.#state[i] !== OUT) {
        for (const taken of objects.slice(0, at)) this.#state[taken] = OUT;
        throw new RangeError(`region "${this.#region}": ${this.#what} ${i} is not out`);
      }
      this.#state[i] = FREE;
    }
    for (const i of objects) this.#lowest = Math.min(this.#lowest, i);
    this.#free += objects.length;
  }

  get free(): number {
    return this.#free;
  }
}

/**
 * A region: its file, where it is mapped, and which of its objects are handed out. Lives on the control thread.
 * The file is sealed against shrinking and growing before anyone gets it (R1).
 */
export class Region {
  readonly name: string;
  readonly memId: number;
  readonly fd: number;
  readonly layout: RegionLayout;
  /** Why it does not lie on huge pages though it was to. */
  readonly because: string | undefined;
  readonly #interfaces: ObjectPool;
  readonly #rings: ObjectPool;
  readonly #buffers: ObjectPool;
  readonly #mappings = new Map<ArenaSpace, number>();

  /** @param memId identifier of the region, 1 to 65535 (HOSTMEMID, MEMID) */
  constructor(config: RegionConfig, memId: number) {
    this.name = config.name;
    this.memId = memId;
    let layout = regionLayout(config);
    let fd: number | undefined;
    if (layout.pageBytes === HUGE_PAGE) {
      try {
        fd = hugeMemfd(`ptnet:${config.name}`, layout.fileSize);
      } catch (e) {
        if (!(e instanceof SysError)) throw e;
        this.because = e.message;
        layout = regionLayout({ ...config, hugePages: false });
      }
    }
    this.layout = layout;
    this.#interfaces = new ObjectPool(config.name, 'interfaces', 0, config.interfaces);
    this.#rings = new ObjectPool(config.name, 'rings', 0, config.rings);
    const torn = layout.pageBytes === HUGE_PAGE ? (i: number): boolean => isTorn(layout.bufPool, i) : undefined;
    this.#buffers = new ObjectPool(config.name, 'buffers', NETMAP_FIRST_BUF, layout.bufPool.objnum, torn);
    this.fd = fd ?? memfd(`ptnet:${config.name}`, layout.fileSize);
  }

  /** Maps the region into an arena, once; returns its offset there. */
  mapInto(space: ArenaSpace): number {
    const known = this.#mappings.get(space);
    if (known !== undefined) return known;
    const ofs = space.alloc(this.layout.size, this.layout.pageBytes);
    try {
      space.arena.mapFile(ofs, this.layout.size, this.fd, 0);
    } catch (e) {
      space.free(ofs);
      throw e;
    }
    this.#mappings.set(space, ofs);
    return ofs;
  }

  /** Takes a netmap_if object: its byte offset in the region. */
  takeInterface(): number {
    return this.layout.ifPool.ofs + this.#interfaces.take(1)[0]! * this.layout.ifPool.objsz;
  }

  /** Takes n rings of at most `slots` slots: their byte offsets in the region. */
  takeRings(n: number, slots = 0): number[] {
    const { ofs, objsz } = this.layout.ringPool;
    if (ringBytes(slots) > objsz) throw new RegionFullError(this.name, 'slots', slots, this.maxSlots);
    return this.#rings.take(n).map((i) => ofs + i * objsz);
  }

  /** Takes n buffers: their indexes. */
  takeBuffers(n: number): number[] {
    return this.#buffers.take(n);
  }

  giveInterface(ofs: number): void {
    this.#interfaces.give([(ofs - this.layout.ifPool.ofs) / this.layout.ifPool.objsz]);
  }

  giveRings(offsets: readonly number[]): void {
    const { ofs, objsz } = this.layout.ringPool;
    this.#rings.give(offsets.map((o) => (o - ofs) / objsz));
  }

  giveBuffers(indexes: readonly number[]): void {
    this.#buffers.give(indexes);
  }

  /** Slots of the longest ring. */
  get maxSlots(): number {
    return Math.floor((this.layout.ringPool.objsz - netmap_ring.size) / netmap_slot.size);
  }

  /** Objects not handed out. */
  get free(): { interfaces: number; rings: number; buffers: number } {
    return { interfaces: this.#interfaces.free, rings: this.#rings.free, buffers: this.#buffers.free };
  }

  /** Unmaps the region everywhere here and closes its file. Its pages go back when no guest maps it any more. */
  close(): void {
    for (const [space, ofs] of this.#mappings) space.free(ofs);
    this.#mappings.clear();
    closeFd(this.fd);
  }
}
