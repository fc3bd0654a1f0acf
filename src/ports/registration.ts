/**
 * Registrations: what a device serves (netmap's NIOCREGIF): a netmap_if and some of a port's rings. Several can be on one
 * port, on disjoint rings. Made and released by the control thread; a plain record (`Registration`) tells the other threads
 * where everything lies.
 */
import { NR_REG_ALL_NIC, NR_REG_ONE_NIC, NR_RX_RINGS_ONLY, NR_TX_RINGS_ONLY, netmap_if } from '../abi/index.ts';
import type { ArenaSpace, Region } from '../memory/index.ts';
import { pageRound, writeBufferList, writeNetmapIf } from '../memory/index.ts';
import type { Selection } from './names.ts';
import { ledgerOf, type PortRecord, type PortRing } from './port.ts';

/** Rings of a port, and extra buffers: what somebody has of a region. */
export interface Holdings extends PortRecord {
  /** The extra buffers: their number, and where their ledger is. Absent: none. */
  readonly extra?: { readonly ledger: number; readonly numSlots: number };
}

/** Plain data, sent to other threads as it is. Addresses are arena offsets, `…Ofs` byte offsets in the region. */
export interface Registration extends Holdings {
  /** 6 bytes. */
  readonly mac: readonly number[];
  readonly nifpOfs: number;
  readonly nifpBytes: number;
  /** Whether the port's frames may carry a VirtIO network header. */
  readonly vnetHdr: boolean;
  /** Two windows of the arena in which the client's CSB pages are mapped (atok, ktoa). */
  readonly csbAddr: readonly [number, number];
  readonly csbWindow: number;
}

/** The rings of a selection. Their numbers in the device begin at 0; `ringId` is the port's. */
export interface SelectedRings {
  readonly txRings: readonly PortRing[];
  readonly rxRings: readonly PortRing[];
}

/** Why rings cannot be selected. */
export class SelectionError extends Error {
  constructor(message: string) {
    super(message);
    this.name = 'SelectionError';
  }
}

/**
 * The rings that a selection names.
 * @throws SelectionError: no such ring, or host rings, which these ports do not have
 */
export function selectRings(port: PortRecord, { mode, ringId, flags }: Selection): SelectedRings {
  if (mode !== NR_REG_ALL_NIC && mode !== NR_REG_ONE_NIC) {
    throw new SelectionError('host rings ("^", "*") are those of a NIC; this port has none');
  }
  const one = mode === NR_REG_ONE_NIC;
  const of = (rings: readonly PortRing[]): readonly PortRing[] => (one ? rings.slice(ringId, ringId + 1) : rings);
  const txRings = (flags & NR_RX_RINGS_ONLY) !== 0 ? [] : of(port.txRings);
  const rxRings = (flags & NR_TX_RINGS_ONLY) !== 0 ? [] : of(port.rxRings);
  if ((flags & NR_RX_RINGS_ONLY) !== 0 && (flags & NR_TX_RINGS_ONLY) !== 0) {
    throw new SelectionError('/R and /T together leave no ring');
  }
  if (txRings.length + rxRings.length === 0) {
    throw new SelectionError(`there is no ring ${ringId}: ${port.txRings.length} tx, ${port.rxRings.length} rx`);
  }
  return { txRings, rxRings };
}

/** All rings of a registration, all tx, then all rx: the order of CSB entries, KICK registers and MSI-X vectors. */
export const allRings = (r: SelectedRings): readonly PortRing[] => [...r.txRings, ...r.rxRings];

/**
 * Makes a registration of some rings of a port.
 * @param csbWindow bytes of each CSB window: a page, or 2 MiB for clients whose memory is on huge pages
 * @param extraBufs extra buffers that are wanted; as many are taken as the region still has
 * @throws RegionFullError, ArenaFullError; nothing is kept then
 */
export function createRegistration(
  space: ArenaSpace,
  region: Region,
  port: PortRecord,
  rings: SelectedRings,
  identity: { readonly mac: readonly number[]; readonly vnetHdr: boolean },
  csbWindow: number,
  extraBufs = 0,
): Registration {
  const undo: (() => void)[] = [];
  try {
    const nifpOfs = region.takeInterface();
    undo.push(() => region.giveInterface(nifpOfs));
    const csbAddr = [space.alloc(csbWindow, csbWindow), 0] as [number, number];
    undo.push(() => space.free(csbAddr[0]));
    csbAddr[1] = space.alloc(csbWindow, csbWindow);
    undo.push(() => space.free(csbAddr[1]));
    const nifpBytes = region.layout.ifPool.objsz;
    const numSlots = Math.min(extraBufs, region.free.buffers);
    const extra = numSlots === 0 ? undefined : { ledger: space.alloc(4 * numSlots), numSlots };
    if (extra !== undefined) {
      undo.push(() => space.free(extra.ledger));
      space.arena.mapAnonymous(extra.ledger, pageRound(4 * numSlots));
      space.arena.m.u32.set(region.takeBuffers(numSlots), extra.ledger >>> 2);
    }
    const { txRings, rxRings } = rings;
    const registration = {
      ...port,
      ...identity,
      nifpOfs,
      nifpBytes,
      txRings,
      rxRings,
      csbAddr,
      csbWindow,
      ...(extra && { extra }),
    };
    writeExtraBufs(space.arena.m, registration);
    writeInterface(space.arena.m, registration);
    return registration;
  } catch (e) {
    for (const action of undo.toReversed()) action();
    throw e;
  }
}

/** Gives back what a registration has of its own. No other thread may use it any more. */
export function releaseRegistration(space: ArenaSpace, region: Region, r: Registration): void {
  for (const window of r.csbAddr) space.free(window);
  region.giveInterface(r.nifpOfs);
  if (r.extra === undefined) return;
  region.giveBuffers(ledgerOf(space.arena.m, r.extra));
  space.free(r.extra.ledger);
}

/** Makes the list of somebody's extra buffers from their ledger. `writeInterface` says where it begins. */
export function writeExtraBufs(m: Parameters<typeof writeNetmapIf>[0], r: Holdings): void {
  if (r.extra !== undefined) writeBufferList(m, r.regionAddr + r.bufPoolOfs, r.bufSize, ledgerOf(m, r.extra));
}

/** Writes the registration's netmap_if afresh: at CREATE, DELETE and RESET (docs/abi.md 3.1). */
export function writeInterface(m: Parameters<typeof writeNetmapIf>[0], r: Registration): void {
  writeNetmapIf(m, r.regionAddr, r.nifpBytes, {
    name: r.name,
    nifpOfs: r.nifpOfs,
    txRings: r.txRings.map((ring) => ring.ringOfs),
    rxRings: r.rxRings.map((ring) => ring.ringOfs),
    bufsHead: r.extra === undefined ? 0 : m.u32[r.extra.ledger >>> 2]!,
  });
}

/** Most rings of a port: ring_ofs must end before the place where a guest's host ring would write slots (abi.md 3.1). */
export const MAX_RINGS_PER_PORT = Math.floor((256 - netmap_if.size) / 8) - 2;
