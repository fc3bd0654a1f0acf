/**
 * Ports: the rings and buffers of a port in a region, and the host's private half of them (port, krings, ledgers) in the
 * arena of its domain's datapath thread. Made and released by the control thread, while no other thread knows of them.
 * Who uses which of the rings is a registration's business (registration.ts).
 */
import type { Views } from '../abi/index.ts';
import { kring, NR_DIR_RX, NR_DIR_TX, port as portStruct } from '../abi/index.ts';
import type { ArenaSpace, Region, RingRecord } from '../memory/index.ts';
import { pageRound, writeRing } from '../memory/index.ts';

/** How a port's rings are to be. Limits are VALE's (netmap clamps; we say so). */
export interface PortConfig {
  readonly txRings: number;
  readonly rxRings: number;
  readonly txSlots: number;
  readonly rxSlots: number;
}

/** One ring of a port. Addresses are arena offsets. */
export interface PortRing extends RingRecord {
  /** Address of the private kring. */
  readonly kring: number;
  /**
   * Address of the ring's ledger, u32[numSlots]: the buffers that were handed out for it (docs/memory.md). The two rings
   * of a pair have one ledger.
   */
  readonly ledger: number;
  /** Pipes: the kring at the other end, and what was last exchanged at each slot, u64[numSlots]. */
  readonly pair?: { readonly peer: number; readonly shadow: number };
}

/** Plain data. `…Ofs` are byte offsets in the region. */
export interface PortRecord {
  /** e.g. "vale0:a" */
  readonly name: string;
  /** Address of the port struct in the private area. */
  readonly port: number;
  readonly memId: number;
  readonly regionAddr: number;
  readonly regionBytes: number;
  readonly bufPoolOfs: number;
  readonly bufSize: number;
  readonly numBufs: number;
  readonly txRings: readonly PortRing[];
  readonly rxRings: readonly PortRing[];
}

/** What `createPort` and `createPipe` made, to be released as a whole. */
export interface PortMemory {
  /** One port, or the two ends of a pipe. */
  readonly ports: readonly PortRecord[];
  /** Address of the private area. */
  readonly privateAddr: number;
}

/** Rings and buffers that a port of this shape takes from its region. */
export function portNeeds(config: PortConfig): { rings: number; slots: number; buffers: number } {
  return {
    rings: config.txRings + config.rxRings,
    slots: Math.max(config.txSlots, config.rxSlots),
    buffers: config.txRings * config.txSlots + config.rxRings * config.rxSlots,
  };
}

/** What a pipe takes, both ends of it: twice the rings, no more buffers. */
export function pipeNeeds(config: PortConfig): { rings: number; slots: number; buffers: number } {
  const needs = portNeeds(config);
  return { ...needs, rings: 2 * needs.rings };
}

/** The other end's rings. */
export function swapped(config: PortConfig): PortConfig {
  return { txRings: config.rxRings, txSlots: config.rxSlots, rxRings: config.txRings, rxSlots: config.txSlots };
}

/** The buffers of a ledger: a ring's, or that of extra buffers. */
export function ledgerOf(m: Views, ring: { readonly ledger: number; readonly numSlots: number }): number[] {
  return [...m.u32.subarray(ring.ledger >>> 2, (ring.ledger >>> 2) + ring.numSlots)];
}

/** Hands out addresses of one allocation, each aligned to 64 bytes. */
class Area {
  #next = 0;
  take(bytes: number): number {
    const at = this.#next;
    this.#next += Math.ceil(bytes / 64) * 64;
    return at;
  }
  get bytes(): number {
    return this.#next;
  }
}

/** Where a ring's private parts are, relative to the private area. */
interface Place {
  readonly kring: number;
  readonly ledger: number;
  readonly pair?: { readonly peer: number; readonly shadow: number };
}

/**
 * Makes a port in a region: takes its objects, writes them, fills port and krings.
 * @throws RegionFullError, ArenaFullError; nothing is kept then
 */
export function createPort(space: ArenaSpace, region: Region, name: string, config: PortConfig): PortMemory {
  const area = new Area();
  const at = area.take(portStruct.size);
  const places = shapes(config).map(({ numSlots }) => ({
    kring: area.take(kring.size),
    ledger: area.take(4 * numSlots),
  }));
  return allocate(space, region, area.bytes, [{ name, config, at, places }]);
}

/**
 * Makes both ends of a pipe. @param names of one end and the other @param config the rings as the first end sees them
 * @throws RegionFullError, ArenaFullError; nothing is kept then
 */
export function createPipe(
  space: ArenaSpace,
  region: Region,
  names: readonly [string, string],
  config: PortConfig,
): PortMemory {
  const area = new Area();
  const at = [area.take(portStruct.size), area.take(portStruct.size)] as const;
  const pairs = shapes(config).map(({ numSlots }) => {
    const [first, second] = [area.take(kring.size), area.take(kring.size)];
    const [ledger, shadow] = [area.take(4 * numSlots), area.take(8 * numSlots)];
    return {
      first: { kring: first, ledger, pair: { peer: second, shadow } },
      second: { kring: second, ledger, pair: { peer: first, shadow } },
    };
  });
  // The first's tx rings are the second's rx rings: the second's begin with what the first has last.
  const turned = [...pairs.slice(config.txRings), ...pairs.slice(0, config.txRings)];
  return allocate(space, region, area.bytes, [
    { name: names[0], config, at: at[0], places: pairs.map((p) => p.first) },
    { name: names[1], config: swapped(config), at: at[1], places: turned.map((p) => p.second) },
  ]);
}

/** Direction, number and slots of each ring: all tx, then all rx. */
function shapes(config: PortConfig): { dir: number; ringId: number; numSlots: number }[] {
  const of = (dir: number, rings: number, numSlots: number): { dir: number; ringId: number; numSlots: number }[] =>
    Array.from({ length: rings }, (_, ringId) => ({ dir, ringId, numSlots }));
  return [...of(NR_DIR_TX, config.txRings, config.txSlots), ...of(NR_DIR_RX, config.rxRings, config.rxSlots)];
}

interface Plan {
  readonly name: string;
  readonly config: PortConfig;
  readonly at: number;
  readonly places: readonly Place[];
}

function allocate(space: ArenaSpace, region: Region, privateBytes: number, plans: readonly Plan[]): PortMemory {
  const undo: (() => void)[] = [];
  try {
    const regionAddr = region.mapInto(space);
    const ringOfs = region.takeRings(
      plans.reduce((n, plan) => n + plan.places.length, 0),
      Math.max(...plans.map((plan) => portNeeds(plan.config).slots)),
    );
    undo.push(() => region.giveRings(ringOfs));
    // A ledger for each ring, or for each pair.
    const ledgers = new Map<number, number[]>();
    for (const { config, places } of plans) {
      for (const [i, { numSlots }] of shapes(config).entries()) {
        const { ledger } = places[i]!;
        if (ledgers.has(ledger)) continue;
        const buffers = region.takeBuffers(numSlots);
        undo.push(() => region.giveBuffers(buffers));
        ledgers.set(ledger, buffers);
      }
    }
    const privateAddr = space.alloc(privateBytes);
    undo.push(() => space.free(privateAddr));
    space.arena.mapAnonymous(privateAddr, pageRound(privateBytes));
    const { m } = space.arena;
    for (const [ledger, buffers] of ledgers) m.u32.set(buffers, (privateAddr + ledger) >>> 2);
    const { layout } = region;
    const objects = {
      memId: region.memId,
      regionAddr,
      regionBytes: layout.size,
      bufPoolOfs: layout.bufPool.ofs,
      bufSize: layout.bufPool.objsz,
      numBufs: layout.bufPool.objnum,
    };
    let next = 0;
    const ports = plans.map(({ name, config, at, places }): PortRecord => {
      const rings = shapes(config).map((shape, i): PortRing => {
        const { kring: k, ledger, pair } = places[i]!;
        return {
          ...shape,
          ringOfs: ringOfs[next++]!,
          kring: privateAddr + k,
          ledger: privateAddr + ledger,
          ...(pair && { pair: { peer: privateAddr + pair.peer, shadow: privateAddr + pair.shadow } }),
        };
      });
      const port = privateAddr + at;
      const ends = { txRings: rings.slice(0, config.txRings), rxRings: rings.slice(config.txRings) };
      return { name, port, ...objects, ...ends };
    });
    for (const port of ports) {
      writePrivate(m, port);
      for (const ring of [...port.txRings, ...port.rxRings]) {
        const buffers = ledgerOf(m, ring);
        writeRing(m, regionAddr, port.bufPoolOfs, port.bufSize, ring, buffers);
        if (ring.pair !== undefined) m.u64.set(buffers.map(BigInt), ring.pair.shadow / 8);
      }
    }
    return { ports, privateAddr };
  } catch (e) {
    for (const action of undo.toReversed()) action();
    throw e;
  }
}

/** Gives everything back that was made for a port or a pipe. No other thread may use it any more. */
export function releasePorts(space: ArenaSpace, region: Region, memory: PortMemory): void {
  const rings = memory.ports.flatMap((p) => [...p.txRings, ...p.rxRings]);
  const ledgers = new Map(rings.map((ring) => [ring.ledger, ledgerOf(space.arena.m, ring)]));
  region.giveBuffers([...ledgers.values()].flat());
  region.giveRings(rings.map((ring) => ring.ringOfs));
  space.free(memory.privateAddr);
}

function writePrivate(m: Views, record: PortRecord): void {
  const { port, txRings, rxRings, regionAddr } = record;
  portStruct.set.num_tx_rings(m, port, txRings.length);
  portStruct.set.num_rx_rings(m, port, rxRings.length);
  for (const [i, ring] of txRings.entries()) m.u32[(port + portStruct.ofs.tx_rings + 4 * i) >>> 2] = ring.kring;
  for (const [i, ring] of rxRings.entries()) m.u32[(port + portStruct.ofs.rx_rings + 4 * i) >>> 2] = ring.kring;
  for (const ring of [...txRings, ...rxRings]) {
    const k = ring.kring;
    kring.set.ring(m, k, regionAddr + ring.ringOfs);
    kring.set.num_slots(m, k, ring.numSlots);
    kring.set.buf_base(m, k, regionAddr + record.bufPoolOfs);
    kring.set.buf_size(m, k, record.bufSize);
    kring.set.num_bufs(m, k, record.numBufs);
    kring.set.port(m, k, port);
    kring.set.dir(m, k, ring.dir);
    kring.set.ring_id(m, k, ring.ringId);
    if (ring.pair !== undefined) {
      kring.set.peer(m, k, ring.pair.peer);
      kring.set.shadow(m, k, ring.pair.shadow);
    }
    if (ring.dir === NR_DIR_TX) kring.set.hwtail(m, k, ring.numSlots - 1);
  }
}
