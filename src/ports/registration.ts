/**
 * Registrations: what a device serves (netmap's NIOCREGIF): a netmap_if, rings and buffers in a region, and the host's
 * private krings in the arena of the datapath thread. Made and released by the control thread, while no other thread
 * knows of them; a plain record (`Registration`) then tells the other threads where everything lies.
 */
import { kring, NR_DIR_RX, NR_DIR_TX, netmap_if, port } from '../abi/index.ts';
import type { ArenaSpace, Region, RingRecord } from '../memory/index.ts';
import { pageRound, writeNetmapIf, writeRing } from '../memory/index.ts';

/** How a port's rings are to be. Limits are VALE's (netmap clamps; we say so). */
export interface PortConfig {
  readonly txRings: number;
  readonly rxRings: number;
  readonly txSlots: number;
  readonly rxSlots: number;
}

/** One ring of a registration. */
export interface RegisteredRing extends RingRecord {
  /** Arena address of the private kring. */
  readonly kring: number;
  /** Buffers the ring was given: the private record from which it is rebuilt (R19). */
  readonly buffers: readonly number[];
}

/** Plain data, sent to other threads as it is. Addresses are arena offsets, `…Ofs` byte offsets in the region. */
export interface Registration {
  /** Name of the port, e.g. "vale0:a". */
  readonly name: string;
  /** 6 bytes. */
  readonly mac: readonly number[];
  /** Address of the domain and of the port in the private area. */
  readonly domain: number;
  readonly port: number;
  readonly memId: number;
  readonly regionAddr: number;
  readonly regionBytes: number;
  readonly bufPoolOfs: number;
  readonly bufSize: number;
  readonly numBufs: number;
  readonly nifpOfs: number;
  readonly nifpBytes: number;
  readonly txRings: readonly RegisteredRing[];
  readonly rxRings: readonly RegisteredRing[];
  /** Whether the port's frames may carry a VirtIO network header. */
  readonly vnetHdr: boolean;
  /** Two windows of the arena in which the client's CSB pages are mapped (atok, ktoa). */
  readonly csbAddr: readonly [number, number];
  readonly csbWindow: number;
}

/** Rings and buffers that a port of this shape takes from its region. */
export function portNeeds(config: PortConfig): { rings: number; slots: number; buffers: number } {
  return {
    rings: config.txRings + config.rxRings,
    slots: Math.max(config.txSlots, config.rxSlots),
    buffers: config.txRings * config.txSlots + config.rxRings * config.rxSlots,
  };
}

/** All rings of a registration, all tx, then all rx: the order of CSB entries, KICK registers and MSI-X vectors. */
export const allRings = (r: Registration): readonly RegisteredRing[] => [...r.txRings, ...r.rxRings];

/**
 * Makes a registration in a region: takes its objects, writes them, fills port and krings.
 * @param csbWindow bytes of each CSB window: a page, or 2 MiB for clients whose memory is on huge pages
 * @throws RegionFullError, ArenaFullError; nothing is kept then
 */
export function createRegistration(
  space: ArenaSpace,
  region: Region,
  config: PortConfig,
  identity: { name: string; mac: readonly number[]; domain: number; vnetHdr: boolean },
  csbWindow: number,
): Registration {
  const { layout } = region;
  const needs = portNeeds(config);
  const undo: (() => void)[] = [];
  try {
    const regionAddr = region.mapInto(space);
    const nifpOfs = region.takeInterface();
    undo.push(() => region.giveInterface(nifpOfs));
    const ringOfs = region.takeRings(needs.rings);
    undo.push(() => region.giveRings(ringOfs));
    const buffers = region.takeBuffers(needs.buffers);
    undo.push(() => region.giveBuffers(buffers));
    const privateBytes = pageRound(port.size + needs.rings * kring.size);
    const portAddr = space.alloc(privateBytes);
    undo.push(() => space.free(portAddr));
    space.arena.mapAnonymous(portAddr, privateBytes);
    const csbAddr = [space.alloc(csbWindow, csbWindow), 0] as [number, number];
    undo.push(() => space.free(csbAddr[0]));
    csbAddr[1] = space.alloc(csbWindow, csbWindow);
    undo.push(() => space.free(csbAddr[1]));

    const rings: RegisteredRing[] = [];
    let nextBuffer = 0;
    for (let i = 0; i < needs.rings; i++) {
      const tx = i < config.txRings;
      const numSlots = tx ? config.txSlots : config.rxSlots;
      rings.push({
        ringOfs: ringOfs[i]!,
        dir: tx ? NR_DIR_TX : NR_DIR_RX,
        ringId: tx ? i : i - config.txRings,
        numSlots,
        kring: portAddr + port.size + i * kring.size,
        buffers: buffers.slice(nextBuffer, nextBuffer + numSlots),
      });
      nextBuffer += numSlots;
    }
    const registration: Registration = {
      ...identity,
      port: portAddr,
      memId: region.memId,
      regionAddr,
      regionBytes: layout.size,
      bufPoolOfs: layout.bufPool.ofs,
      bufSize: layout.bufPool.objsz,
      numBufs: layout.bufPool.objnum,
      nifpOfs,
      nifpBytes: layout.ifPool.objsz,
      txRings: rings.slice(0, config.txRings),
      rxRings: rings.slice(config.txRings),
      csbAddr,
      csbWindow,
    };
    writePrivate(space, registration);
    writeShared(space, registration);
    return registration;
  } catch (e) {
    for (const action of undo.toReversed()) action();
    throw e;
  }
}

/** Gives everything of a registration back. No other thread may use it any more. */
export function releaseRegistration(space: ArenaSpace, region: Region, r: Registration): void {
  for (const window of r.csbAddr) space.free(window);
  space.free(r.port);
  const rings = allRings(r);
  region.giveBuffers(rings.flatMap((ring) => ring.buffers));
  region.giveRings(rings.map((ring) => ring.ringOfs));
  region.giveInterface(r.nifpOfs);
}

function writePrivate(space: ArenaSpace, r: Registration): void {
  const { m } = space.arena;
  port.set.num_tx_rings(m, r.port, r.txRings.length);
  port.set.num_rx_rings(m, r.port, r.rxRings.length);
  r.txRings.forEach((ring, i) => (m.u32[(r.port + port.ofs.tx_rings + 4 * i) >>> 2] = ring.kring));
  r.rxRings.forEach((ring, i) => (m.u32[(r.port + port.ofs.rx_rings + 4 * i) >>> 2] = ring.kring));
  for (const ring of allRings(r)) {
    const k = ring.kring;
    kring.set.ring(m, k, r.regionAddr + ring.ringOfs);
    kring.set.num_slots(m, k, ring.numSlots);
    kring.set.buf_base(m, k, r.regionAddr + r.bufPoolOfs);
    kring.set.buf_size(m, k, r.bufSize);
    kring.set.num_bufs(m, k, r.numBufs);
    kring.set.port(m, k, r.port);
    kring.set.dir(m, k, ring.dir);
    kring.set.ring_id(m, k, ring.ringId);
    if (ring.dir === NR_DIR_TX) kring.set.hwtail(m, k, ring.numSlots - 1);
  }
}

function writeShared(space: ArenaSpace, r: Registration): void {
  const { m } = space.arena;
  writeInterface(m, r);
  for (const ring of allRings(r)) writeRing(m, r.regionAddr, r.bufPoolOfs, r.bufSize, ring, ring.buffers);
}

/** Writes the registration's netmap_if afresh: at CREATE, DELETE and RESET (shared/abi.md 3.1). */
export function writeInterface(m: Parameters<typeof writeNetmapIf>[0], r: Registration): void {
  writeNetmapIf(m, r.regionAddr, r.nifpBytes, {
    name: r.name,
    nifpOfs: r.nifpOfs,
    txRings: r.txRings.map((ring) => ring.ringOfs),
    rxRings: r.rxRings.map((ring) => ring.ringOfs),
  });
}

/** Most rings of a port: ring_ofs must end before the place where a guest's host ring would write slots (abi.md 3.1). */
export const MAX_RINGS_PER_PORT = Math.floor((256 - netmap_if.size) / 8) - 2;
