/** What a strict guest reads in a memdev's registers and in the region, checked: see strict-guest.ts. */
import type { Views } from '../abi/index.ts';
import {
  CSB_PAGE_SIZE,
  NETMAP_API,
  NETMAP_FIRST_BUF,
  NR_DIR_RX,
  NR_DIR_TX,
  netmap_if,
  netmap_ring,
  netmap_slot,
  nm_csb_atok,
  PTNET_MDEV_IO,
} from '../abi/index.ts';
import type { ArenaSpace } from '../memory/index.ts';
import { pageRound } from '../memory/index.ts';
import type { PciDevice } from './pci.ts';
import { must, StrictRing } from './strict-ring.ts';

/** A mapped region. `at`: its arena address. */
export interface StrictRegion {
  readonly at: number;
  readonly bytes: number;
  readonly bufOfs: number;
  readonly numBufs: number;
  readonly bufSize: number;
}

/** netmap_mem_pt_guest_finalize: maps BAR1, reads where the buffers are. */
export async function mapRegion(memdev: PciDevice, space: ArenaSpace): Promise<StrictRegion> {
  const hi = await memdev.read32(PTNET_MDEV_IO.MEMSIZE_HI);
  const bytes = hi * 2 ** 32 + (await memdev.read32(PTNET_MDEV_IO.MEMSIZE_LO));
  const bar = await memdev.memoryBar();
  must(bytes > 0 && pageRound(bytes) <= bar.bytes, () => `MEMSIZE ${bytes}, but BAR1 has ${bar.bytes} bytes`);
  const bufSize = await memdev.read32(PTNET_MDEV_IO.BUF_POOL_OBJSZ);
  const numBufs = await memdev.read32(PTNET_MDEV_IO.BUF_POOL_OBJNUM);
  const bufOfs = await memdev.read32(PTNET_MDEV_IO.BUF_POOL_OFS);
  const inside = bufSize > 0 && bufSize % 64 === 0 && numBufs > NETMAP_FIRST_BUF && bufOfs + numBufs * bufSize <= bytes;
  must(inside, () => `${numBufs} buffers of ${bufSize} bytes from ${bufOfs} on, in a region of ${bytes} bytes`);
  const at = space.alloc(bytes);
  space.arena.mapFile(at, pageRound(bytes), bar.fd, bar.ofs);
  return { at, bytes, bufOfs, numBufs, bufSize };
}

/** What the ptnet registers say about the rings. */
export interface RingRegisters {
  readonly NUM_TX_RINGS: number;
  readonly NUM_RX_RINGS: number;
  readonly NUM_TX_SLOTS: number;
  readonly NUM_RX_SLOTS: number;
}

/** Fields as [what is there, what has to be there]. */
function mustAgree(what: string, fields: Readonly<Record<string, readonly [number, number]>>): void {
  for (const [field, [is, expected]] of Object.entries(fields)) {
    must(is === expected, () => `${what}: ${field} is ${is}, expected ${expected}`);
  }
}

/**
 * netmap_mem_pt_guest_rings_create, and what libnetmap and applications read of a netmap_if. Returns tx, then rx rings.
 * @param nifpOfs NIFP_OFS @param csb arena address of the CSB pages
 */
export function readRings(
  m: Views,
  region: StrictRegion,
  nifpOfs: number,
  registers: RingRegisters,
  csb: number,
): StrictRing[] {
  const { NUM_TX_RINGS: tx, NUM_RX_RINGS: rx, NUM_TX_SLOTS: txSlots, NUM_RX_SLOTS: rxSlots } = registers;
  must(nifpOfs % 8 === 0 && nifpOfs + netmap_if.size + 8 * (tx + rx + 2) <= region.bytes, () => {
    return `NIFP_OFS ${nifpOfs} in a region of ${region.bytes} bytes`;
  });
  const nifp = region.at + nifpOfs;
  mustAgree('netmap_if', {
    ni_version: [netmap_if.get.ni_version(m, nifp), NETMAP_API],
    ni_tx_rings: [netmap_if.get.ni_tx_rings(m, nifp), tx],
    ni_rx_rings: [netmap_if.get.ni_rx_rings(m, nifp), rx],
    ni_host_tx_rings: [netmap_if.get.ni_host_tx_rings(m, nifp), 1],
    ni_host_rx_rings: [netmap_if.get.ni_host_rx_rings(m, nifp), 1],
  });
  const ringOfs = (entry: number): number =>
    Number(BigInt.asIntN(64, m.u64[(nifp + netmap_if.size + 8 * entry) >>> 3]!));
  for (const entry of [tx, tx + 1 + rx]) {
    must(ringOfs(entry) === 0, () => `ring_ofs of a host ring is ${ringOfs(entry)}: applications take it as bound`);
  }
  const ring = (dir: number, ringId: number, entry: number, index: number, numSlots: number): StrictRing => {
    const at = nifp + ringOfs(entry);
    const what = `${dir === NR_DIR_TX ? 'tx' : 'rx'} ring ${ringId}`;
    const end = at + netmap_ring.size + numSlots * netmap_slot.size;
    const inside = at % 128 === 0 && at >= region.at && end <= region.at + region.bytes && numSlots >= 2;
    must(inside, () => `${what} of ${numSlots} slots at ${at - region.at}: outside the region, or not aligned`);
    mustAgree(what, {
      num_slots: [netmap_ring.get.num_slots(m, at), numSlots],
      nr_buf_size: [netmap_ring.get.nr_buf_size(m, at), region.bufSize],
      buf_ofs: [Number(netmap_ring.get.buf_ofs(m, at)), region.at + region.bufOfs - at],
      ringid: [netmap_ring.get.ringid(m, at), ringId],
      dir: [netmap_ring.get.dir(m, at), dir],
    });
    return new StrictRing({
      m,
      ring: at,
      atok: csb + index * nm_csb_atok.size,
      ktoa: csb + CSB_PAGE_SIZE + index * nm_csb_atok.size,
      buffers: region.at + region.bufOfs,
      numSlots,
      dir,
      ringId,
      bufSize: region.bufSize,
      numBufs: region.numBufs,
    });
  };
  return [
    ...Array.from({ length: tx }, (_, i) => ring(NR_DIR_TX, i, i, i, txSlots)),
    ...Array.from({ length: rx }, (_, i) => ring(NR_DIR_RX, i, tx + 1 + i, tx + i, rxSlots)),
  ];
}

/**
 * Every slot has a buffer, and none has two owners. What the host has of an rx ring that ran `before` says nothing: the
 * port of an interface puts frames into slots with the buffers that they arrived in.
 */
export function checkBuffers(rings: readonly StrictRing[], before: readonly StrictRing[]): void {
  const owners = new Map<number, string>();
  for (const [r, ring] of rings.entries()) {
    const ran = ring.at.dir === NR_DIR_RX ? before[r] : undefined;
    for (let i = 0; i < ring.at.numSlots; i++) {
      ring.buffer(i);
      if (ran !== undefined && ring.distance(ran.rhead, i) >= ring.distance(ran.rhead, ran.tail)) continue;
      const { bufIdx } = ring.slot(i);
      const owner = owners.get(bufIdx);
      must(owner === undefined, () => `${ring.name} slot ${i} has buffer ${bufIdx}, which ${owner} has too`);
      owners.set(bufIdx, `${ring.name} slot ${i}`);
    }
  }
}
